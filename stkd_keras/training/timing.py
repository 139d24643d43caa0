"""How long a training will take, found by making a few of its steps."""

import functools
import itertools
import json
import statistics
import time
from collections.abc import Callable

import keras

from stkd_keras.data import AnySplit, Dataset, pipeline, steps_per_epoch
from stkd_keras.distillation.distiller import SimilarityTransferDistiller
from stkd_keras.distribution.workers import distributed
from stkd_keras.evaluation.scores import compiled
from stkd_keras.optimizers import SGD
from stkd_keras.teacher.frozen import FrozenTeacher

# Tracing, and the pipeline's first batches.
_NOT_COUNTED = 3
_COUNTED = 10


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
    """Makes a few steps of a training, which change the distiller's student, and leaves no file.

    Args:
        distiller: as it would be trained, with the teacher itself and no recording.
        teacher: what is scored on the test split, or None.
        dataset: what the split is of.
        train_split: the images to train on.
        epochs: as of `stkd_keras.experiment.train`.
        batch_size: likewise.
        augment: likewise.
        evaluated: how many images the student is scored on, during the training and behind it.
        started: when the process began, by `time.monotonic()`.

    Returns:
        `steps`, and the seconds of a step, of the teacher's part in it, of what comes before the
        first (imports, images, compiling), and of all evaluations (of which the student's are
        guessed: a third of a step for a batch).
    """
    step = _time_steps(distiller, dataset, train_split, batch_size, augment)
    start = time.monotonic() - started - (_NOT_COUNTED + _COUNTED) * step
    answers = 0.0
    if teacher is not None:
        answers = _time_teacher(distiller, teacher, dataset, train_split, batch_size, augment)
    in_step = answers if distiller.teacher is not None else 0.0
    of_student = max(0.0, step - in_step) / 3
    return {
        "steps": epochs * steps_per_epoch(train_split, batch_size) + distiller.pretraining_steps,
        "step_seconds": step,
        "teacher_seconds": in_step,
        "start_seconds": max(0.0, start),
        "evaluation_seconds": (evaluated * of_student + len(dataset.test) * answers) / batch_size,
    }


def say(timing: dict[str, float]) -> None:
    """Prints a line for who reads it, and a line of JSON for what does.

    Args:
        timing: of `time_training`.
    """
    seconds, step = training_seconds(timing), timing["step_seconds"]
    share = f", of which the teacher {timing['teacher_seconds'] / step:.0%}".replace("%", " %")
    print(
        f"{timing['steps']:,} steps of {1e3 * step:.0f} ms: about {in_words(seconds)}"
        + (share if timing["teacher_seconds"] else "")
    )
    print(json.dumps({name: round(value, 6) for name, value in timing.items()}))


def training_seconds(timing: dict[str, float]) -> float:
    """Returns what the whole training takes, with all that comes before and behind it."""
    steps = timing["steps"] * timing["step_seconds"]
    return timing["start_seconds"] + steps + timing["evaluation_seconds"]


def in_words(seconds: float) -> str:
    """Returns a duration for people: 45 s, 34 min, 5.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class _Clock(keras.callbacks.Callback):
    """Notes when each step is done."""

    def __init__(self):
        super().__init__()
        self.times = []

    def on_train_batch_end(self, batch, logs=None):
        self.times.append(time.perf_counter())


def _time_steps(distiller, dataset, train_split, batch_size: int, augment: str) -> float:
    share_of = functools.partial(
        pipeline, dataset, train_split, batch_size, distiller.data_seed, augment,
        with_index=any(term.needs_index for term in distiller.terms),
    )  # fmt: skip
    clock = _Clock()
    with distiller.distribute_strategy.scope():
        # Which optimizer it is makes no difference to be seen.
        distiller.compile(SGD(0.01, momentum=0.9, l2=5e-4), metrics=["accuracy"])
    distiller.fit(
        distributed(share_of, distiller.distribute_strategy),
        steps_per_epoch=_NOT_COUNTED + _COUNTED, shuffle=False, verbose=0, callbacks=[clock],
    )  # fmt: skip
    return _median_between(clock.times[_NOT_COUNTED - 1 :])


def _time_teacher(distiller, teacher, dataset, train_split, batch_size: int, augment: str) -> float:
    batches = pipeline(dataset, train_split, batch_size, distiller.data_seed, augment)
    images = next(iter(batches))[0]
    # Each replica asks about its own part of the batch, at the same time.
    images = images[: -(-len(images) // distiller.distribute_strategy.num_replicas_in_sync)]
    ask: Callable = compiled(teacher, dataset.image_shape)
    times = []
    for _ in range(_NOT_COUNTED + _COUNTED):
        ask(images).numpy()
        times.append(time.perf_counter())
    return _median_between(times[_NOT_COUNTED - 1 :])


def _median_between(times: list[float]) -> float:
    return statistics.median(b - a for a, b in itertools.pairwise(times))
