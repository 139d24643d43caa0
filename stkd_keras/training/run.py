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
from stkd_keras.recipes import check_freeze, check_optimizer, check_recipe
from stkd_keras.teacher.recorded import RecordedTeacher
from stkd_keras.training import execution, finetuning
from stkd_keras.training.checkpoints import newest_step
from stkd_keras.training.loop import Training, fit_resumably
from stkd_keras.training.run_directory import RunDirectory
from stkd_keras.training.sample_panel import NUM_SAMPLES, SamplePanel
from stkd_keras.training.tensorboard import RunTensorBoard, write_description

WARMUP_SHARE = 0.05
BACKUP_STEPS = 500


def make_optimizer(
    learning_rate: float,
    weight_decay: float,
    total_steps: int,
    optimizer: str = "sgd",
    pretraining_steps: int = 0,
    highest_pretraining_learning_rate: float | None = None,
    *,
    backbone_variables: int = 0,
    backbone_learning_rate: float | None = None,
    frozen_steps: int = 0,
    clip_norm: float | None = None,
    ema: float | None = None,
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
        backbone_variables: how many of the first trainable variables are the backbone's.
        backbone_learning_rate: the backbone's peak learning rate; None for `learning_rate`.
        frozen_steps: steps at the start in which the backbone doesn't change.
        clip_norm: upper bound on the norm of the gradient of all variables; None for none. Of
            several replicas, each clips its own gradient.
        ema: momentum of a moving average of the weights, which Keras assigns to the model after
            training; None for none. It is lowered in short trainings, so that the average spans at
            most a tenth of the steps.

    Raises:
        InputError: if the optimizer is unknown, or a number is out of range.
    """
    check_optimizer(optimizer)
    check_recipe(learning_rate, weight_decay, backbone_learning_rate, clip_norm, ema)
    warmup = max(1, round(WARMUP_SHARE * total_steps))
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, total_steps - warmup), warmup_target=learning_rate, warmup_steps=warmup
    )
    if pretraining_steps:
        before = min(learning_rate, highest_pretraining_learning_rate or learning_rate)
        schedule = AfterPretraining(schedule, pretraining_steps, before)
    options: dict[str, Any] = {}
    if backbone_learning_rate is not None or frozen_steps:
        rate = learning_rate if backbone_learning_rate is None else backbone_learning_rate
        options["backbone_variables"] = backbone_variables
        options |= {"backbone_rate": rate / learning_rate, "frozen_steps": frozen_steps}
    if clip_norm:
        # Keras clips before it adds the replicas' gradients.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        options["global_clipnorm"] = clip_norm / replicas
    if ema:
        # An average over more steps would still have a share of the untrained weights.
        momentum = min(ema, max(0.0, 1 - 10 / total_steps))
        options |= {"use_ema": True, "ema_momentum": momentum}
    if optimizer == "adamw":
        return AdamW(schedule, weight_decay=weight_decay, **options)
    return SGD(schedule, momentum=0.9, nesterov=True, l2=weight_decay, **options)


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
    backbone_learning_rate: float | None = None,
    freeze_epochs: int | None = None,
    freeze_batch_norm: bool | None = None,
    clip_norm: float | None = None,
    ema: float | None = None,
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
        backbone_learning_rate: the peak learning rate of all but the student's last layer with
            weights; None for `learning_rate`.
        freeze_epochs: epochs at the start in which only the student's last layer with weights
            trains; None for none.
        freeze_batch_norm: whether batch normalization uses its moving statistics, and nothing in it
            trains.
        clip_norm: as in `make_optimizer`.
        ema: as in `make_optimizer`. The average is what is validated and saved.
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
    check_freeze(freeze_epochs, epochs, distiller.pretraining_steps)
    check_alike(f"the run directory {run.path}", newest_step(run.backup), strategy)
    options = execution.compile_options(
        strategy, steps_per_execution, backup_steps, epochs, steps,
        batch_bytes=4 * batch_size * math.prod(dataset.image_shape),
    )  # fmt: skip
    data = dataset, train_split, batch_size
    batches = functools.partial(training_batches, distiller, *data, augment)
    samples = pipeline(*data, distiller.data_seed, augment) if batch_size >= NUM_SAMPLES else None
    loggers = functools.partial(
        _loggers, run, samples, dataset.class_names, histogram_freq, profile_steps, validation_freq
    )
    with unwritable_named(run.path):
        if is_chief(strategy):
            write_description(run.tensorboard, describe(dataset, train_split, validation_split))
            run.save_initial_model(distiller.student)
        with finetuning.frozen_batch_norm(distiller.student, freeze_batch_norm):
            _compile(
                distiller, dataset, options, learning_rate=learning_rate,
                weight_decay=weight_decay, total_steps=epochs * steps, optimizer=optimizer,
                backbone_learning_rate=backbone_learning_rate,
                frozen_steps=(freeze_epochs or 0) * steps, clip_norm=clip_norm, ema=ema,
            )  # fmt: skip
            training = Training(
                distiller, batches, _validation_batches(validation_split, strategy),
                epochs + -(-distiller.pretraining_steps // steps), steps, validation_freq,
                backup_steps, chooses_steps_per_execution=steps_per_execution is None,
            )  # fmt: skip
            fit_resumably(training, run, loggers if is_chief(strategy) else lambda _: [], callbacks)
    if is_chief(strategy):
        run.save_model(distiller.student)


def _compile(
    distiller: SimilarityTransferDistiller, dataset: Dataset, options: dict[str, Any], **rates: Any
) -> None:
    """Compiles the distiller with an optimizer from `make_optimizer`."""
    with distiller.distribute_strategy.scope():
        optimizer = make_optimizer(
            pretraining_steps=distiller.pretraining_steps,
            highest_pretraining_learning_rate=distiller.highest_pretraining_learning_rate,
            backbone_variables=finetuning.count_backbone_variables(distiller.student),
            **rates,
        )
        distiller.compile(optimizer, metrics=_metrics(dataset), **options)
    if distiller.jit_compile:
        print("compiling the training step with XLA; this can take a minute")


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
    return made


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
