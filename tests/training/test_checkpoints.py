"""What a run goes on from: whole, complete, small, and of this run."""

import os
import pathlib
import shutil
import subprocess
import sys

import keras
import networks
import numpy as np
import pytest

import models
from stkd_keras import SGD, InputError, Mixup, SimilarityTransferDistiller
from stkd_keras.training.checkpoints import (
    AT_START,
    Backup,
    metrics_of,
    newest_backup,
    newest_step,
    write_backup,
)

SETTINGS = {"epochs": 3}


def distiller(optimizer=None, dropout=True, steps=0, dtype="float32"):
    """A compiled distiller that has made some steps."""
    keras.utils.set_random_seed(1)
    student = networks.small_convolutional_classifier()
    if dropout or dtype != "float32":
        layers = [keras.layers.Dropout(0.3), keras.layers.Dense(10, dtype=dtype)]
        student = keras.Sequential([*student.layers[:-1], *layers])
    made = SimilarityTransferDistiller(
        student, soft_weight=0, label_weight=1, mixing=Mixup(alpha=1.0)
    )
    made.compile(optimizer or SGD(0.05, momentum=0.9), metrics=["accuracy"])
    made.optimizer.build(made.trainable_variables)
    if steps:
        made.fit(*networks.images(32 * steps), batch_size=32, verbose=0, shuffle=False)
    return made


def write(folder, model, **state):
    """Backs up a distiller as a run does."""
    state = {**AT_START, "settings": SETTINGS, **state}
    write_backup(folder, model, state, metrics_of(model), {})


OPTIMIZERS = {
    "momentum": lambda: SGD(0.05, momentum=0.9),
    "averaged weights": lambda: keras.optimizers.AdamW(0.01, use_ema=True, ema_momentum=0.9),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(
        SGD(0.05, momentum=0.9), dynamic_growth_steps=2
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_model_from_a_backup_trains_on_as_the_one_it_was_made_of(name, tmp_path):
    images, labels = networks.images(128, seed=3)

    def train_on(model):
        model.fit(images, labels, batch_size=32, verbose=0, shuffle=False)
        return [np.asarray(v) for v in (*model.variables, *model.optimizer.variables)]

    model = distiller(OPTIMIZERS[name](), steps=3)
    # Averaged weights take the place of the others when `fit` ends: not what is tested here.
    write(tmp_path, model)
    other = distiller(OPTIMIZERS[name]())
    newest_backup(tmp_path, SETTINGS).restore(other)
    assert int(other.step) == int(model.step) == 3
    for a, b in zip(train_on(model), train_on(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert int(other.step) == int(model.step) == 7


def test_variables_of_every_dtype_come_back_bit_for_bit(tmp_path):
    model = distiller(dtype="bfloat16")
    dtypes = {variable.dtype for variable in (*model.variables, *model.optimizer.variables)}
    assert {"bfloat16", "float32", "int64"} <= dtypes
    write(tmp_path, model)
    other = distiller(dtype="bfloat16")
    for variable in other.trainable_variables:
        variable.assign(keras.ops.zeros_like(variable))
    newest_backup(tmp_path, SETTINGS).restore(other)
    for a, b in zip(model.variables, other.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_the_two_newest_are_kept(tmp_path):
    model = distiller()
    for step in (3, 8, 11):
        model.step.assign(step)
        write(tmp_path, model)
    steps = [int(path.stem.split("-")[1]) for path in sorted(tmp_path.glob("step-*"))]
    assert steps == [8, 11]
    assert newest_step(tmp_path) == 11


def damage(path, how):
    """Spoils a file."""
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[len(content) // 2 :]
    elif how == "empty":
        content.clear()
    elif how == "one bit of the weights":
        content[-1000] ^= 1
    elif how == "one bit of the state":
        place = content.index(b"epochs")
        content[place] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "how", ["truncated", "empty", "one bit of the weights", "one bit of the state"]
)
def test_of_a_broken_backup_the_one_before_is_taken_with_a_warning(how, tmp_path, capsys):
    model = distiller()
    write(tmp_path, model)
    model.step.assign(5)
    write(tmp_path, model)
    damage(tmp_path / "step-0000000005.safetensors", how)
    backup = newest_backup(tmp_path, SETTINGS)
    assert backup.path.name == "step-0000000000.safetensors"
    warning = capsys.readouterr().err.strip().splitlines()
    assert len(warning) == 1
    assert "warning" in warning[0]
    assert "step-0000000005" in warning[0]
    assert "going on from step-0000000000" in warning[0]
    damage(tmp_path / "step-0000000000.safetensors", how)
    with pytest.raises(InputError, match=r"step-0000000005.* isn't a whole backup.*to start anew"):
        newest_backup(tmp_path, SETTINGS)
    # What was broken goes with the next one.
    model.step.assign(2)
    write(tmp_path, model)
    assert [p.name for p in tmp_path.glob("step-*5*")] == []


def test_a_backup_of_another_run_or_model_is_refused_by_name(tmp_path):
    write(tmp_path, distiller())
    with pytest.raises(InputError, match=r"of another run \(epochs was 3 and is 4\); remove it"):
        newest_backup(tmp_path, {"epochs": 4})
    backup = newest_backup(tmp_path, SETTINGS)
    with pytest.raises(InputError, match=r"of another model or optimizer: .*to start anew"):
        backup.restore(distiller(dropout=False))
    with pytest.raises(InputError, match="of another model or optimizer"):
        backup.restore(distiller(keras.optimizers.Adam(0.1)))


def test_a_backup_that_says_nonsense_of_its_run_is_refused(tmp_path):
    write(tmp_path, distiller(), steps="a few")
    with pytest.raises(InputError, match="doesn't say where its run was"):
        newest_backup(tmp_path, SETTINGS)


def test_a_file_that_isnt_a_backup_is_refused(tmp_path, shared):
    path = tmp_path / "step-0000000001.safetensors"
    shutil.copy(shared / "weights" / "resnet56-cifar10.safetensors", path)
    with pytest.raises(InputError, match="isn't a whole backup"):
        Backup(path)


def test_a_backup_holds_no_teacher_and_little_beside_the_student(tmp_path):
    images, labels = networks.images(8, shape=(32, 32, 3))
    teacher = models.build("resnet110", (32, 32, 3), 10)
    student = models.build("resnet8", (32, 32, 3), 10)
    model = SimilarityTransferDistiller(student, teacher)
    model.compile(SGD(0.05, momentum=0.9), metrics=["accuracy"])
    model.fit(images, labels, batch_size=8, verbose=0)
    write(tmp_path, model, callbacks=[], history="x" * 1000)
    student.compile(SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy")
    student.optimizer.build(student.trainable_variables)
    student.save(tmp_path / "student.keras")
    backup = (tmp_path / "step-0000000001.safetensors").stat().st_size
    assert backup - (tmp_path / "student.keras").stat().st_size <= 300_000
    assert student.count_params() * 4 < backup


# A file system of its own, with room for so much, or none to write to.
IN_TMPFS = """
mkdir disk && mount -t tmpfs -o size={size} tmpfs disk || exit 77
cp -r before disk/run 2> /dev/null
mount -o remount,{mode} disk
{command}
echo $? > status
cp -r disk/run after 2> /dev/null
true
"""


def in_tmpfs(folder, *flags, size="100m", mode="rw", repository):
    """Runs train.py with its run directory, a copy of before/, in such a file system."""
    command = [sys.executable, repository / "train.py", *flags, "--run_dir=disk/run"]
    quoted = " ".join(f"'{part}'" for part in command)
    script = IN_TMPFS.format(size=size, mode=mode, command=f"{quoted} > output 2> errors")
    if not shutil.which("unshare"):
        pytest.skip("no unshare: a file system of its own can't be made")
    for old in ("disk", "after"):
        shutil.rmtree(folder / old, ignore_errors=True)
    completed = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script], cwd=folder, check=False, timeout=300
    )
    if completed.returncode:
        pytest.skip("a file system of its own can't be mounted here")
    lines = (folder / "errors").read_text().splitlines()
    return int((folder / "status").read_text()), lines


def files(folder):
    """What a folder's files hold, by name; the lock says who had it last."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in pathlib.Path(folder).rglob("*")
        if path.is_file() and path.name != "lock"
    }


def flags_of_a_run(folder):
    networks.small_convolutional_classifier().save(folder / "teacher.keras")
    return ["--teacher=teacher.keras", "--epochs=2", "--backup_steps=4"]


@pytest.mark.slow
def test_on_a_full_disk_a_run_ends_in_one_line_and_goes_on_where_there_is_room(
    tmp_path, repository
):
    flags = flags_of_a_run(tmp_path)
    for size, what in (("4k", "config.json"), ("12k", "events"), ("1500k", "backup/step-")):
        status, lines = in_tmpfs(tmp_path, *flags, size=size, repository=repository)
        assert status == 2
        assert len(lines) == 1, lines
        assert what in lines[0]
        assert "No space left on device" in lines[0]
    left = {path.name for path in (tmp_path / "after").rglob("*") if path.is_file()}
    assert not [name for name in left if "unfinished" in name]
    os.rename(tmp_path / "after", tmp_path / "before")
    status, lines = in_tmpfs(tmp_path, *flags, repository=repository)
    assert (status, lines) == (0, [])
    assert "resuming after epoch 0 of 2 and 4 steps" in (tmp_path / "output").read_text()
    assert (tmp_path / "after" / "metrics.json").exists()


@pytest.mark.slow
def test_where_nothing_can_be_written_a_run_ends_in_one_line_and_leaves_what_there_was(
    tmp_path, repository
):
    flags = flags_of_a_run(tmp_path)
    status, lines = in_tmpfs(tmp_path, *flags, mode="ro", repository=repository)
    assert status == 2
    assert len(lines) == 1, lines
    assert "--run_dir=disk/run can't be written" in lines[0]
    subprocess.run(
        [sys.executable, repository / "train.py", *flags, "--run_dir=before"],
        cwd=tmp_path, capture_output=True, check=True, timeout=170,
    )  # fmt: skip
    (tmp_path / "before" / "metrics.json").unlink()  # Not complete any more.
    status, lines = in_tmpfs(tmp_path, *flags, mode="ro", repository=repository)
    assert (status, len(lines)) == (2, 1)
    assert files(tmp_path / "after") == files(tmp_path / "before")


@pytest.mark.slow
def test_a_quota_ends_a_run_in_one_line_and_the_same_command_goes_on(tmp_path, repository):
    if not shutil.which("prlimit"):
        pytest.skip("no prlimit")
    flags = flags_of_a_run(tmp_path)
    command = [sys.executable, repository / "train.py", *flags, "--run_dir=run"]
    limited = subprocess.run(
        ["prlimit", "--fsize=350000", *command],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=170,
    )  # fmt: skip
    assert limited.returncode == 2
    lines = limited.stderr.splitlines()
    assert len(lines) == 1, lines
    assert "backup/step-0000000000.safetensors: File too large" in lines[0]
    assert [p.name for p in (tmp_path / "run" / "backup").iterdir()] == ["lock"]
    assert subprocess.run(
        command, cwd=tmp_path, capture_output=True, check=False, timeout=170
    ).returncode == 0  # fmt: skip
