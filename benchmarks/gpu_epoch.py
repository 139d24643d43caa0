"""Times whole epochs of train.py, for gpu.py.

Run as `python gpu_epoch.py PART SETTINGS` like gpu_steps.py. The teacher has random weights, which
train as fast as trained ones.
"""

import csv
import itertools
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# isort: off
import quiet_tensorflow  # noqa: F401

# isort: on
import tensorflow as tf
from contenders import noise, with_statistics
from gpu_turns import report
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import models
from stkd_keras import data

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
ROW = "an epoch of train.py"
EPOCHS = 4


def main(settings: dict[str, Any]) -> None:
    """Runs train.py and reports the images per second of its epochs."""
    # The GPU's memory belongs to train.py.
    tf.config.set_visible_devices([], "GPU")
    with tempfile.TemporaryDirectory() as folder:
        teacher = f"{folder}/teacher.keras"
        dataset = data.load(settings["dataset"], settings["data_dir"])
        model = models.build(settings["teacher"], dataset.image_shape, dataset.num_classes)
        if dataset.image_shape == (32, 32, 3):
            with_statistics(model, noise(settings["batch_size"], dataset.num_classes)[0])
        model.save(teacher)
        run = pathlib.Path(folder, "run")
        began, began_epochs = train(settings, teacher, run)
        events = EventAccumulator(str(run / "tensorboard" / "train")).Reload()
        ended_epochs = [event.wall_time for event in events.Tensors("epoch_loss")]
        epochs = list(csv.DictReader((run / "history.csv").open()))
    assert len(began_epochs) == len(ended_epochs) == len(epochs) == EPOCHS
    images = data.steps_per_epoch(dataset.train, settings["batch_size"]) * settings["batch_size"]
    steps = [end - begin for begin, end in zip(began_epochs, ended_epochs, strict=True)]
    whole = [after - before for before, after in itertools.pairwise(began_epochs)]
    report(
        ROW,
        # What the first epoch takes longer than the others is compilation.
        first_step_seconds=round(began_epochs[0] - began + steps[0] - statistics.median(steps), 2),
        before_first_epoch_seconds=round(began_epochs[0] - began, 2),
        second_epoch_seconds=round(whole[1], 3),
        images_per_second=round(images / steps[1]),
        images_per_second_with_epoch_end=round(images / whole[1]),
        images_per_second_of_epochs=[round(images / seconds) for seconds in steps],
    )


def train(settings: dict[str, Any], teacher: str, run: pathlib.Path) -> tuple[float, list[float]]:
    """Runs train.py and returns when it started and when each epoch began."""
    began = time.time()
    flags = {
        "dataset": settings["dataset"],
        "data_dir": settings["data_dir"],
        "teacher": teacher,
        "student": settings["student"],
        "batch_size": settings["batch_size"],
        "epochs": EPOCHS,
        "learning_rate": 0.01,
        "validation_fraction": 0,
        "run_dir": run,
    }
    process = subprocess.Popen(
        [sys.executable, "-u", REPOSITORY / "train.py"]
        + [f"--{name}={value}" for name, value in flags.items() if value is not None],
        stdout=subprocess.PIPE,
        text=True,
    )
    epochs = []
    assert process.stdout is not None
    for line in process.stdout:
        now = time.time()
        print(f"{now - began:7.2f} s {line}", end="", file=sys.stderr, flush=True)
        if re.match(r"Epoch \d+/", line):
            epochs.append(now)
    if process.wait():
        sys.exit(f"train.py ended with status {process.returncode}")
    return began, epochs


if __name__ == "__main__":
    main(json.loads(sys.argv[2]))
