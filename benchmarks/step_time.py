"""Times a training step of the distiller, of Keras's own distiller, and of a PyTorch loop.

    python benchmarks/step_time.py

prints a Markdown table for each pair of teacher and student, followed by ratios. All contenders
alternate in this process, one step each, on one cached batch of noise. They use the same
architectures, with projection shortcuts, in float32. PyTorch's rows need PyTorch. It takes
about six minutes on two cores.
"""

import pathlib
import random
import statistics
import sys
import time
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# isort: off
import quiet_tensorflow  # noqa: F401

# isort: on
import keras
import numpy as np
import tensorflow as tf
from absl import flags
from contenders import (
    as_keras_does,
    build,
    distiller,
    keras_distiller,
    noise,
    record,
    repeated,
    student_alone,
    with_statistics,
)

import stkd_keras
from stkd_keras.cli import app

PAIRS = flags.DEFINE_list(
    "pairs", ["resnet110:resnet20", "resnet56:resnet8", "wrn_40_2:wrn_16_1"], "TEACHER:STUDENT"
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "batch size", lower_bound=2)
NUM_CLASSES = flags.DEFINE_integer("num_classes", 100, "number of classes", lower_bound=2)
ROUNDS = flags.DEFINE_integer("rounds", 15, "timed steps of each contender", lower_bound=1)
TORCH = flags.DEFINE_bool("torch", True, "whether to include PyTorch, if it is installed")
NOT_COUNTED = 4
PAUSE = 0.25  # seconds

RATIOS = (
    ("ours", "Keras's distiller"),
    ("ours", "Keras's distiller, fused"),
    ("ours", "PyTorch"),
    ("ours", "PyTorch, folded teacher"),
    ("ours", "student alone + folded teacher"),
    ("ours", "ours without mixing"),
    ("ours, four images", "ours without mixing"),
    ("replay", "student alone"),
    ("replay", "Keras's distiller"),
    ("student alone", "PyTorch, student alone"),
)


def main() -> None:
    """Runs the benchmark."""
    for pair in PAIRS.value:
        teacher, student = pair.split(":")
        steps = contenders(teacher, student)
        times = alternate(steps)
        medians = {name: statistics.median(seconds) for name, seconds in times.items()}
        print(f"\n{teacher} to {student}, batch {BATCH_SIZE.value}\n")
        print("| step | median | middle half |\n|---|---|---|")
        for name, seconds in times.items():
            low, _, high = statistics.quantiles(seconds, n=4)
            print(
                f"| {name} | {1e3 * medians[name]:.0f} ms | {1e3 * low:.0f} to {1e3 * high:.0f} |"
            )
        parts = ("student alone", "folded teacher")
        medians[" + ".join(parts)] = sum(medians[part] for part in parts)
        print("\n| ratio | |\n|---|---|")
        for one, other in RATIOS:
            if one in medians and other in medians:
                print(f"| {one} / {other} | {medians[one] / medians[other]:.3f} |", flush=True)


def contenders(teacher_name: str, student_name: str) -> dict[str, Callable[[], object]]:
    """Returns the steps by name."""
    classes = NUM_CLASSES.value
    images, labels = noise(BATCH_SIZE.value, classes)
    batches = repeated(images, labels, classes)
    frozen = stkd_keras.FrozenTeacher(with_statistics(build(teacher_name, classes), images))
    compiled = tf.function(frozen)
    pixels = tf.constant(images, tf.float32)
    steps = NOT_COUNTED + ROUNDS.value
    recorded, recorded_batches = record(frozen, images, labels, classes, steps)

    def ours(batches, teacher, **settings):
        return keras_step(distiller(build(student_name, classes), teacher, **settings), batches)

    def of_keras(make):
        teacher, student = (make(name, classes) for name in (teacher_name, student_name))
        return keras_step(*keras_distiller(teacher, student, batches))

    found = {
        "student alone": keras_step(student_alone(student_name, classes), batches),
        "folded teacher": lambda: compiled(pixels).numpy(),
        "ours": ours(batches, frozen),
        "ours without mixing": ours(batches, frozen, mixing=None),
        "ours, four images": ours(batches, frozen, mixing=stkd_keras.Mixup(num_images=4)),
        "replay": ours(recorded_batches, recorded, mixing=stkd_keras.Mixup()),
        "Keras's distiller": of_keras(as_keras_does),
        "Keras's distiller, fused": of_keras(build),
    }
    if TORCH.value:
        try:
            import torch_steps
        except ImportError:
            print("PyTorch isn't installed; skipping its rows")
        else:
            found |= torch_steps.steps(teacher_name, student_name, images, labels)
    return found


def keras_step(model: keras.Model, batches: tf.data.Dataset) -> Callable[[], object]:
    """Returns a training step of a compiled model."""
    iterator = iter(batches)
    model.make_train_function()
    return lambda: keras.tree.map_structure(np.asarray, model.train_function(iterator))


def alternate(steps: dict[str, Callable]) -> dict[str, list[float]]:
    """Times the steps in rounds of random order, and returns seconds without the first rounds."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(NOT_COUNTED + ROUNDS.value):
        # PyTorch's threads keep spinning for a while, which would slow down the next step.
        for name, step in random.sample(list(steps.items()), len(steps)):
            time.sleep(PAUSE)
            start = time.perf_counter()
            step()
            if number >= NOT_COUNTED:
                times[name].append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    app.run(main, __doc__)
