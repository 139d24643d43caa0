"""Runs that are broken off: by SIGKILL at any moment, by signals, by a loss that is no number."""

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
import safetensors.numpy

KILLER = pathlib.Path(__file__).with_name("killed_train.py")
# When each kill comes, counted from the start of its process.
ALL_KILLS = [
    ("before the first step", 1),
    ("after a step", 7),
    ("before a backup's rename", 1),
    ("before the first step", 1),
    ("before a backup's rename", 2),
    ("after a step", 11),
    ("in the validation", 1),
    ("before a backup's rename", 4),
    ("after a step", 2),
    ("before the student's rename", 1),
]
SOME_KILLS = [ALL_KILLS[1], ALL_KILLS[4], ALL_KILLS[6], ALL_KILLS[9]]


def digits(folder):
    """Flags of a small run, whose teacher is made in the folder."""
    keras.utils.set_random_seed(0)
    networks.small_convolutional_classifier().save(folder / "teacher.keras")
    return [
        "--teacher=teacher.keras", "--epochs=3", "--backup_steps=4", "--deterministic",
        "--augment=standard",
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


def train(folder, *flags, kill=None):
    """Runs train.py, killed at a moment or not; its status."""
    command = [sys.executable, str(KILLER), str(folder / "log"), *map(str, kill or ("never", 0))]
    with (folder / "output").open("a") as output:
        return subprocess.run(
            [*command, *flags],
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=600,
            check=False,
        ).returncode


def assert_ends_alike(folder, flags, kills, random_kills=0):
    """Kills and restarts a run until it ends, and compares it with one that nobody disturbed."""
    assert train(folder, *flags, "--run_dir=whole") == 0, (folder / "output").read_text()[-3000:]
    for kill in kills:
        assert train(folder, *flags, "--run_dir=broken", kill=kill) == -signal.SIGKILL
    log = (folder / "log").read_text().splitlines()
    assert len(log) == len(kills)
    assert all(line.startswith(moment) for line, (moment, _) in zip(log, kills, strict=True))
    assert train(folder, *flags, "--run_dir=broken") == 0
    assert_equal_runs(folder / "whole", folder / "broken")
    if random_kills:
        kill_at_random(folder, [*flags, "--run_dir=random"], random_kills)
        assert_equal_runs(folder / "whole", folder / "random")


def kill_at_random(folder, flags, times):
    """Kills a run after random seconds, so often or until it has ended."""
    rng = random.Random(0)
    start = time.monotonic()
    command = [sys.executable, str(KILLER), str(folder / "log"), "never", "0", *flags]
    killed = 0
    while True:
        with (folder / "output").open("a") as output:
            process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
            try:
                status = process.wait(rng.uniform(5, 25) if killed < times else 600)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                killed += 1
                continue
        assert status == 0, (folder / "output").read_text()[-3000:]
        break
    assert killed > 0
    print(f"killed {killed} times at random in {time.monotonic() - start:.0f} s")


def assert_equal_runs(one, other):
    """Compares what two runs have left."""
    assert (one / "history.csv").read_bytes() == (other / "history.csv").read_bytes()
    assert scalars(one) == scalars(other)
    assert len(scalars(one)) > 20
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
    iterations = [v for name, v in values.items() if name.endswith("/iteration")]
    return int(values["step"]), int(iterations[0])


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
