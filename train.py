"""Distills a large image classifier into a small one."""

# isort: off
import quiet_tensorflow

# isort: on
import dataclasses
import functools
import json
import os
import pathlib
from typing import Any

import keras
import tensorflow as tf
from absl import flags

import models
import stkd_keras
from models import teachers
from models.loading import check_normalization, is_whole_model
from models.teachers import TeacherSource
from models.teachers.sources import slug
from models.teachers.training import teachers_to_train
from stkd_keras import data, experiment
from stkd_keras.classifiers.features import with_features
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
from stkd_keras.files.write_errors import check_folder
from stkd_keras.methods.base import feature_names
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
    settings = settings_from_flags()
    sources = teacher_sources(settings)
    run = RunDirectory(FLAGS.run_dir or default_run_dir(settings, sources))
    run.check(settings.stored(), FLAGS.overwrite)

    strategy = strategy_from_flags(settings)
    images = images_from_flags()
    description = experiment.describe(images.dataset, images.train, images.validation)
    print(experiment.format_description(description))
    batch_size, steps = batching(settings, images.train, strategy)
    settings = dataclasses.replace(
        settings,
        images=data.content_hash(images.train),
        replicas=strategy.num_replicas_in_sync,
        left_over=data.left_over(images.train, batch_size).get("left_over"),
    )
    run.check(settings.stored(), FLAGS.overwrite)

    # Everything that can fail is checked before the hours of training a teacher.
    with strategy.scope():
        student = get_student(settings, images.dataset)
        arguments = settings.distiller_arguments(images.train, steps)
        check_features(student, arguments["terms"])
    batches = functools.partial(
        data.pipeline, images.dataset, images.train, batch_size, settings.data_seed,
        settings.augment,
    )  # fmt: skip
    replay = {"steps": settings.epochs * steps, **settings.recorded_samples(arguments)}
    if FLAGS.replay is not None and os.path.exists(FLAGS.replay):
        check_replay(batches(), **replay)
    if (
        FLAGS.dry_run
        and settings.needs_teacher
        and must_train_teachers(settings, sources, images.dataset)
    ):
        return

    teacher, sources = get_teacher(settings, sources, images.dataset, strategy)
    queried: Any = teacher if settings.needs_teacher else None
    if FLAGS.replay is not None and not FLAGS.dry_run:
        queried = stkd_keras.record_teacher(FLAGS.replay, teacher, batches(), **replay)
    with strategy.scope():
        distiller = stkd_keras.SimilarityTransferDistiller(
            student,
            queried,
            student_features=features_from_flag("student_features"),
            teacher_features=features_from_flag("teacher_features"),
            **arguments,
        )
    if FLAGS.dry_run:
        estimate_duration(settings, distiller, teacher, images, batch_size)
        return
    if teacher is not None and settings.needs_teacher:
        settings = dataclasses.replace(settings, teacher_weights=teacher.fingerprint())
    experiment.start(run, config(settings, sources, description), strategy, FLAGS.overwrite)
    train(settings, distiller, images, run, batch_size)
    if is_chief(strategy):
        evaluate(distiller.student, teacher, images, run)


def teacher_sources(settings: RunSettings) -> list[TeacherSource]:
    """Returns the teachers, once all models that the flags name are known to exist."""
    student = settings.student, settings.student_weights
    check_normalization("student", settings.student_normalization, *student)
    models.check_source(*student)
    sources = teachers.parse_teachers(
        settings.teacher,
        FLAGS.teacher_weights,
        settings.teacher_normalization,
        settings.teacher_classes,
    )
    if settings.needs_teacher and not all(source.is_trained for source in sources):
        check_folder(f"--teacher_dir={FLAGS.teacher_dir}", FLAGS.teacher_dir)
    return sources


def default_run_dir(settings: RunSettings, sources: list[TeacherSource]) -> str:
    """Returns runs/DATASET-TEACHER-STUDENT-METHOD-sSEED."""
    dataset = settings.dataset
    if dataset == "folder" and FLAGS.data_dir:
        dataset += f"-{pathlib.Path(FLAGS.data_dir).resolve().name}"
    teacher = "+".join(slug(source.name) for source in sources)
    student = slug(settings.student)
    return f"runs/{slug(dataset)}-{teacher}-{student}-{settings.method}-s{settings.seed}"


def get_student(settings: RunSettings, dataset: data.Dataset) -> keras.Model:
    """Loads or builds the student."""
    source, weights = settings.student, settings.student_weights
    keras.utils.set_random_seed(settings.seed)
    if is_whole_model(source, weights):
        return models.load_for(dataset, source, weights)
    policy = settings.mixed_precision
    keras.config.set_dtype_policy("float32" if policy == "none" else policy)
    student = models.load_for(dataset, source, weights, settings.student_normalization)
    keras.config.set_dtype_policy("float32")
    return student


def check_features(student: keras.Model, terms: list[stkd_keras.methods.DistillationTerm]) -> None:
    """Raises an error if the student lacks a feature that the method compares."""
    if names := feature_names(terms):
        with_features(student, names, features_from_flag("student_features"), "student")


def check_replay(batches: tf.data.Dataset, steps: int, **samples) -> None:
    """Raises an error if the existing recording is of another training."""
    recorded = stkd_keras.RecordedTeacher(FLAGS.replay)
    recorded.check_distiller(**samples)
    recorded.check_steps(steps)
    recorded.attach(batches)


def must_train_teachers(
    settings: RunSettings, sources: list[TeacherSource], dataset: data.Dataset
) -> bool:
    """Whether a teacher has to be trained first; if so, prints which and for how many epochs."""
    if not settings.needs_teacher:
        return False
    missing = teachers_to_train(sources=sources, **teacher_recipe(settings, dataset))
    if missing:
        epochs = settings.teacher_epochs
        print(
            f"{', '.join(missing)} will be trained first, for {epochs} epochs; estimate again then"
        )
        print(json.dumps({"teacher_untrained": True, "teacher_epochs": epochs}))
    return bool(missing)


def get_teacher(
    settings: RunSettings,
    sources: list[TeacherSource],
    dataset: data.Dataset,
    strategy: tf.distribute.Strategy,
) -> tuple[stkd_keras.FrozenTeacher | None, list[TeacherSource]]:
    """Loads the teachers, training those of the zoo that have no weights yet if they are needed."""
    if not settings.needs_teacher and not all(source.is_trained for source in sources):
        return None, []
    train_teacher = functools.partial(
        teachers.train_teacher,
        provenance=provenance(),
        strategy=strategy,
        backup_steps=FLAGS.backup_steps,
        **teacher_recipe(settings, dataset),
    )
    return teachers.load_teachers(dataset, sources, train_teacher, settings.teacher_dtype, strategy)


def teacher_recipe(settings: RunSettings, dataset: data.Dataset) -> dict[str, Any]:
    """Returns the arguments of `train_teacher` that say which teacher it trains."""
    return {
        "dataset": dataset,
        "folder": FLAGS.teacher_dir,
        "epochs": settings.teacher_epochs,
        "validation_fraction": settings.validation_fraction,
        "data_seed": settings.data_seed,
    }


def config(
    settings: RunSettings, sources: list[TeacherSource], description: dict[str, Any]
) -> dict[str, Any]:
    """Returns the content of config.json."""
    return {
        "settings": settings.stored(),
        "data_dir": FLAGS.data_dir and os.path.abspath(FLAGS.data_dir),
        "teachers": [dataclasses.asdict(source) for source in sources],
        "data": description,
        **provenance(),
    }


def estimate_duration(
    settings: RunSettings,
    distiller: stkd_keras.SimilarityTransferDistiller,
    teacher: stkd_keras.FrozenTeacher | None,
    images: Images,
    batch_size: int,
) -> None:
    """Times a few steps and prints how long the training will take."""
    validations = 1 + settings.epochs // FLAGS.validation_freq
    evaluated = len(images.dataset.test) + len(images.labeled)
    estimate = timing.time_training(
        distiller,
        teacher,
        images.dataset,
        images.train,
        epochs=settings.epochs,
        batch_size=batch_size,
        augment=settings.augment,
        evaluated=evaluated + validations * len(images.validation or ()),
        started=quiet_tensorflow.STARTED,
    )
    timing.say(estimate)


def train(
    settings: RunSettings,
    distiller: stkd_keras.SimilarityTransferDistiller,
    images: Images,
    run: RunDirectory,
    batch_size: int,
) -> None:
    """Trains the student."""
    experiment.train(
        distiller,
        images.dataset,
        images.train,
        images.validation,
        run,
        epochs=settings.epochs,
        batch_size=batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        optimizer=settings.optimizer,
        augment=settings.augment,
        steps_per_execution=FLAGS.steps_per_execution,
        backup_steps=FLAGS.backup_steps,
        validation_freq=FLAGS.validation_freq,
        histogram_freq=FLAGS.histogram_freq,
        profile_steps=FLAGS.profile_steps,
    )


def evaluate(
    student: keras.Model,
    teacher: stkd_keras.FrozenTeacher | None,
    images: Images,
    run: RunDirectory,
) -> None:
    """Evaluates the student on all labeled images and completes the run."""
    splits = {"train": images.labeled}
    if images.validation is not None:
        splits["validation"] = images.validation
    metrics = experiment.evaluate(student, teacher, images.dataset, splits)
    experiment.complete(run, student, metrics)
    print(f"\n{experiment.format_metrics(metrics)}\n\nstudent: {run.model}")
    print(f"Next: python evaluate.py --model={run.path} --report")


if __name__ == "__main__":
    app.run(main, DESCRIPTION, GROUPS, COMMON)
