"""Times a training step of the distiller, of Keras's own distiller, and of a PyTorch loop.

    python benchmarks/step_time.py

prints a Markdown table for each pair of teacher and student, followed by ratios. All contenders
alternate in this process, one step each, on one cached batch of noise. They use the same
architectures, with projection shortcuts, in float32. PyTorch's rows need PyTorch. It takes
about six minutes on two cores.
"""

import os
import pathlib
import random
import statistics
import sys
import tempfile
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

import models
import stkd_keras
import stkd_keras.data
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
TEMPERATURE, SOFT_WEIGHT, LABEL_WEIGHT = 4.0, 0.9, 0.1

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
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH_SIZE.value, 32, 32, 3), np.uint8)
    labels = rng.integers(0, NUM_CLASSES.value, BATCH_SIZE.value)
    batches = tf.data.Dataset.from_tensors((images.astype("float32"), labels)).repeat()
    frozen = stkd_keras.FrozenTeacher(with_statistics(build(teacher_name), images))
    compiled = tf.function(frozen)
    pixels = tf.constant(images, tf.float32)
    steps = {
        "student alone": keras_step(student_alone(student_name), batches),
        "folded teacher": lambda: compiled(pixels).numpy(),
        "ours": ours(student_name, frozen, batches),
        "ours without mixing": ours(student_name, frozen, batches, mixing=None),
        "ours, four images": ours(
            student_name, frozen, batches, mixing=stkd_keras.Mixup(num_images=4)
        ),
        "replay": replay(student_name, frozen, images, labels),
        "Keras's distiller": keras_distiller(teacher_name, student_name, batches, as_keras_does),
        "Keras's distiller, fused": keras_distiller(teacher_name, student_name, batches, build),
    }
    if TORCH.value:
        try:
            import torch_steps
        except ImportError:
            print("PyTorch isn't installed; skipping its rows")
        else:
            steps |= torch_steps.steps(teacher_name, student_name, images, labels)
    return steps


def build(name: str) -> keras.Model:
    """Returns a model of the zoo with RepDistiller's shortcuts and fused batch normalization."""
    options = {"shortcut": "projection"} if name.startswith("resnet") else {}
    return models.build(name, (32, 32, 3), NUM_CLASSES.value, **options)


def with_statistics(model: keras.Model, images: np.ndarray) -> keras.Model:
    """Sets batch statistics, because with the initial ones the logits explode."""
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0
    model(images.astype("float32"), training=True)
    for norm in norms:
        norm.momentum = 0.9
    return model


def as_keras_does(name: str) -> keras.Model:
    """Returns the model with Keras's own batch normalization."""
    return keras.Model.from_config(build(name).get_config())


def optimizer() -> keras.optimizers.Optimizer:
    """Returns SGD as PyTorch defines it."""
    return stkd_keras.SGD(0.01, momentum=0.9, nesterov=True, l2=5e-4)


def student_alone(name: str) -> keras.Model:
    """Returns the student, compiled for Keras's training loop."""
    model = build(name)
    model.compile(optimizer(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def ours(student_name: str, teacher, batches: tf.data.Dataset, **settings) -> Callable:
    """Returns a step of the distiller."""
    distiller = stkd_keras.SimilarityTransferDistiller(build(student_name), teacher, **settings)
    distiller.compile(optimizer())
    return keras_step(distiller, batches)


def replay(student_name: str, teacher, images, labels) -> Callable:
    """Returns a step of the distiller with a recorded teacher, on batches of the pipeline."""
    split = stkd_keras.data.Split(images, labels)
    classes = tuple(map(str, range(NUM_CLASSES.value)))
    dataset = stkd_keras.data.Dataset(
        "noise", "1", classes, (0.5,) * 3, (0.5,) * 3, True, split, split
    )
    batches = stkd_keras.data.pipeline(dataset, "train", BATCH_SIZE.value, 0, "none")
    mixing = stkd_keras.Mixup()
    steps = NOT_COUNTED + ROUNDS.value
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "teacher.replay")
        recorded = stkd_keras.record_teacher(
            file, teacher, batches, mixing, 0, steps, verbose=False
        )
        return ours(student_name, recorded, recorded.attach(batches), mixing=mixing)


def keras_distiller(
    teacher_name: str, student_name: str, batches: tf.data.Dataset, make
) -> Callable:
    """Returns a step of Keras's distiller, with `keras.layers.MixUp` in the pipeline."""
    mixup = keras.layers.MixUp(alpha=1.0)

    def mixed(images, labels):
        one_hot = tf.one_hot(labels, NUM_CLASSES.value)
        both = mixup({"images": images, "labels": one_hot}, training=True)
        return both["images"], both["labels"]

    distiller = keras.distillation.Distiller(
        teacher=make(teacher_name),
        student=make(student_name),
        distillation_losses=keras.distillation.LogitsDistillation(
            temperature=TEMPERATURE, loss=keras.losses.KLDivergence()
        ),
        student_loss_weight=LABEL_WEIGHT,
    )
    distiller.compile(optimizer(), loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    return keras_step(distiller, batches.map(mixed).prefetch(tf.data.AUTOTUNE))


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
