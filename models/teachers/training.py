"""Trains and fine-tunes teachers, and finds those that were trained before."""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from models import zoo
from models.applications import is_application
from models.loading import load_for
from models.teachers.sources import TeacherSource, slug
from stkd_keras import SimilarityTransferDistiller, experiment
from stkd_keras.data import Dataset
from stkd_keras.distribution.strategy import check_batch_size, largest_batch
from stkd_keras.distribution.workers import check_alike, is_chief, wait_for_all
from stkd_keras.files.json_files import write_json
from stkd_keras.recipes import TRAINING, recipe_for
from stkd_keras.training.run_directory import RunDirectory

# The recipes of the teachers trained here. The names of their directories depend on them.
TEACHER_SEED = 0
TEACHER_RECIPE: dict[str, Any] = {"batch_size": 128, "learning_rate": 0.1, "weight_decay": 5e-4}
# Without label smoothing: it erases what a student learns from (arXiv 1906.02629).
_FINETUNE = recipe_for("", recipe="finetune")
FINETUNE_RECIPE = {name: getattr(_FINETUNE, name) for name in ("batch_size", *TRAINING)}


def train_teacher(
    name: str,
    dataset: Dataset,
    folder: str | pathlib.Path,
    *,
    epochs: int,
    validation_fraction: float | None,
    data_seed: int,
    provenance: dict[str, Any],
    weights: str | None = None,
    augment: str = "standard",
    strategy: tf.distribute.Strategy | None = None,
    backup_steps: int = experiment.BACKUP_STEPS,
) -> pathlib.Path:
    """Trains a teacher with cross-entropy, or finds one that was trained before.

    It never sees the validation images. An interrupted training is resumed. With several workers,
    all have to call it, outside the strategy's scope.

    Args:
        name: a model of the zoo or, with `weights`, of keras.applications.
        dataset: the data set.
        folder: the folder of trained teachers, with one directory per name, data set and recipe.
        epochs: passes over the training images.
        validation_fraction: as in `stkd_keras.experiment.split`.
        data_seed: seed of the split, the order and the augmentation.
        provenance: further entries of config.json.
        weights: "imagenet" to fine-tune a pretrained model; None to train from scratch.
        augment: as in `stkd_keras.data.pipeline`.
        strategy: the strategy to train under; None for the current one.
        backup_steps: as in `stkd_keras.experiment.train`.

    Returns:
        The teacher's `.keras` file.
    """
    run, settings, recipe = _teacher_run(
        name, dataset, folder, epochs, validation_fraction, data_seed, weights, augment
    )
    name = settings["teacher"]
    strategy = strategy or tf.distribute.get_strategy()
    check_alike(f"the teachers' directory {folder}", run.is_complete, strategy)
    if run.is_complete:
        return run.model
    verb = "training" if weights is None else "fine-tuning"
    print(f"{verb} the teacher {name} for {epochs} epochs: {run.path}")
    run.check(settings)
    train_split, validation_split = experiment.split(dataset, validation_fraction, seed=data_seed)
    batch_size = largest_batch(recipe["batch_size"], len(train_split), strategy)
    check_batch_size("the batch of the teacher's recipe", batch_size, strategy)
    keras.utils.set_random_seed(TEACHER_SEED)
    with strategy.scope():
        trainer = SimilarityTransferDistiller(
            load_for(dataset, name, weights), mixing=None, soft_weight=0.0, label_weight=1.0,
            data_seed=data_seed,
        )  # fmt: skip
    experiment.start(run, {"settings": settings, **provenance}, strategy)
    experiment.train(
        trainer, dataset, train_split, validation_split, run, epochs=epochs, augment=augment,
        backup_steps=backup_steps, steps_per_execution=None, **{**recipe, "batch_size": batch_size},
    )  # fmt: skip
    if is_chief(strategy):
        write_json(run.metrics, experiment.evaluate(trainer.student, None, dataset, {}))
    wait_for_all(strategy)
    return run.model


def teachers_to_train(sources: Sequence[TeacherSource], **recipe: Any) -> list[str]:
    """Names the teachers that `load_teachers` would have to train by `train_teacher(**recipe)`."""
    missing = []
    for source in sources:
        if source.has_to_be_trained(recipe["dataset"].num_classes):
            run, *_ = _teacher_run(source.source, weights=source.weights_to_train, **recipe)
            missing += [] if run.is_complete else [source.source]
    return missing


def _teacher_run(
    name: str,
    dataset: Dataset,
    folder: str | pathlib.Path,
    epochs: int,
    validation_fraction: float | None,
    data_seed: int,
    weights: str | None,
    augment: str,
) -> tuple[RunDirectory, dict[str, Any], dict[str, Any]]:
    """Returns the directory of a teacher, the settings its result depends on, and its recipe."""
    if not is_application(name):
        canonical, options = zoo.parse_name(name)
        name = ":".join([canonical, *(f"{option}={value}" for option, value in options.items())])
    recipe = TEACHER_RECIPE if weights is None else FINETUNE_RECIPE
    settings = {
        "dataset": f"{dataset.name}-{dataset.version}",
        "image_shape": dataset.image_shape,
        "flip": dataset.flip,
        "validation_fraction": validation_fraction,
        "data_seed": data_seed,
        "teacher": name,
        "epochs": epochs,
        "seed": TEACHER_SEED,
        **recipe,
    }
    # Absent if they are the default, so that the teachers of earlier versions are found.
    settings |= {"weights": weights} if weights is not None else {}
    settings |= {"augment": augment} if augment != "standard" else {}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    directory = f"{slug(settings['dataset'])}-{slug(name)}-{key}"
    run = RunDirectory(pathlib.Path(folder) / directory, "teacher.keras", "--teacher_dir")
    return run, settings, recipe
