"""Backups: complete, small, and of this run only."""

import contextlib
import os
import pathlib
import resource
import shutil
import subprocess
import sys

import keras
import networks
import numpy as np
import pytest

from stkd_keras import SGD, InputError, Mixup, SimilarityTransferDistiller
from stkd_keras.training.checkpoints import (
    Backup,
    Progress,
    metrics_of,
    newest_backup,
    newest_step,
    write_backup,
)
from stkd_keras.training.run_directory import RunDirectory

SETTINGS = {"epochs": 3}


def distiller(optimizer=None, dropout=True, steps=0, dtype="float32"):
    """A compiled distiller that has trained for some steps."""
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


def write(folder, model):
    """Writes a backup as a run does."""
    progress = Progress(settings=SETTINGS)
    write_backup(folder, model, progress, {"metrics": metrics_of(model)})


OPTIMIZERS = {
    "averaged weights": lambda: keras.optimizers.AdamW(0.01, use_ema=True, ema_momentum=0.9),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(
        SGD(0.05, momentum=0.9), dynamic_growth_steps=2
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_distiller_trains_like_the_original(name, tmp_path):
    images, labels = networks.images(128, seed=3)

    def train_on(model):
        model.fit(images, labels, batch_size=32, verbose=0, shuffle=False)
        return [np.asarray(v) for v in (*model.variables, *model.optimizer.variables)]

    model = distiller(OPTIMIZERS[name](), steps=3)
    write(tmp_path, model)
    other = distiller(OPTIMIZERS[name]())
    newest_backup(tmp_path, SETTINGS).restore(other)
    assert int(other.step) == int(model.step) == 3
    for a, b in zip(train_on(model), train_on(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert int(other.step) == int(model.step) == 7


def test_variables_of_every_dtype_are_restored_bit_for_bit(tmp_path):
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


def test_the_two_newest_backups_are_kept(tmp_path):
    model = distiller()
    for step in (3, 8, 11):
        model.step.assign(step)
        write(tmp_path, model)
    steps = [int(path.stem.split("-")[1]) for path in sorted(tmp_path.glob("step-*"))]
    assert steps == [8, 11]
    assert newest_step(tmp_path) == 11


@pytest.mark.parametrize("damage", ["truncated", "empty", "one bit"])
def test_a_damaged_backup_is_skipped_with_a_warning(damage, tmp_path, capsys):
    model = distiller()
    write(tmp_path, model)
    model.step.assign(5)
    write(tmp_path, model)
    older, newest = sorted(tmp_path.glob("step-*"))
    content = bytearray(newest.read_bytes())
    if damage == "one bit":
        content[content.index(b"NUMPY") + 200] ^= 1
    newest.write_bytes(content[: {"truncated": -500, "empty": 0, "one bit": None}[damage]])
    assert newest_backup(tmp_path, SETTINGS).path == older
    (warning,) = capsys.readouterr().err.strip().splitlines()
    assert warning.startswith(f"warning: {newest} isn't a complete checkpoint")
    assert warning.endswith(f"using {older.name}")
    older.write_bytes(newest.read_bytes())
    with pytest.raises(InputError, match=r"isn't a complete checkpoint.* no other; remove .* over"):
        newest_backup(tmp_path, SETTINGS)
    # The next backup replaces the damaged ones.
    model.step.assign(2)
    write(tmp_path, model)
    assert not newest.exists()


def test_a_flipped_bit_anywhere_is_found_or_harmless(tmp_path):
    model = SimilarityTransferDistiller(
        networks.dense_classifier(), soft_weight=0, label_weight=1, mixing=None
    )
    model.compile(SGD(0.05))
    model.optimizer.build(model.trainable_variables)
    write(tmp_path, model)
    (path,) = tmp_path.iterdir()
    content, whole = path.read_bytes(), Backup(path)
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):
            backup = Backup(path)
            assert backup.progress == whole.progress
            for group in ("model", "optimizer", "metrics"):
                for a, b in zip(backup.arrays(group), whole.arrays(group), strict=True):
                    np.testing.assert_array_equal(a, b)


def test_a_backup_of_another_run_model_or_version_is_refused(tmp_path):
    write(tmp_path, distiller())
    with pytest.raises(InputError, match=r"of another run \(epochs was 3 and is 4\); remove it"):
        newest_backup(tmp_path, {"epochs": 4})
    backup = newest_backup(tmp_path, SETTINGS)
    with pytest.raises(InputError, match=r"of another model or optimizer: .*to start over"):
        backup.restore(distiller(dropout=False))
    with pytest.raises(InputError, match="of another model or optimizer"):
        backup.restore(distiller(keras.optimizers.Adam(0.1)))
    backup.path.rename(tmp_path / "step-0000000000.safetensors")
    with pytest.raises(InputError, match=r"older version of stkd_keras; remove .* to start over"):
        newest_backup(tmp_path, SETTINGS)


def test_the_teacher_is_not_in_a_backup(tmp_path):
    teacher = networks.dense_classifier(width=100_000)
    model = SimilarityTransferDistiller(networks.dense_classifier(), teacher)
    model.compile(SGD(0.05, momentum=0.9), metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)
    write(tmp_path, model)
    assert (tmp_path / "step-0000000000.npz").stat().st_size < 20_000


def test_a_backup_that_does_not_fit_on_the_disk_keeps_the_previous_one(tmp_path):
    model = distiller()
    write(tmp_path, model)
    model.step.assign(5)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"can't write .*step-0000000005.npz: File too large"):
            write(tmp_path, model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000000.npz"]
    assert newest_backup(tmp_path, SETTINGS).progress.settings == SETTINGS


# A small or read-only file system.
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
    """Runs train.py in such a file system, with a copy of before/ as its run directory."""
    command = [sys.executable, repository / "train.py", *flags, "--run_dir=disk/run"]
    quoted = " ".join(f"'{part}'" for part in command)
    script = IN_TMPFS.format(size=size, mode=mode, command=f"{quoted} > output 2> errors")
    if not shutil.which("unshare"):
        pytest.skip("no unshare, which makes a file system for the test")
    for old in ("disk", "after"):
        shutil.rmtree(folder / old, ignore_errors=True)
    completed = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script], cwd=folder, check=False, timeout=600
    )
    if completed.returncode:
        pytest.skip("can't mount a file system here")
    lines = (folder / "errors").read_text().splitlines()
    return int((folder / "status").read_text()), lines


def files(folder):
    """The content of a folder's files except for the lock, which names its last holder."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in pathlib.Path(folder).rglob("*")
        if path.is_file() and path.name != "lock"
    }


def flags_of_a_run(folder):
    networks.small_convolutional_classifier().save(folder / "teacher.keras")
    return ["--teacher=teacher.keras", "--epochs=2", "--backup_steps=4"]


@pytest.mark.slow
def test_a_run_on_a_full_disk_ends_in_one_line_and_resumes_with_room(tmp_path, repository):
    flags = flags_of_a_run(tmp_path)
    for size, what in (("4k", "config.json"), ("1500k", "backup/step-")):
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
def test_a_run_on_a_read_only_disk_ends_in_one_line_and_changes_nothing(tmp_path, repository):
    flags = flags_of_a_run(tmp_path)
    RunDirectory(tmp_path / "before").start({"settings": {}})
    status, lines = in_tmpfs(tmp_path, *flags, mode="ro", repository=repository)
    assert (status, len(lines)) == (2, 1)
    assert "--run_dir=disk/run can't be written" in lines[0]
    assert files(tmp_path / "after") == files(tmp_path / "before")
