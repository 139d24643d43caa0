"""Distills a large image classifier into a small one."""

# isort: off
import quiet_tensorflow

# isort: on
import dataclasses
import functools
import os
from typing import Any

from absl import flags

import stkd_keras
from models import run_models
from models.loading import is_pretrained
from stkd_keras import data, experiment
from stkd_keras.cli import app
from stkd_keras.cli.provenance import provenance
from stkd_keras.cli.train_flags import COMMON, GROUPS
from stkd_keras.cli.train_settings import (
    Images,
    batching,
    features_from_flag,
    images_from_flags,
    settings_from_flags,
    strategy_from_flags,
)
from stkd_keras.distribution import is_chief
from stkd_keras.distribution.cluster import detect_lost_workers
from stkd_keras.teacher.recording import check_existing_recording
from stkd_keras.training import timing
from stkd_keras.training.run_directory import RunDirectory
from stkd_keras.training.settings import RunSettings

DESCRIPTION = """
python train.py --dataset=cifar10 --teacher=resnet110

Distills a large classifier (the teacher) into a small one (the student). Loads or trains the
teacher, trains the student on mixed images that the teacher labels, evaluates it on the test split,
and writes config.json, history.csv, TensorBoard logs, student.keras and metrics.json to the run
directory. Rerun the same command to resume an interrupted run.
"""

FLAGS = flags.FLAGS


@detect_lost_workers()
def main() -> None:
    """Runs the command."""
    settings = settings_from_flags(is_pretrained)
    sources = run_models.find_teachers(settings, FLAGS.teacher_weights, FLAGS.teacher_dir)
    settings = run_models.with_teacher_epochs(settings, sources, FLAGS.teacher_epochs)
    run_dir = FLAGS.run_dir or run_models.default_run_dir(settings, sources, FLAGS.data_dir)
    run = RunDirectory(run_dir)
    run.check(settings.stored(), FLAGS.overwrite)

    strategy = strategy_from_flags(settings)
    images = images_from_flags()
    description = experiment.describe(images.dataset, images.train, images.validation)
    print(experiment.format_description(description))
    batch_size, steps = batching(settings, images.train, strategy)
    settings = settings.with_images(images.train, batch_size, strategy.num_replicas_in_sync)
    run.check(settings.stored(), FLAGS.overwrite)

    # Training a teacher takes hours, so everything that can fail is checked first.
    student_features = features_from_flag("student_features")
    with strategy.scope():
        arguments = settings.distiller_arguments(images.train, steps)
        student = run_models.load_student(
            settings, images.dataset, arguments["terms"], student_features
        )
    batches = functools.partial(
        data.pipeline, images.dataset, images.train, batch_size, settings.data_seed,
        settings.augment,
    )  # fmt: skip
    samples = {"steps": settings.epochs * steps, **settings.recorded_samples(arguments)}
    with strategy.scope():  # A recording is for the strategy's number of replicas.
        check_existing_recording(FLAGS.replay, batches(), **samples)
    untrained = run_models.untrained_teachers(settings, sources, images.dataset, FLAGS.teacher_dir)
    if FLAGS.dry_run and untrained:
        timing.say_untrained(untrained, settings.teacher_epochs)
        return

    teacher, sources = run_models.get_teacher(
        settings, sources, images.dataset, FLAGS.teacher_dir, strategy,
        backup_steps=FLAGS.backup_steps, provenance=provenance(),
    )  # fmt: skip
    queried: Any = teacher if settings.needs_teacher else None
    if teacher is not None and settings.needs_teacher:
        settings = dataclasses.replace(settings, teacher_weights=teacher.fingerprint())
    with strategy.scope():
        if settings.replay and not FLAGS.dry_run:
            recording = FLAGS.replay or run.recording(settings.stored())
            queried = stkd_keras.record_teacher(recording, teacher, batches(), **samples)
        distiller = stkd_keras.SimilarityTransferDistiller(
            student, queried, student_features=student_features,
            teacher_features=features_from_flag("teacher_features"), **arguments,
        )  # fmt: skip
    if FLAGS.dry_run:
        estimate_duration(settings, distiller, teacher, images, batch_size)
        return
    start(run, settings, sources, description, strategy)
    train(settings, distiller, images, run, batch_size)
    if is_chief(strategy):
        evaluate(settings, distiller, teacher, images, run)


def estimate_duration(settings: RunSettings, distiller, teacher, images: Images, batch_size: int):
    """Times a few steps and prints how long the training will take."""
    validations = 2 + settings.epochs // FLAGS.validation_freq
    evaluated = len(images.dataset.test) + len(images.labeled)
    evaluated += validations * len(images.validation or ())
    estimate = timing.time_training(
        distiller, teacher, images.dataset, images.train, epochs=settings.epochs,
        batch_size=batch_size, augment=settings.augment, evaluated=evaluated,
        started=quiet_tensorflow.STARTED,
    )  # fmt: skip
    timing.say(estimate)


def start(run: RunDirectory, settings: RunSettings, sources, description, strategy) -> None:
    """Starts or resumes the run, and writes config.json."""
    config = {
        "settings": settings.stored(),
        "data_dir": FLAGS.data_dir and os.path.abspath(FLAGS.data_dir),
        "teachers": [dataclasses.asdict(source) for source in sources],
        "data": description,
        **provenance(),
    }
    experiment.start(run, config, strategy, FLAGS.overwrite)


def train(settings: RunSettings, distiller, images: Images, run: RunDirectory, batch_size: int):
    """Trains the student."""
    from_flags = (
        "steps_per_execution", "backup_steps", "validation_freq", "histogram_freq", "profile_steps"
    )  # fmt: skip
    arguments = settings.training_arguments() | {name: FLAGS[name].value for name in from_flags}
    splits = images.dataset, images.train, images.validation
    experiment.train(distiller, *splits, run, batch_size=batch_size, **arguments)


def evaluate(settings: RunSettings, distiller, teacher, images: Images, run: RunDirectory) -> None:
    """Calibrates the student, evaluates it on all labeled images and completes the run."""
    splits = {"train": images.labeled}
    if images.validation is not None:
        splits["validation"] = images.validation
    student, temperature = distiller.student, None
    if settings.calibrate is None:
        temperature = experiment.calibrate(student, images.dataset, images.validation)
    metrics = experiment.evaluate(student, teacher, images.dataset, splits, temperature)
    experiment.complete(run, student, metrics)
    print(f"\n{experiment.format_metrics(metrics)}\n\nstudent: {run.model}")
    print(f"Next: python evaluate.py --model={run.path} --report")


if __name__ == "__main__":
    app.run(main, DESCRIPTION, GROUPS, COMMON)
