"""Compares the step time and memory of each published method with knowledge distillation.

    python benchmarks/method_overhead.py

prints a Markdown table. Times are medians of steps that alternate with those of kd in one process.
Peaks of resident memory (MB, in addition to the imports) come from one process per method. Batches
have 64 images of 32x32 pixels and 100 classes, and CRD remembers 50,000 training images. It takes
about fifteen minutes on two cores.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# isort: off
import quiet_tensorflow  # noqa: F401

# isort: on
import keras
import numpy as np
import tensorflow as tf
from absl import flags
from scaling import NOT_COUNTED, STEPS, STUDENT, TEACHER, peak_megabytes

import models
import stkd_keras
from stkd_keras import methods
from stkd_keras.cli import app
from stkd_keras.errors import InputError

METHODS = flags.DEFINE_list("methods", list(methods.METHODS), "the methods to measure")
ALONE = flags.DEFINE_string("alone", None, "internal: the method whose memory a process measures")
BY_TURNS = flags.DEFINE_string(
    "by_turns", None, "internal: the method that a process times against kd"
)
BATCH_SIZE, NUM_CLASSES, NUM_IMAGES = 64, 100, 50_000


def main() -> None:
    """Runs the benchmark, or one of its processes."""
    if ALONE.value is not None:
        print(json.dumps(peak_of(ALONE.value)))
    elif BY_TURNS.value is not None:
        print(json.dumps(seconds_by_turns(BY_TURNS.value)))
    else:
        print_table()


def print_table() -> None:
    """Measures all methods and prints the table."""
    peak_of_kd = in_a_process("--alone=kd")
    print(
        "| method | step | relative to kd | peak memory | relative to kd |\n|---|---|---|---|---|"
    )
    for name in METHODS.value:
        own, kd = in_a_process(f"--by_turns={name}")
        peak = in_a_process(f"--alone={name}")
        print(
            f"| {name} | {1e3 * own:.0f} ms | {own / kd:.2f} | {peak:.0f} MB "
            f"| {peak / peak_of_kd:.2f} |",
            flush=True,
        )


def in_a_process(argument: str):
    """Runs one measurement in a process of its own and returns the result."""
    arguments = [argument, f"--steps={STEPS.value}"]
    arguments += [f"--teacher={TEACHER.value}", f"--student={STUDENT.value}"]
    process = subprocess.run(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    if process.returncode:
        raise InputError(f"{argument} failed; see its output above")
    return json.loads(process.stdout.splitlines()[-1])


def seconds_by_turns(name: str) -> list[float]:
    """Returns the median step times of the method and of kd in seconds."""
    steps = [make_step(name), make_step("kd")]
    seconds: list[list[float]] = [[], []]
    for number in range(NOT_COUNTED + STEPS.value):
        for step, taken in zip(steps, seconds, strict=True):
            start = time.perf_counter()
            step()
            if number >= NOT_COUNTED:
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]


def peak_of(name: str) -> float:
    """Returns the peak memory of the method's steps in MB."""
    before = peak_megabytes()
    step = make_step(name)
    for _ in range(NOT_COUNTED + STEPS.value):
        step()
    return peak_megabytes() - before


def make_step(name: str):
    """Returns a function that runs a step of a method without mixing, with its own loss weights."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (BATCH_SIZE, 32, 32, 3)).astype("float32")
    labels = rng.integers(0, NUM_CLASSES, BATCH_SIZE)
    weights, terms = {"soft_weight": 0.9, "label_weight": 0.1}, []
    if name != "kd":
        method = methods.METHODS[name]
        weights = {"soft_weight": method.soft_weight, "label_weight": method.label_weight}
        sizes = {"num_images": NUM_IMAGES} if method.term.needs_index else {}
        terms = [method.term(**method.options, **sizes)]
    distiller = stkd_keras.SimilarityTransferDistiller(
        models.build(STUDENT.value, (32, 32, 3), NUM_CLASSES),
        models.build(TEACHER.value, (32, 32, 3), NUM_CLASSES),
        mixing=None,
        terms=terms,
        **weights,
    )
    distiller.compile(stkd_keras.SGD(1e-5, momentum=0.9, l2=5e-4))
    targets = {"labels": labels, "index": np.arange(BATCH_SIZE)}
    iterator = iter(tf.data.Dataset.from_tensors((images, targets)).repeat())
    distiller.make_train_function()
    return lambda: keras.tree.map_structure(np.asarray, distiller.train_function(iterator))


if __name__ == "__main__":
    app.run(main, __doc__)
