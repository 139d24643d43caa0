"""Trains a distiller in a run's directory."""

import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from stkd_keras.data import (
    AnySplit,
    Dataset,
    evaluation_pipeline,
    pipeline,
    steps_per_epoch,
)
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
from stkd_keras.training.checkpoints import newest_step
from stkd_keras.training.loop import BackupConfig, Training, fit_resumably, largest_divisor
from stkd_keras.training.run_directory import RunDirectory
from stkd_keras.training.sample_panel import NUM_SAMPLES, VirtualSamplePanel
from stkd_keras.training.tensorboard import ReturnFreedMemory, RunTensorBoard

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
    """Returns an optimizer with a linear warm-up and a cosine decay to 0.

    Args:
        learning_rate: the highest; the warm-up reaches it after 5 % of the steps.
        weight_decay: of kernels; with "sgd" L2 added to the gradient, with "adamw" decoupled.
        total_steps: steps of the whole training, but for those of a pretraining.
        optimizer: "sgd" (with Nesterov momentum 0.9) or "adamw".
        pretraining_steps: steps before them, with the highest learning rate.
        highest_pretraining_learning_rate: of these steps, None for that of the others.

    Raises:
        InputError: as `check_recipe`, or for an unknown optimizer.
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
    steps_per_execution: int = 1,
    backup_steps: int = BACKUP_STEPS,
    validation_freq: int = 1,
    histogram_freq: int = 0,
    profile_steps: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Trains a distiller's student, from the run's last backup if there is one, and saves it.

    Of several workers all have to call it, and one writes.

    Args:
        distiller: made under the strategy that it shall be trained under.
        dataset: what the splits are of.
        train_split: the images to train on; those without label have -1.
        validation_split: the images to watch, or None.
        run: the started directory for what it leaves.
        epochs: passes over the training images, after those of a pretraining.
        batch_size: images a step, over all replicas.
        learning_rate: the highest.
        weight_decay: as in `make_optimizer`.
        optimizer: likewise.
        augment: as in `stkd_keras.data.pipeline`.
        steps_per_execution: as in `keras.Model.compile`; the largest number up to it that divides
            the steps of an epoch is taken.
        backup_steps: steps between two backups within an epoch; there is one after each epoch, too.
        validation_freq: epochs from one look at the validation images, and picture of virtual
            samples, to the next.
        histogram_freq: epochs from one set of histograms of the weights in TensorBoard to the
            next; 0 for none.
        profile_steps: steps that TensorFlow's profiler looks at, from the third on; 0 for none.
        callbacks: further ones. What Keras's EarlyStopping, ModelCheckpoint and ReduceLROnPlateau
            remember is backed up, too.

    Raises:
        InputError: where numbers are outside their ranges, the loss stops being finite, or a file
            can't be written.
        Interrupted: after SIGTERM or SIGINT, when the step is done and backed up.
    """
    for name, number, lowest in (
        ("backup_steps", backup_steps, 1),
        ("validation_freq", validation_freq, 1),
        ("histogram_freq", histogram_freq, 0),
        ("profile_steps", profile_steps, 0),
    ):
        if number < lowest:
            raise InputError(f"{name} is {number}, but must be {lowest} or more")
    strategy = distiller.distribute_strategy
    chief = is_chief(strategy)
    steps = steps_per_epoch(train_split, batch_size)
    together = largest_divisor(steps_per_execution, steps)
    if together != steps_per_execution:
        print(f"{together} steps an execution: the most that divide the {steps} of an epoch")
    check_alike(f"the run's directory {run.path}", newest_step(run.backup), strategy)
    metrics: list = ["accuracy"]
    if dataset.num_classes > 10:
        metrics.append(keras.metrics.TopKCategoricalAccuracy(k=5, name="top5_accuracy"))

    def compile_for(steps_done: int) -> None:
        distiller.compile(
            make_optimizer(
                learning_rate,
                weight_decay,
                epochs * steps,
                optimizer,
                distiller.pretraining_steps,
                distiller.highest_pretraining_learning_rate,
            ),
            metrics=metrics,
            steps_per_execution=largest_divisor(steps_per_execution, steps, steps_done),
        )

    def batches(first_step: int):
        share_of = functools.partial(
            pipeline, dataset, train_split, batch_size, distiller.data_seed, augment,
            start_step=first_step, with_index=any(t.needs_index for t in distiller.terms),
        )  # fmt: skip
        if isinstance(distiller.teacher, RecordedTeacher):
            return distiller.teacher.attach(share_of())
        return distributed(share_of, strategy)

    def loggers(resumes: bool) -> list:
        if not chief:
            return []
        first = pipeline(dataset, train_split, batch_size, distiller.data_seed, augment)
        tensorboard = RunTensorBoard(run.tensorboard, histogram_freq, profile_steps)
        return [
            tensorboard,
            *_loggers(run, resumes, first, batch_size, dataset, validation_freq),
        ]

    validation = validation_split and distributed_by_example(
        evaluation_pipeline(validation_split, EVALUATION_BATCH), strategy
    )
    all_epochs = epochs + -(-distiller.pretraining_steps // steps)
    training = Training(
        distiller, compile_for, batches, validation, all_epochs, steps, validation_freq
    )
    config = BackupConfig(run.backup, run.settings, run.history, backup_steps)
    with unwritable_named(run.path):
        if chief:
            _write_description(run, describe(dataset, train_split, validation_split))
        fit_resumably(training, config, loggers, callbacks)
    if chief:
        run.save_model(distiller.student)


def _write_description(run: RunDirectory, description: dict[str, Any]) -> None:
    """Writes what is said of the data to TensorBoard, under Text."""
    rows = [f"| {key} | {value} |" for key, value in description.items()]
    with tf.summary.create_file_writer(f"{run.tensorboard}/train").as_default():
        tf.summary.text("dataset", "\n".join(["| | |", "|---|---|", *rows]), step=0)


def _loggers(run, resumes: bool, batches, batch_size: int, dataset: Dataset, freq: int) -> list:
    """What leaves a run's artefacts, epoch by epoch."""
    callbacks = [keras.callbacks.CSVLogger(str(run.history), append=resumes)]
    if batch_size >= NUM_SAMPLES:
        panel = VirtualSamplePanel(run.tensorboard, batches, dataset.class_names, freq)
        callbacks.append(panel)
    return [*callbacks, ReturnFreedMemory(freq)]
