"""The teacher and the student of a run of train.py."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from models import teachers
from models.loading import (
    check_normalization,
    check_source,
    is_pretrained,
    is_whole_model,
    load_for,
)
from models.teachers.sources import TeacherSource, slug
from models.teachers.training import teachers_to_train
from stkd_keras import recipes
from stkd_keras.classifiers.features import with_features
from stkd_keras.data import Dataset
from stkd_keras.files.write_errors import check_folder
from stkd_keras.methods.base import DistillationTerm, feature_names
from stkd_keras.teacher.frozen import FrozenTeacher
from stkd_keras.training.settings import RunSettings


def find_teachers(
    settings: RunSettings, weights: str | None, teacher_dir: str
) -> list[TeacherSource]:
    """Returns the teachers, after checking that every model named by a flag exists."""
    student = settings.student, settings.student_weights
    check_normalization(settings.student_normalization, *student, prefix="student_")
    check_source(*student)
    sources = teachers.parse_teachers(
        settings.teacher, weights, settings.teacher_normalization, settings.teacher_classes,
        settings.teacher_outputs,
    )  # fmt: skip
    if settings.needs_teacher and any(source.has_to_be_trained() for source in sources):
        check_folder(f"--teacher_dir={teacher_dir}", teacher_dir)
    return sources


def with_teacher_epochs(
    settings: RunSettings, sources: list[TeacherSource], epochs: int | None
) -> RunSettings:
    """Returns the settings with the epochs of fine-tuning, unless `epochs` are given."""
    untrained = [source for source in sources if source.has_to_be_trained()]
    if epochs is not None or not untrained or not all(x.is_pretrained for x in untrained):
        return settings
    return dataclasses.replace(settings, teacher_epochs=recipes.RECIPES["finetune"].epochs)


def default_run_dir(
    settings: RunSettings, sources: list[TeacherSource], data_dir: str | None
) -> str:
    """Returns runs/DATASET-TEACHER-STUDENT-METHOD-sSEED."""
    dataset = settings.dataset
    if dataset == "folder" and data_dir:
        dataset += f"-{pathlib.Path(data_dir).resolve().name}"
    teacher = "+".join(_part(source.name, source.weights) for source in sources)
    student = _part(settings.student, settings.student_weights)
    return f"runs/{slug(dataset)}-{teacher}-{student}-{settings.method}-s{settings.seed}"


def load_student(
    settings: RunSettings,
    dataset: Dataset,
    terms: list[DistillationTerm],
    feature_layers: Mapping[str, str],
) -> keras.Model:
    """Loads or builds the student, which must have the features that the loss terms compare."""
    source, weights = settings.student, settings.student_weights
    keras.utils.set_random_seed(settings.seed)
    if is_whole_model(source, weights):
        student = load_for(dataset, source, weights)
    else:
        policy = settings.mixed_precision
        keras.config.set_dtype_policy("float32" if policy == "none" else policy)
        student = load_for(dataset, source, weights, settings.student_normalization)
        keras.config.set_dtype_policy("float32")
    if names := feature_names(terms):
        with_features(student, names, feature_layers, "student")
    return student


def untrained_teachers(
    settings: RunSettings, sources: list[TeacherSource], dataset: Dataset, teacher_dir: str
) -> list[str]:
    """Returns the names of the teachers that must be trained before the student."""
    if not settings.needs_teacher:
        return []
    return teachers_to_train(sources=sources, **_recipe(settings, dataset, teacher_dir))


def get_teacher(
    settings: RunSettings,
    sources: list[TeacherSource],
    dataset: Dataset,
    teacher_dir: str,
    strategy: tf.distribute.Strategy,
    **training: Any,
) -> tuple[FrozenTeacher | None, list[TeacherSource]]:
    """Loads the teachers; if they are needed, first trains those without weights."""
    if not settings.needs_teacher and any(
        source.has_to_be_trained(dataset.num_classes) for source in sources
    ):
        return None, []
    train = functools.partial(
        teachers.train_teacher,
        strategy=strategy,
        **_recipe(settings, dataset, teacher_dir),
        **training,
    )
    return teachers.load_teachers(dataset, sources, train, settings.teacher_dtype, strategy)


def _part(name: str, weights: str | None) -> str:
    """Returns a model's part of the name of a run."""
    return f"{slug(name)}-{weights}" if is_pretrained(name, weights) else slug(name)


def _recipe(settings: RunSettings, dataset: Dataset, teacher_dir: str) -> dict[str, Any]:
    """The arguments of `train_teacher` that decide which teacher it trains."""
    return {
        "dataset": dataset,
        "folder": teacher_dir,
        "epochs": settings.teacher_epochs,
        "validation_fraction": settings.validation_fraction,
        "data_seed": settings.data_seed,
        "augment": settings.augment if settings.augment.startswith("photo") else "standard",
    }
