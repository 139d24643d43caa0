"""Runs that are broken off: by SIGKILL at any moment, by signals, by a loss that is no number."""

import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import keras
import networks
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
from waiting import wait_for

import models

KILLER = pathlib.Path(__file__).parents[1] / "support" / "killed_train.py"
# When each kill comes, counted from the start of its process.
ALL_KILLS = [
    ("before a step", 1),
    ("after a step", 7),
    ("before a backup's rename", 1),
    ("before a step", 1),
    ("before a backup's rename", 2),
    ("after a step", 11),
    ("in the validation", 1),
    ("before a backup's rename", 4),
    ("after a step", 2),
    ("before the student's rename", 1),
]
SOME_KILLS = [ALL_KILLS[1], ALL_KILLS[4], ALL_KILLS[9]]


def digits(folder):
    """Flags of a small run, whose teacher and student (with dropout) are made in the folder."""
    keras.utils.set_random_seed(0)
    networks.small_convolutional_classifier().save(folder / "teacher.keras")
    student = networks.small_convolutional_classifier()
    layers = [keras.layers.Dropout(0.2), keras.layers.Dense(10)]
    keras.Sequential([*student.layers[:-1], *layers]).save(folder / "own.keras")
    return [
        "--teacher=teacher.keras", "--student=own.keras", "--epochs=3", "--backup_steps=4",
        "--deterministic",
    ]  # fmt: skip


def cifar10(shared):
    """Flags of two epochs of 100 steps from resnet56 to resnet8."""
    return [
        "--dataset=cifar10",
        f"--data_dir={shared / 'data' / 'tfds'}",
        "--teacher=resnet56",
        f"--teacher_weights={shared / 'weights' / 'resnet56-cifar10.safetensors'}",
        "--teacher_normalization=imagenet",
        "--student=resnet8",
        "--train_images_per_class=1280",
        "--epochs=2",
        "--backup_steps=20",
        "--deterministic",
    ]


def start(folder, *flags, send="SIGKILL", at=("never", 0)):
    """Starts train.py, which gets a signal at a moment or not."""
    command = [sys.executable, KILLER, folder / "log", send, *at, *flags]
    with (folder / "output").open("a") as output, (folder / "errors").open("w") as errors:
        return subprocess.Popen(list(map(str, command)), cwd=folder, stdout=output, stderr=errors)


def train(folder, *flags, **signals):
    """Runs train.py to its end; its status."""
    return start(folder, *flags, **signals).wait(timeout=900)


def errors(folder):
    """What the last process wrote to the standard error, which has to be one line."""
    lines = (folder / "errors").read_text().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def assert_ends_alike(folder, flags, kills, random_kills=0):
    """Kills and restarts a run until it ends, and compares it with one that nobody disturbed."""
    assert train(folder, *flags, "--run_dir=whole") == 0, (folder / "errors").read_text()
    for kill in kills:
        assert train(folder, *flags, "--run_dir=broken", at=kill) == -signal.SIGKILL
    sent = [line for line in (folder / "log").read_text().splitlines() if "SIGKILL" in line]
    assert sent == [f"SIGKILL {moment}" for moment, _ in kills]
    assert train(folder, *flags, "--run_dir=broken") == 0
    assert_equal_runs(folder / "whole", folder / "broken")
    if random_kills:
        kill_at_random(folder, [*flags, "--run_dir=random"], random_kills)
        assert_equal_runs(folder / "whole", folder / "random")


def kill_at_random(folder, flags, times):
    """Kills a run so often, a random time after it has begun to train, and lets it end."""
    rng = random.Random(0)
    for _ in range(times):
        (folder / "log").write_text("")
        process = start(folder, *flags)
        wait_for(lambda: (folder / "log").stat().st_size > 0, process)
        time.sleep(rng.uniform(0, 2))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert train(folder, *flags) == 0, (folder / "errors").read_text()


def assert_equal_runs(one, other):
    """Compares what two runs have left."""
    assert (one / "history.csv").read_bytes() == (other / "history.csv").read_bytes()
    assert scalars(one) == scalars(other)
    assert len(scalars(one)) >= 10
    students = [keras.saving.load_model(run / "student.keras") for run in (one, other)]
    for a, b in zip(*(student.get_weights() for student in students), strict=True):
        np.testing.assert_array_equal(a, b)
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (one, other)]
    assert metrics[0] == metrics[1]
    assert newest(one)[1] == newest(other)[1] == steps_of(one)


def newest(run):
    """The step of a run's newest backup, and how many steps its optimizer has made."""
    path = max((run / "backup").glob("step-*"))
    values = safetensors.numpy.load_file(path)
    return int(values["step"]), int(values["optimizer/00000"])


def steps_of(run):
    """The steps that a whole run makes."""
    config = json.loads((run / "config.json").read_text())
    images = config["data"]["images"]["train"]
    return config["settings"]["epochs"] * -(-images // config["settings"]["batch_size"])


def scalars(run):
    """TensorBoard's scalars as (split, tag, step) to value; each has but one."""
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


def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path):
    assert_ends_alike(tmp_path, digits(tmp_path), SOME_KILLS)


@pytest.mark.slow
def test_ten_kills_at_chosen_and_ten_at_random_moments_change_nothing(tmp_path):
    assert_ends_alike(tmp_path, digits(tmp_path), ALL_KILLS, random_kills=10)


@pytest.mark.slow
def test_ten_and_ten_kills_change_nothing_of_a_cifar_run(tmp_path, shared):
    assert_ends_alike(tmp_path, cifar10(shared), ALL_KILLS, random_kills=10)


@pytest.mark.parametrize("send", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_a_signal_within_an_epoch_loses_no_step(send, tmp_path):
    flags = [*digits(tmp_path), "--run_dir=run"]
    status = train(tmp_path, *flags, send=send, at=("after a step", 30))
    assert status == 128 + signal.Signals[send]
    steps = (tmp_path / "log").read_text().count("after a step")
    assert newest(tmp_path / "run") == (steps, steps)
    assert 30 <= steps <= 31
    line = errors(tmp_path)
    assert send in line
    assert f"epoch 1 of 3 and {steps - 21} steps of the next (step {steps}) of run" in line
    assert "same command" in line
    assert train(tmp_path, *flags) == 0
    assert (tmp_path / "log").read_text().count("after a step") == 63


@pytest.mark.slow
def test_a_signal_in_the_validation_and_a_kill_there_lose_no_step(tmp_path):
    flags = digits(tmp_path)
    assert train(tmp_path, *flags, "--run_dir=whole") == 0
    broken = [*flags, "--run_dir=broken"]
    (tmp_path / "log").unlink()
    assert train(tmp_path, *broken, send="SIGTERM", at=("in the validation", 2)) == 143
    assert newest(tmp_path / "broken") == (42, 42)
    assert train(tmp_path, *broken, at=("in the validation", 1)) == -signal.SIGKILL
    assert train(tmp_path, *broken) == 0
    assert (tmp_path / "log").read_text().count("after a step") == 63
    assert_equal_runs(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once_and_the_last_backup_is_whole(tmp_path):
    flags = [*digits(tmp_path), "--run_dir=run"]
    process = start(tmp_path, *flags, send="hang", at=("before a step", 7))
    wait_for(lambda: "hang" in log_of(tmp_path), process)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 130
    assert newest(tmp_path / "run") == (4, 4)
    assert "the last backup is whole" in errors(tmp_path)
    assert train(tmp_path, *flags) == 0


def test_a_second_process_is_refused_until_the_first_has_ended_however_it_ended(tmp_path):
    flags = [*digits(tmp_path), "--run_dir=run"]
    first = start(tmp_path, *flags, send="hang", at=("after a step", 5))
    wait_for(lambda: "hang" in log_of(tmp_path), first)
    before = contents(tmp_path / "run")
    for more in ([], ["--overwrite"]):
        assert train(tmp_path, *flags, *more) == 2
        assert f"is being written by process {first.pid}" in errors(tmp_path)
    assert contents(tmp_path / "run") == before
    first.kill()
    first.wait()
    assert train(tmp_path, *flags) == 0


@pytest.mark.slow
def test_the_same_for_the_teacher_that_is_trained_by_the_same_command(tmp_path):
    flags = ["--teacher=resnet8", "--student=resnet8", "--teacher_epochs=2", "--epochs=1",
             "--backup_steps=4", "--deterministic"]  # fmt: skip
    assert train(tmp_path, *flags, "--teacher_dir=whole", "--run_dir=run") == 0
    broken = [*flags, "--teacher_dir=broken", "--run_dir=another"]
    assert train(tmp_path, *broken, at=("after a step", 6)) == -signal.SIGKILL
    assert train(tmp_path, *broken, send="SIGTERM", at=("after a step", 6)) == 143
    assert train(tmp_path, *broken) == 0
    output = (tmp_path / "output").read_text()
    assert "resuming after epoch 0 of 2 and 4 steps of the next (step 4)" in output
    teachers = [next((tmp_path / name).iterdir()) for name in ("whole", "broken")]
    assert (teachers[0] / "history.csv").read_bytes() == (teachers[1] / "history.csv").read_bytes()
    assert_equal_runs(tmp_path / "run", tmp_path / "another")


@pytest.mark.slow
def test_what_changes_a_run_is_refused_by_name_and_what_doesnt_is_accepted(tmp_path):
    folder_of_images(tmp_path / "images", seed=0)
    teacher = models.build("resnet8", (8, 8, 3), 2)
    teacher.save_weights(tmp_path / "teacher.weights.h5")
    flags = {
        "dataset": "folder", "data_dir": "images", "teacher": "resnet8", "student": "resnet8",
        "teacher_weights": "teacher.weights.h5", "epochs": 2, "batch_size": 8, "run_dir": "run",
        "validation_fraction": 0.0,
    }  # fmt: skip

    def run(changes, **signals):
        return train(
            tmp_path, *[f"--{name}={value}" for name, value in {**flags, **changes}.items()],
            **signals,
        )  # fmt: skip

    assert run({}, at=("after a step", 3)) == -signal.SIGKILL
    before = contents(tmp_path / "run")
    folder_of_images(tmp_path / "others", seed=1)
    teacher.set_weights([weight + 1 for weight in teacher.get_weights()])
    teacher.save_weights(tmp_path / "another.weights.h5")
    for name, value, what in (
        ("epochs", 3, "epochs was 2 and is 3"),
        ("temperature", 2, "temperature was 4.0 and is 2.0"),
        ("data_dir", "others", "images was"),
        ("teacher_weights", "another.weights.h5", "teacher_weights was"),
    ):
        assert run({name: value}) == 2
        assert what in errors(tmp_path)
    assert {**contents(tmp_path / "run"), tmp_path / "run" / "backup" / "lock": b""} == {
        **before, tmp_path / "run" / "backup" / "lock": b"",
    }  # fmt: skip
    shutil.copytree(tmp_path / "images", tmp_path / "copy")
    shutil.copy(tmp_path / "teacher.weights.h5", tmp_path / "copied.weights.h5")
    moved = {"data_dir": "copy", "teacher_weights": "copied.weights.h5", "backup_steps": 3}
    assert run({**moved, "steps_per_execution": 2}) == 0
    assert "resuming after" in (tmp_path / "output").read_text()


def folder_of_images(folder, seed):
    """A data set of two classes of random images."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", 16), ("test", 4)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for n in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
                PIL.Image.fromarray(pixels).save(folder / split / name / f"{n}.png")


def log_of(folder):
    """What has been written down, if anything has."""
    log = folder / "log"
    return log.read_text() if log.exists() else ""


def contents(folder):
    """All the files of a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_is_killed_before_it_has_a_configuration_can_be_started_again(tmp_path):
    flags = [*digits(tmp_path), "--run_dir=run"]
    assert train(tmp_path, *flags, at=("before the configuration's rename", 1)) == -signal.SIGKILL
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert "backup" in left
    assert "config.json" not in left
    assert train(tmp_path, *flags, send="SIGTERM", at=("after a step", 2)) == 143


@pytest.mark.slow
def test_with_overwrite_too_the_same_command_goes_on_and_another_starts_anew(tmp_path):
    flags = [*digits(tmp_path), "--run_dir=run"]
    assert train(tmp_path, *flags, send="SIGTERM", at=("after a step", 2)) == 143
    again = [*flags, "--overwrite"]
    assert train(tmp_path, *again, send="SIGTERM", at=("after a step", 9)) == 143
    assert "resuming" not in (tmp_path / "output").read_text()
    assert train(tmp_path, *again, send="SIGTERM", at=("after a step", 3)) == 143
    assert "resuming after epoch 0 of 3 and" in (tmp_path / "output").read_text()
    assert newest(tmp_path / "run")[0] >= 12
