"""Estimates the duration of a training from a few steps."""

import json
import time
from collections.abc import Sequence

import keras
import numpy as np

from stkd_keras.data import AnySplit, Dataset, pipeline, steps_per_epoch
from stkd_keras.distillation.distiller import SimilarityTransferDistiller
from stkd_keras.evaluation.cost import median_seconds
from stkd_keras.evaluation.scores import compiled
from stkd_keras.optimizers import SGD
from stkd_keras.teacher.frozen import FrozenTeacher
from stkd_keras.training.run import training_batches

# The first steps trace the graph and fill the input pipeline.
_WARM_UP_STEPS = 3
_TIMED_STEPS = 10


def time_training(
    distiller: SimilarityTransferDistiller,
    teacher: FrozenTeacher | None,
    dataset: Dataset,
    train_split: AnySplit,
    *,
    epochs: int,
    batch_size: int,
    augment: str,
    evaluated: int,
    started: float,
) -> dict[str, float]:
    """Times a few training steps. They change the student, but write no files.

    Args:
        distiller: the distiller, with a teacher that isn't a recording.
        teacher: the teacher to evaluate on the test split, or None.
        dataset: the data set.
        train_split: the training images.
        epochs: as in `stkd_keras.experiment.train`.
        batch_size: as in `stkd_keras.experiment.train`.
        augment: as in `stkd_keras.experiment.train`.
        evaluated: number of images to evaluate the student on, during and after training.
        started: `time.monotonic()` at the start of the process.

    Returns:
        "steps", the number of steps, and durations in seconds: "step_seconds" per step, of which
        "teacher_seconds" for the teacher's forward pass, "start_seconds" before the first step
        (imports, images, compilation), and "evaluation_seconds" of all evaluations. A student's
        forward pass is estimated as a third of its training step.
    """
    step = _time_steps(distiller, dataset, train_split, batch_size, augment)
    start = time.monotonic() - started - (_WARM_UP_STEPS + _TIMED_STEPS) * step
    forward = 0.0
    if teacher is not None:
        forward = _time_teacher(distiller, teacher, dataset, train_split, batch_size, augment)
    in_step = forward if distiller.teacher is not None else 0.0
    of_student = max(0.0, step - in_step) / 3
    return {
        "steps": epochs * steps_per_epoch(train_split, batch_size) + distiller.pretraining_steps,
        "step_seconds": step,
        "teacher_seconds": in_step,
        "start_seconds": max(0.0, start),
        "evaluation_seconds": (evaluated * of_student + len(dataset.test) * forward) / batch_size,
    }


def say(timing: dict[str, float]) -> None:
    """Prints the result of `time_training` as a summary and a JSON line."""
    step = timing["step_seconds"]
    share = f", {100 * timing['teacher_seconds'] / step:.0f} % of it for the teacher"
    print(
        f"{timing['steps']:,} steps of {1e3 * step:.0f} ms"
        f"{share if timing['teacher_seconds'] else ''}: about {in_words(training_seconds(timing))}"
    )
    print(json.dumps({name: round(value, 6) for name, value in timing.items()}))


def say_untrained(teachers: Sequence[str], epochs: int) -> None:
    """Prints that teachers must be trained before a duration can be estimated."""
    print(f"{', '.join(teachers)} must be trained first, for {epochs} epochs: rerun after that")
    print(json.dumps({"teacher_untrained": True, "teacher_epochs": epochs}))


def training_seconds(timing: dict[str, float]) -> float:
    """Returns the total duration, including startup and evaluations."""
    steps = timing["steps"] * timing["step_seconds"]
    return timing["start_seconds"] + steps + timing["evaluation_seconds"]


def in_words(seconds: float) -> str:
    """Returns a readable duration: 45 s, 34 min, 5.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _time_steps(distiller, dataset, train_split, batch_size: int, augment: str) -> float:
    times: list[float] = []
    clock = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: times.append(time.perf_counter())
    )
    with distiller.distribute_strategy.scope():
        # The optimizer's choice makes no measurable difference.
        distiller.compile(SGD(0.01, momentum=0.9, l2=5e-4), metrics=["accuracy"])
    distiller.fit(
        training_batches(distiller, dataset, train_split, batch_size, augment),
        steps_per_epoch=_WARM_UP_STEPS + _TIMED_STEPS, shuffle=False, verbose=0, callbacks=[clock],
    )  # fmt: skip
    return float(np.median(np.diff(times[_WARM_UP_STEPS - 1 :])))


def _time_teacher(distiller, teacher, dataset, train_split, batch_size: int, augment: str) -> float:
    batches = pipeline(dataset, train_split, batch_size, distiller.data_seed, augment)
    images = next(iter(batches))[0]
    # Each replica calls the teacher on its part of the batch, at the same time.
    images = images[: -(-len(images) // distiller.distribute_strategy.num_replicas_in_sync)]
    forward = compiled(teacher, dataset.image_shape)
    return median_seconds(lambda: forward(images).numpy(), seconds=5)[0]
