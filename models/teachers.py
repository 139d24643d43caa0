"""The teachers of a run: named by flags, loaded or trained, and made one FrozenTeacher."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from models import applications, zoo
from models.applications import is_application
from models.loading import (
    check_normalization,
    check_source,
    fill,
    is_whole_model,
    load,
    load_for,
    takes_normalization,
)
from models.pytorch import WrongNumClassesError
from stkd_keras import FrozenTeacher, SimilarityTransferDistiller, experiment
from stkd_keras.data import Dataset
from stkd_keras.distribution import (
    check_alike,
    check_batch_size,
    is_chief,
    largest_batch,
    wait_for_all,
)
from stkd_keras.errors import InputError
from stkd_keras.outputs import compatible, input_shape, num_classes
from stkd_keras.run_directory import RunDirectory, write_json
from stkd_keras.untrusted import read_text

# The recipe of a teacher that is trained here. One trained with another is another teacher.
TEACHER_SEED = 0
TEACHER_RECIPE: dict[str, Any] = {"batch_size": 128, "learning_rate": 0.1, "weight_decay": 5e-4}


@dataclasses.dataclass(frozen=True)
class TeacherSource:
    """Where a teacher is.

    Attributes:
        source: a `.keras` file, a model of the zoo, or one of keras.applications.
        weights: the file that fills it, or None: then a model of the zoo has yet to be trained,
            and an application gets the weights of ImageNet.
        normalization: how pixels are normalised for the weights of a model of the zoo, as in
            `stkd_keras.data.parse_normalization`; None for the data set's own.
        classes: a text file with the name of one class a line, in the teacher's order. None where
            they are the data set's, in its order.
    """

    source: str
    weights: str | None = None
    normalization: str | None = None
    classes: str | None = None

    @property
    def is_trained(self) -> bool:
        """Whether the teacher is there already."""
        has_weights = is_whole_model(self.source) or self.weights is not None
        return has_weights or is_application(self.source)

    @property
    def name(self) -> str:
        """What it is called: its file, or the model's name."""
        return self.weights if self.weights and is_whole_model(self.weights) else self.source

    @property
    def files(self) -> list[str]:
        """The files that it needs."""
        source = self.source if is_whole_model(self.source) else None
        return [file for file in (source, self.weights, self.classes) if file is not None]


def parse_teachers(
    teacher: str,
    weights: str | None = None,
    normalization: str | None = None,
    classes: str | None = None,
) -> list[TeacherSource]:
    """Reads the flags --teacher, --teacher_weights, --teacher_normalization, --teacher_classes.

    Args:
        teacher: one or several, with commas between them.
        weights: as many files, with nothing between the commas for none. None: none at all.
        normalization: of all that are models of the zoo with weights.
        classes: one file for all, or as many as teachers.

    Returns:
        The teachers, with absolute paths, so that they are found from any folder.

    Raises:
        InputError: if their numbers differ, a name isn't known, a file is missing, or one flag
            doesn't go with another.
    """
    sources = teacher.split(",")
    weights_of_each = _as_many("--teacher_weights", weights, sources)
    classes_of_each = _as_many("--teacher_classes", classes, sources, one_for_all=True)
    if not any(map(takes_normalization, sources, weights_of_each)):
        check_normalization("teacher", normalization, sources[0], weights_of_each[0])
    return [
        _checked(source, file, normalization, names)
        for source, file, names in zip(sources, weights_of_each, classes_of_each, strict=True)
    ]


def load_teachers(
    dataset: Dataset,
    sources: Sequence[TeacherSource],
    train: Callable[[str], str | pathlib.Path] | None = None,
    dtype: str | None = None,
    strategy: tf.distribute.Strategy | None = None,
) -> tuple[FrozenTeacher, list[TeacherSource]]:
    """Gets the teachers for a data set, and prints a line on each.

    Args:
        dataset: the data set.
        sources: the teachers, at least one.
        train: makes the `.keras` file of one that isn't trained yet, from its name. None where
            all are.
        dtype: as of FrozenTeacher.
        strategy: what the teachers are made under; None for the current one.

    Returns:
        All of them as one teacher, and where each is now.

    Raises:
        InputError: if one can't be loaded or doesn't fit the data set.
    """
    scope = (strategy or tf.distribute.get_strategy()).scope
    # What doesn't fit shall be found before the hours of training another one.
    with scope():
        teachers = {
            n: load_teacher(dataset, s, dtype=dtype) for n, s in enumerate(sources) if s.is_trained
        }
    to_train = [] if train is None else [s.source for s in sources if not s.is_trained]
    for name in to_train if len(to_train) > 1 else ():
        load_for(dataset, name)
    places = list(sources)
    for number, source in enumerate(sources):
        if train is not None and number not in teachers:
            places[number] = TeacherSource(os.path.abspath(train(source.source)))
            with scope():
                teachers[number] = load_teacher(dataset, places[number], source.name, dtype)
    with scope():
        return FrozenTeacher([teachers[number] for number in range(len(sources))]), places


def load_teacher(
    dataset: Dataset, source: TeacherSource, name: str | None = None, dtype: str | None = None
) -> FrozenTeacher:
    """Gets one trained teacher for a data set, and prints a line on it.

    A teacher for images of another height and width resizes them itself, bilinearly.

    Args:
        dataset: the data set.
        source: the teacher.
        name: what to call it in that line.
        dtype: as of FrozenTeacher.

    Raises:
        InputError: if it can't be loaded or doesn't fit the data set.
    """
    indices, count = None, dataset.num_classes
    if source.classes is not None:
        names = read_class_names(source.classes)
        indices, count = _positions(dataset, names, source.classes), len(names)
    if is_application(source.source):
        applications.check_images(source.source, dataset.image_shape)
        if source.weights is None:
            _check_num_classes(source, applications.IMAGENET_CLASSES, count)
    try:
        model = _load(dataset, source, count)
    except InputError as error:
        is_keras = source.weights is not None and source.weights.endswith(".h5")
        if source.classes is None and (is_keras or isinstance(error, WrongNumClassesError)):
            raise InputError(f"{error}; of other classes than the data's: {_REMEDY}") from error
        raise
    _check_num_classes(source, num_classes(model, "teacher"), count)
    try:
        teacher = FrozenTeacher(model, class_indices=indices, dtype=dtype)
    except InputError as error:
        raise InputError(f"{source.name} can't be a teacher: {error}") from error
    print(f"teacher {name or source.name}: {_description(model, teacher, dataset)}")
    return teacher


def fit_images(
    model: keras.Model,
    image_shape: Sequence[int],
    preprocess: Callable[[keras.KerasTensor], keras.KerasTensor] | None = None,
) -> keras.Model:
    """Makes of a model one for images of another height and width, which it resizes bilinearly.

    Args:
        model: a model of images.
        image_shape: (height, width, channels) of the images to come.
        preprocess: what happens to pixels between the resizing and the model.

    Returns:
        A functional model around the model, or the same where there is nothing to do.
    """
    taken = input_shape(model)
    if (
        taken is None
        or len(taken) != 3
        or (compatible(taken, tuple(image_shape)) and not preprocess)
    ):
        return model
    height, width = (own or given for own, given in zip(taken, image_shape[:2], strict=False))
    pixels = keras.Input(tuple(image_shape), dtype="float32", name="pixels")
    images = pixels
    if (height, width) != tuple(image_shape[:2]):
        images = keras.layers.Resizing(height, width, dtype="float32", name="resizing")(images)
    if preprocess is not None:
        images = preprocess(images)
    return keras.Model(pixels, model(images), name=model.name)


def train_teacher(
    name: str,
    dataset: Dataset,
    folder: str | pathlib.Path,
    *,
    epochs: int,
    validation_fraction: float | None,
    data_seed: int,
    provenance: dict[str, Any],
    strategy: tf.distribute.Strategy | None = None,
    backup_steps: int = experiment.BACKUP_STEPS,
    on_nan: str = "stop",
) -> pathlib.Path:
    """Trains a teacher by cross-entropy, once: what was trained before is found again.

    It never sees the validation images. A training that was interrupted goes on. Of several
    workers all have to call it, and none within the strategy's scope.

    Args:
        name: a model of the zoo.
        dataset: the data set.
        folder: where trained teachers are kept, a directory for each name, data and recipe.
        epochs: passes over the training images.
        validation_fraction: as in `stkd_keras.experiment.split`.
        data_seed: of the split, the order and the augmentation.
        provenance: what else config.json shall say.
        strategy: what it is trained under; None for the current one.
        backup_steps: as in `stkd_keras.experiment.train`.
        on_nan: likewise.

    Returns:
        The teacher's `.keras` file.
    """
    run, settings = teacher_run(
        name, dataset, folder,
        epochs=epochs, validation_fraction=validation_fraction, data_seed=data_seed,
    )  # fmt: skip
    name = settings["teacher"]
    strategy = strategy or tf.distribute.get_strategy()
    check_alike(f"the teachers' directory {folder}", run.is_complete, strategy)
    if run.is_complete:
        return run.model
    print(f"training the teacher {name} for {epochs} epochs: {run.path}")
    run.check(settings)
    train_split, validation_split = experiment.split(dataset, validation_fraction, seed=data_seed)
    batch_size = largest_batch(TEACHER_RECIPE["batch_size"], len(train_split), strategy)
    check_batch_size("the batch of the teacher's recipe", batch_size, strategy)
    keras.utils.set_random_seed(TEACHER_SEED)
    with strategy.scope():
        trainer = SimilarityTransferDistiller(
            load_for(dataset, name),
            mixing=None,
            soft_weight=0.0,
            label_weight=1.0,
            data_seed=data_seed,
        )
    experiment.start(run, {"settings": settings, **provenance}, strategy)
    recipe = {**TEACHER_RECIPE, "batch_size": batch_size}
    experiment.train(
        trainer, dataset, train_split, validation_split, run, epochs=epochs,
        backup_steps=backup_steps, on_nan=on_nan, **recipe,
    )  # fmt: skip
    if is_chief(strategy):
        write_json(run.metrics, experiment.evaluate(trainer.student, None, dataset, {}))
    wait_for_all(strategy)
    return run.model


def teacher_run(
    name: str,
    dataset: Dataset,
    folder: str | pathlib.Path,
    *,
    epochs: int,
    validation_fraction: float | None,
    data_seed: int,
) -> tuple[RunDirectory, dict[str, Any]]:
    """Returns the directory of a teacher that is trained here, and what its result depends on.

    Args:
        name: as in `train_teacher`, like the others.
        dataset: likewise.
        folder: likewise.
        epochs: likewise.
        validation_fraction: likewise.
        data_seed: likewise.
    """
    canonical, options = zoo.parse_name(name)
    name = ":".join([canonical, *(f"{option}={value}" for option, value in options.items())])
    settings = {
        "dataset": f"{dataset.name}-{dataset.version}",
        "image_shape": dataset.image_shape,
        "flip": dataset.flip,
        "validation_fraction": validation_fraction,
        "data_seed": data_seed,
        "teacher": name,
        "epochs": epochs,
        "seed": TEACHER_SEED,
        **TEACHER_RECIPE,
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    directory = f"{in_a_path(settings['dataset'])}-{in_a_path(name)}-{key}"
    run = RunDirectory(pathlib.Path(folder) / directory, "teacher.keras", "--teacher_dir")
    return run, settings


def read_class_names(file: str | pathlib.Path) -> list[str]:
    """Reads a text file with one class name a line.

    Args:
        file: UTF-8, with or without a byte order mark, of any system's line ends; blank lines at
            its end are left out.

    Raises:
        InputError: if it is missing or no such text, or if a line is blank or a name comes twice.
    """
    check_class_file(str(file))
    try:
        lines = read_text(file).split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} isn't UTF-8 text; expected one class name a line") from error
    while lines and not lines[-1].strip():
        lines.pop()
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise InputError(f"{file} is blank at line {number}; expected one class name a line")
        if line in seen:
            raise InputError(
                f"{file} has {line!r} at the lines {seen[line]} and {number}; expected each of the "
                "teacher's classes once"
            )
        seen[line] = number
    if len(lines) < 2:
        raise InputError(f"{file} has {len(lines)} class names; expected all of the teacher's")
    return lines


def check_class_file(file: str) -> None:
    """Refuses a file of class names that isn't there.

    Raises:
        InputError: likewise.
    """
    if not pathlib.Path(file).is_file():
        raise InputError(f"no file {file}; expected the teacher's class names, check the path")


def in_a_path(name: str) -> str:
    """Returns the name of a model, its file or a data set as a part of a file's name."""
    if is_whole_model(name):
        name = pathlib.Path(name).stem
    return name.removeprefix(applications.PREFIX).replace(":", "-").replace("/", "-")


_REMEDY = (
    "give a file that names the teacher's classes, one a line in its order: --teacher_classes=FILE"
)


def _as_many(
    flag: str, values: str | None, teachers: list[str], one_for_all: bool = False
) -> list[str | None]:
    """The values of a flag with commas in it, one for each teacher, None for an empty one."""
    if values is None:
        return [None] * len(teachers)
    parts = [part or None for part in values.split(",")]
    if one_for_all and len(parts) == 1:
        parts *= len(teachers)
    if len(parts) != len(teachers):
        raise InputError(
            f"{flag}={values} is {len(parts)} files, but --teacher is {len(teachers)} teachers; "
            f"expected {'one for all, or ' if one_for_all else ''}as many, with nothing between "
            "the commas for none"
        )
    return parts


def _checked(
    source: str, weights: str | None, normalization: str | None, classes: str | None
) -> TeacherSource:
    check_source(source, weights)
    if classes is not None:
        check_class_file(classes)
    teacher = TeacherSource(
        os.path.abspath(source) if is_whole_model(source) else source,
        weights and os.path.abspath(weights),
        normalization if takes_normalization(source, weights) else None,
        classes and os.path.abspath(classes),
    )
    if classes is not None and not teacher.is_trained:
        raise InputError(
            f"--teacher_classes={classes} names the classes of {source}, which has no weights and "
            "so is trained on the data's own; add --teacher_weights=FILE, or leave it out"
        )
    return teacher


def _load(dataset: Dataset, source: TeacherSource, count: int) -> keras.Model:
    """The teacher's model, for images as the data set has them."""
    name, weights = source.source, source.weights
    if is_whole_model(name, weights):
        any_size = (None, None, dataset.image_shape[-1])
        return fit_images(load(name, input_shape=any_size, weights=weights), dataset.image_shape)
    if is_application(name):
        model = applications.build_as_published(name, None if weights is None else count)
        if weights is not None:
            fill(model, name, weights)
        return fit_images(model, dataset.image_shape, lambda x: applications.preprocess(name, x))
    return load_for(dataset, name, weights, source.normalization, num_classes=count)


def _positions(dataset: Dataset, names: list[str], file: str) -> list[int]:
    """The positions of the data's classes among the teacher's."""
    positions = {name: position for position, name in enumerate(names)}
    missing = [name for name in dataset.class_names if name not in positions]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"{file} has no line {', '.join(map(repr, missing[:3]))}{more}; expected every class "
            f"of {dataset.name}, exactly as the data set names it"
        )
    return [positions[name] for name in dataset.class_names]


def _check_num_classes(source: TeacherSource, given: int | None, expected: int) -> None:
    if given is None or given == expected:
        return
    if source.classes is None:
        raise InputError(
            f"the teacher {source.name} has {given} classes and the data {expected}; {_REMEDY}"
        )
    raise InputError(
        f"{source.classes} names {expected} classes, but the teacher {source.name} has {given}; "
        "expected a line for each, in the teacher's order"
    )


def _description(model: keras.Model, teacher: FrozenTeacher, dataset: Dataset) -> str:
    """What a user may want to know of a teacher: is it resized for, does folding work."""
    height, width = dataset.image_shape[:2]
    text = f"{teacher.num_folded} of {teacher.num_normalizations} batch normalisations folded"
    for layer in model.layers:
        if isinstance(layer, keras.layers.Resizing):
            return f"images resized from {height}x{width} to {layer.height}x{layer.width}, {text}"
    return text
