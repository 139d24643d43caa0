"""Loads or trains the teachers of a run, and combines them into one FrozenTeacher."""

import os
import pathlib
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from models import applications
from models.applications import is_application
from models.loading import fill, is_onnx, is_whole_model, load, load_for
from models.teachers.onnx_teacher import load_onnx
from models.teachers.sources import TeacherSource, read_class_names
from models.weights import imagenet
from models.weights.pytorch import WrongNumClassesError
from stkd_keras import FrozenTeacher
from stkd_keras.classifiers.outputs import compatible, input_shape, num_classes
from stkd_keras.data import Dataset, parse_normalization
from stkd_keras.errors import InputError, first_few


def load_teachers(
    dataset: Dataset,
    sources: Sequence[TeacherSource],
    train: Callable[..., str | pathlib.Path] | None = None,
    dtype: str | None = None,
    strategy: tf.distribute.Strategy | None = None,
) -> tuple[FrozenTeacher, list[TeacherSource]]:
    """Loads the teachers for a data set, trains missing ones, and prints a line about each.

    Args:
        dataset: the data set.
        sources: the teachers, at least one.
        train: called with the name and the `weights` of a teacher; trains it and returns its
            `.keras` file, like `train_teacher`. May be None if all teachers are trained.
        dtype: as in `FrozenTeacher`.
        strategy: the strategy that the teachers are built under; None for the current one.

    Returns:
        One teacher that combines all of them, and the sources, with the files of those that were
        trained.

    Raises:
        InputError: if one can't be loaded or doesn't fit the data set.
    """
    scope = (strategy or tf.distribute.get_strategy()).scope
    # Teachers that don't fit are refused before another one is trained for hours.
    sources, classes = list(sources), dataset.num_classes
    to_train = [
        n for n, source in enumerate(sources) if train and source.has_to_be_trained(classes)
    ]
    with scope():
        teachers = {
            n: load_teacher(dataset, source, dtype=dtype)
            for n, source in enumerate(sources)
            if n not in to_train
        }
    for n in to_train if len(to_train) > 1 else ():
        load_for(dataset, sources[n].source, sources[n].weights_to_train)
    for n in to_train:
        assert train is not None
        name, weights = sources[n].source, sources[n].weights_to_train
        sources[n] = TeacherSource(os.path.abspath(train(name, weights=weights)))
        with scope():
            teachers[n] = load_teacher(dataset, sources[n], name, dtype)
    with scope():
        return FrozenTeacher([teachers[n] for n in range(len(sources))]), sources


def load_teacher(
    dataset: Dataset, source: TeacherSource, name: str | None = None, dtype: str | None = None
) -> FrozenTeacher:
    """Loads one trained teacher, which resizes images if necessary, and prints a line about it."""
    indices, count = None, dataset.num_classes
    if source.classes is not None:
        names = read_class_names(source.classes)
        indices, count = _positions(dataset, names, source.classes), len(names)
    if is_application(source.source):
        applications.check_images(source.source, dataset.image_shape)
    if source.is_pretrained:
        _check_num_classes(source, imagenet.NUM_CLASSES, count)
    if is_onnx(source.source):
        return _load_onnx(dataset, source, indices, count, dtype)
    try:
        model = _load(dataset, source, count)
    except InputError as error:
        is_keras = source.weights is not None and source.weights.endswith(".h5")
        if source.classes is None and (is_keras or isinstance(error, WrongNumClassesError)):
            raise InputError(
                f"{error}; if its classes differ from the data's, {_REMEDY}"
            ) from error
        raise
    _check_num_classes(source, num_classes(model, "teacher"), count)
    try:
        teacher = FrozenTeacher(model, source.outputs or "auto", indices, dtype)
    except InputError as error:
        raise InputError(f"{source.name} can't be a teacher: {error}") from error
    print(f"teacher {name or source.name}: {_description(model, teacher, dataset)}")
    return teacher


def fit_images(
    model: keras.Model,
    image_shape: Sequence[int],
    preprocess: Callable[[keras.KerasTensor], keras.KerasTensor] | None = None,
) -> keras.Model:
    """Adapts a model to images of another height and width by bilinear resizing.

    Args:
        model: a model of images.
        image_shape: (height, width, channels) of the images.
        preprocess: applied to the pixels between the resizing and the model.

    Returns:
        A functional model around the model, or the model itself if nothing has to change.
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


_REMEDY = (
    "pass a file that names the teacher's classes, one per line in its order, as classes "
    "(--teacher_classes=FILE), or name a pretrained model, which is fine-tuned on the data "
    "(--teacher_weights=imagenet)"
)


def _load(dataset: Dataset, source: TeacherSource, count: int) -> keras.Model:
    name, weights = source.source, source.weights
    if is_whole_model(name, weights):
        any_size = (None, None, dataset.image_shape[-1])
        return fit_images(load(name, input_shape=any_size, weights=weights), dataset.image_shape)
    if is_application(name):
        model = applications.build_as_published(name, None if source.is_pretrained else count)
        if not source.is_pretrained:
            fill(model, name, str(weights))
        return fit_images(model, dataset.image_shape, lambda x: applications.preprocess(name, x))
    return load_for(dataset, name, weights, source.normalization, num_classes=count)


def _load_onnx(
    dataset: Dataset,
    source: TeacherSource,
    indices: Sequence[int] | None,
    count: int,
    dtype: str | None,
) -> FrozenTeacher:
    if dtype is not None:
        raise InputError(
            f"{source.source} has its own precision; leave dtype={dtype} out (--teacher_dtype)"
        )
    mean = std = None
    if source.normalization is not None:
        mean, std = parse_normalization(source.normalization, dataset)
    teacher = load_onnx(
        source.source, dataset.image_shape, mean=mean, std=std, outputs=source.outputs or "auto"
    )
    _check_num_classes(source, teacher.num_classes, count)
    normalization = source.normalization or "raw pixels"
    print(f"teacher {source.name}: run by ONNX Runtime, normalization {normalization}")
    return FrozenTeacher(teacher, class_indices=indices)


def _positions(dataset: Dataset, names: list[str], file: str) -> list[int]:
    """Returns the positions of the data's classes among the teacher's."""
    positions = {name: position for position, name in enumerate(names)}
    missing = [name for name in dataset.class_names if name not in positions]
    if missing:
        raise InputError(
            f"{file} has no line {first_few(list(map(repr, missing)))}; expected every class "
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
        "expected one line per class, in the teacher's order"
    )


def _description(model: keras.Model, teacher: FrozenTeacher, dataset: Dataset) -> str:
    """Says whether images are resized, and how much batch normalization was folded."""
    height, width = dataset.image_shape[:2]
    text = f"{teacher.num_folded} of {teacher.num_normalizations} batch normalizations folded"
    for layer in model.layers:
        if isinstance(layer, keras.layers.Resizing):
            return f"images resized from {height}x{width} to {layer.height}x{layer.width}, {text}"
    return text
