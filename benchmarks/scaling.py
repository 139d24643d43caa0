"""Measures how a distillation step's time and memory grow with the settings.

    python benchmarks/scaling.py

prints a Markdown table of median step times and peak resident memory (MB, in addition to the
imports) for batch sizes, numbers of classes, images per mixture, teachers, replicas on one
machine, and workers; then for the parts of a step, with --deterministic, and over 500 steps. Each
row is a separate process. It takes about ten minutes on two cores.
"""

import json
import os
import pathlib
import resource
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# isort: off
import quiet_tensorflow  # noqa: F401

# isort: on
import keras
import numpy as np
import tensorflow as tf
from absl import flags

import models
import stkd_keras
from stkd_keras.cli import app
from stkd_keras.distribution.strategy import make_strategy
from stkd_keras.errors import InputError

TEACHER = flags.DEFINE_string("teacher", "resnet56", "teacher from the zoo")
STUDENT = flags.DEFINE_string("student", "resnet20", "student from the zoo")
STEPS = flags.DEFINE_integer("steps", 12, "steps to time", lower_bound=1)
ROWS = flags.DEFINE_list("rows", None, "prefixes of the rows to measure (default: all)")
ONE_ROW = flags.DEFINE_string("one_row", None, "internal: settings of a row as JSON")
NOT_COUNTED = 3
USUAL: dict[str, Any] = {
    "batch_size": 128, "num_classes": 100, "num_images": 2, "teachers": 1, "replicas": 1,
    "workers": 1, "part": "step", "deterministic": False,
}  # fmt: skip


def main() -> None:
    """Runs the benchmark, or one of its rows."""
    if ONE_ROW.value is not None:
        print(json.dumps(measure({**USUAL, **json.loads(ONE_ROW.value)})))
        return
    print("| setting | step | peak memory |\n|---|---|---|")
    for name, settings in rows():
        if ROWS.value is None or any(name.startswith(row) for row in ROWS.value):
            seconds, peak = in_processes(settings)
            print(f"| {name} | {1e3 * seconds:.0f} ms | {peak:.0f} MB |", flush=True)


def rows() -> list[tuple[str, dict[str, Any]]]:
    """Returns the name and the settings of each row."""
    made: list[tuple[str, dict[str, Any]]] = []
    for label, key, values in (
        ("batch of", "batch_size", (32, 64, 128, 256, 512)),
        ("classes:", "num_classes", (10, 100, 200, 1000)),
        ("images per mixture:", "num_images", (1, 2, 3, 4, 8)),
        ("teachers:", "teachers", (1, 2, 3)),
        ("replicas on one machine:", "replicas", (1, 2, 4)),
        ("workers:", "workers", (1, 2)),
    ):
        made += [(f"{label} {value}", {key: value}) for value in values]
    made += [(f"part: {part}", {"part": part}) for part in ("student alone", "teacher alone")]
    made += [(f"deterministic: {yes}", {"deterministic": yes}) for yes in (False, True)]
    made += [(f"steps: {steps}", {"steps": steps}) for steps in (50, 500)]
    return made


def in_processes(settings: dict[str, Any]) -> tuple[float, float]:
    """Returns the median seconds and the peak MB of a row, measured by its first worker."""
    workers = settings.get("workers", 1)
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(workers)]
    processes = []
    for index in range(workers):
        environment = dict(os.environ)
        if workers > 1:
            task = {"type": "worker", "index": index}
            environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
        arguments = [f"--one_row={json.dumps(settings)}", f"--steps={STEPS.value}"]
        arguments += [f"--teacher={TEACHER.value}", f"--student={STUDENT.value}"]
        processes.append(
            subprocess.Popen(
                [sys.executable, __file__, *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise InputError(f"the row {settings} failed; see its output above")
    seconds, peak = json.loads(printed[0].splitlines()[-1])
    return seconds, peak


def measure(row: dict[str, Any]) -> tuple[float, float]:
    """Trains for some steps, and returns the median seconds of a step and the peak MB."""
    before = peak_megabytes()
    if row["deterministic"]:
        keras.utils.set_random_seed(0)
        tf.config.experimental.enable_op_determinism()
    distribute = "multi_worker" if row["workers"] > 1 else "mirrored"
    strategy = None
    if row["workers"] > 1 or row["replicas"] > 1:
        strategy = make_strategy(distribute, row["replicas"] if row["replicas"] > 1 else 0)
    with (strategy or tf.distribute.get_strategy()).scope():
        step = make_step(row)
    seconds = []
    for number in range(NOT_COUNTED + row.get("steps", STEPS.value)):
        start = time.perf_counter()
        step()
        if number >= NOT_COUNTED:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), peak_megabytes() - before


def make_step(row: dict[str, Any]):
    """Returns a function that runs one step of a row."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (row["batch_size"], 32, 32, 3)).astype("float32")
    labels = rng.integers(0, row["num_classes"], row["batch_size"])
    shape, classes = (32, 32, 3), row["num_classes"]
    teachers = [models.build(TEACHER.value, shape, classes) for _ in range(row["teachers"])]
    if row["part"] == "teacher alone":
        call, pixels = tf.function(stkd_keras.FrozenTeacher(teachers)), tf.constant(images)
        return lambda: call(pixels).numpy()
    student = models.build(STUDENT.value, shape, classes)
    optimizer = stkd_keras.SGD(0.01, momentum=0.9, l2=5e-4)
    model: keras.Model = student
    if row["part"] == "student alone":
        student.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    else:
        mixing = stkd_keras.Mixup(num_images=row["num_images"]) if row["num_images"] > 1 else None
        model = stkd_keras.SimilarityTransferDistiller(student, teachers, mixing=mixing)
        model.compile(optimizer)
    batches = tf.data.Dataset.from_tensors((images, labels)).repeat()
    if row["replicas"] > 1 or row["workers"] > 1:
        model.fit(batches, steps_per_epoch=1, verbose=0)
        batches = model.distribute_strategy.experimental_distribute_dataset(batches)
    iterator = iter(batches)
    model.make_train_function()
    return lambda: keras.tree.map_structure(np.asarray, model.train_function(iterator))


def peak_megabytes() -> float:
    """Returns the peak of this process's resident memory in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def free_port() -> int:
    """Returns a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    app.run(main, __doc__)
