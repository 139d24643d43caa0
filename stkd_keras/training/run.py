"""Trains a distiller and writes its run's files."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from stkd_keras.data import AnySplit, Dataset, evaluation_pipeline, pipeline, steps_per_epoch
from stkd_keras.data.description import describe
from stkd_keras.distillation.distiller import SimilarityTransferDistiller
from stkd_keras.distribution.workers import (
    check_alike,
    distributed,
    distributed_by_example,
    is_chief,
)
from stkd_keras.errors import InputError
from stkd_keras.evaluation.scores import EVALUATION_BATCH
from stkd_keras.files.write_errors import unwritable_named
from stkd_keras.optimizers import SGD, AdamW, AfterPretraining
from stkd_keras.recipes import check_optimizer, check_recipe
from stkd_keras.teacher.recorded import RecordedTeacher
from stkd_keras.training import execution
from stkd_keras.training.checkpoints import newest_step
from stkd_keras.training.loop import Training, fit_resumably
from stkd_keras.training.run_directory import RunDirectory
from stkd_keras.training.sample_panel import NUM_SAMPLES, SamplePanel
from stkd_keras.training.tensorboard import ReturnFreedMemory, RunTensorBoard, write_description

WARMUP_SHARE = 0.05
BACKUP_STEPS = 500


def make_optimizer(
    learning_rate: float,
    weight_decay: float,
    total_steps: int,
    optimizer: str = "sgd",
    pretraining_steps: int = 0,
    highest_pretraining_learning_rate: float | None = None,
) -> keras.optimizers.Optimizer:
    """Returns an optimizer with linear warm-up and cosine decay to 0.

    Args:
        learning_rate: the peak learning rate, reached after 5 % of the steps.
        weight_decay: weight decay of the kernels: L2 added to the gradient with "sgd", decoupled
            with "adamw".
        total_steps: training steps, without pretraining.
        optimizer: "sgd" (with Nesterov momentum 0.9) or "adamw".
        pretraining_steps: pretraining steps, at a constant learning rate.
        highest_pretraining_learning_rate: upper bound on the learning rate during pretraining, or
            None.

    Raises:
        InputError: if the optimizer is unknown, or a number is out of range.
    """
    check_optimizer(optimizer)
    check_recipe(learning_rate, weight_decay)
    warmup = max(1, round(WARMUP_SHARE * total_steps))
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, total_steps - warmup), warmup_target=learning_rate, warmup_steps=warmup
    )
    if pretraining_steps:
        before = min(learning_rate, highest_pretraining_learning_rate or learning_rate)
        schedule = AfterPretraining(schedule, pretraining_steps, before)
    if optimizer == "adamw":
        return AdamW(schedule, weight_decay=weight_decay)
    return SGD(schedule, momentum=0.9, nesterov=True, l2=weight_decay)


def train(
    distiller: SimilarityTransferDistiller,
    dataset: Dataset,
    train_split: AnySplit,
    validation_split: AnySplit | None,
    run: RunDirectory,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    optimizer: str = "sgd",
    augment: str = "standard",
    steps_per_execution: int | None = 1,
    backup_steps: int = BACKUP_STEPS,
    validation_freq: int = 1,
    histogram_freq: int = 0,
    profile_steps: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Trains a distiller's student, resuming from the run's last backup, and saves it.

    All workers must call it; the chief writes the files.

    Args:
        distiller: the distiller, created in the scope of its distribution strategy.
        dataset: the data set of the splits.
        train_split: the training images; unlabeled ones have the label -1.
        validation_split: the validation images, or None.
        run: the run directory, created by `start`.
        epochs: training epochs, without pretraining.
        batch_size: images per step, over all replicas.
        learning_rate: the peak learning rate.
        weight_decay: as in `make_optimizer`.
        optimizer: as in `make_optimizer`.
        augment: as in `stkd_keras.data.pipeline`.
        steps_per_execution: as in `keras.Model.compile`; None to measure the step, and choose a
            number that takes about a second.
        backup_steps: steps between backups within an epoch; each epoch also ends with one.
        validation_freq: epochs between validations and between images of virtual samples.
        histogram_freq: epochs between weight histograms; 0 for none.
        profile_steps: number of steps to profile, starting at the third.
        callbacks: additional callbacks. The state of Keras's EarlyStopping, ModelCheckpoint and
            ReduceLROnPlateau is backed up.

    Raises:
        InputError: if a number is out of range, the loss or a weight isn't finite, or a file can't
            be written.
        Interrupted: after SIGTERM or SIGINT, once the current step is backed up.
    """
    _check_at_least(1, backup_steps=backup_steps, validation_freq=validation_freq)
    _check_at_least(0, histogram_freq=histogram_freq, profile_steps=profile_steps)
    strategy = distiller.distribute_strategy
    steps = steps_per_epoch(train_split, batch_size)
    check_alike(f"the run directory {run.path}", newest_step(run.backup), strategy)
    options = execution.compile_options(
        strategy, steps_per_execution, backup_steps, epochs, steps,
        batch_bytes=4 * batch_size * math.prod(dataset.image_shape),
    )  # fmt: skip
    with strategy.scope():
        new_optimizer = make_optimizer(
            learning_rate, weight_decay, epochs * steps, optimizer, distiller.pretraining_steps,
            distiller.highest_pretraining_learning_rate,
        )  # fmt: skip
        distiller.compile(new_optimizer, metrics=_metrics(dataset), **options)
    if distiller.jit_compile:
        print("compiling the training step with XLA; this can take a minute")
    training = Training(
        distiller,
        functools.partial(training_batches, distiller, dataset, train_split, batch_size, augment),
        _validation_batches(validation_split, strategy),
        epochs + -(-distiller.pretraining_steps // steps),
        steps,
        validation_freq,
        backup_steps,
        chooses_steps_per_execution=steps_per_execution is None,
    )
    samples = None
    if batch_size >= NUM_SAMPLES:
        samples = pipeline(dataset, train_split, batch_size, distiller.data_seed, augment)
    loggers = functools.partial(
        _loggers, run, samples, dataset.class_names, histogram_freq, profile_steps, validation_freq
    )
    with unwritable_named(run.path):
        if is_chief(strategy):
            write_description(run.tensorboard, describe(dataset, train_split, validation_split))
            run.save_initial_model(distiller.student)
        fit_resumably(training, run, loggers if is_chief(strategy) else lambda _: [], callbacks)
    if is_chief(strategy):
        run.save_model(distiller.student)


def _loggers(
    run: RunDirectory,
    samples: tf.data.Dataset | None,
    class_names: tuple[str, ...],
    histogram_freq: int,
    profile_steps: int,
    validation_freq: int,
    resumes: bool,
) -> list[keras.callbacks.Callback]:
    made = [
        RunTensorBoard(run.tensorboard, histogram_freq, profile_steps),
        keras.callbacks.CSVLogger(str(run.history), append=resumes),
    ]
    if samples is not None:
        made.append(SamplePanel(run.tensorboard, samples, class_names, validation_freq))
    return [*made, ReturnFreedMemory(validation_freq)]


def _validation_batches(split: AnySplit | None, strategy):
    if split is None:
        return None
    replicas = strategy.num_replicas_in_sync
    batch_size = max(min(EVALUATION_BATCH, len(split)) // replicas * replicas, replicas)
    return distributed_by_example(evaluation_pipeline(split, batch_size), strategy)


def training_batches(
    distiller: SimilarityTransferDistiller,
    dataset: Dataset,
    train_split: AnySplit,
    batch_size: int,
    augment: str,
    first_step: int = 0,
) -> Any:
    """Returns this worker's training batches, starting at `first_step`."""
    share_of = functools.partial(
        pipeline, dataset, train_split, batch_size, distiller.data_seed, augment,
        start_step=first_step, with_index=any(t.needs_index for t in distiller.terms),
    )  # fmt: skip
    if isinstance(distiller.teacher, RecordedTeacher):
        return distiller.teacher.attach(share_of())

    def prepared(**share):
        return distiller.prepare(share_of(**share))[0]

    return distributed(prepared, distiller.distribute_strategy)


def _check_at_least(lowest: int, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < lowest:
            raise InputError(f"{name} is {number}, but must be {lowest} or more")


def _metrics(dataset: Dataset) -> list:
    top5 = keras.metrics.TopKCategoricalAccuracy(k=5, name="top5_accuracy")
    return ["accuracy", top5] if dataset.num_classes > 10 else ["accuracy"]
