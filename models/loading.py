"""Loads models from files, the zoo and keras.applications."""

import pathlib
import warnings
import zipfile
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from models import applications
from models.applications import is_application
from models.weights import imagenet, pytorch, state_dict
from models.zoo import build, check_imagenet, options_from_state, parse_name
from stkd_keras.classifiers.fused_batch_norm import fuse_batch_normalization
from stkd_keras.classifiers.outputs import (
    check_one_input,
    compatible,
    input_shape,
    num_classes,
    resolve_outputs,
)
from stkd_keras.data import Dataset, parse_normalization
from stkd_keras.errors import InputError, explain_errors
from stkd_keras.files.untrusted import check_keras_file

# Endings of files that hold weights alone, and so can't be a source.
_WEIGHTS_ENDINGS = (".h5", ".safetensors", ".pth", ".pt", ".th")


def load(
    source: str | pathlib.Path,
    *,
    input_shape: Sequence[int | None] | None = None,
    num_classes: int | None = None,
    weights: str | pathlib.Path | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    **options: Any,
) -> keras.Model:
    """Loads a model from a file, or builds it by name, with or without weights.

    Args:
        source: a `.keras` file, a model of the zoo (one of `available()`), or one of
            keras.applications, such as "keras.applications:MobileNetV2", which includes its
            preprocessing.
        input_shape: (height, width, channels). Required with a name; a `.keras` file is checked
            against it.
        num_classes: number of classes; required or checked like `input_shape`.
        weights: a file with weights for a model given by name: `.weights.h5` (for an application
            also `.h5`), or a `.keras` file, which then is the model. For models of the zoo, any
            other file is read as a PyTorch checkpoint (see `load_pytorch`). "imagenet": the
            published weights of an EfficientNet-Lite (see `build`) or an application, which Keras
            downloads; unless `num_classes` is 1000, the head is new. None: fresh weights.
        mean: as in `build`; None is 0. Only for models of the zoo, like the next two.
        std: as in `build`; None is 1.
        options: as in `build`. Options that a PyTorch checkpoint implies, such as a ResNet's
            `shortcut`, are taken from it unless given.

    Returns:
        The model, with `fuse_batch_normalization` applied.

    Raises:
        InputError: if a file is missing, unreadable or doesn't fit, if arguments are missing or
            contradict each other, or as in `build`.
    """
    name, file = str(source), None if weights is None else str(weights)
    check_source(name, file)
    if name.endswith(".keras"):
        file = name
    settings = {"mean": mean, "std": std, **options}
    settings = {key: value for key, value in settings.items() if value is not None}
    if settings and (is_whole_model(file) or is_application(name)):
        raise InputError(
            f"the model of {file or name} has its own settings, but {', '.join(settings)} is given "
            "too: leave it out, or name a model of the zoo"
        )
    if is_whole_model(file):
        return _load_keras_file(str(file), input_shape, num_classes)
    if input_shape is None or num_classes is None:
        raise InputError(
            f"input_shape is {input_shape} and num_classes is {num_classes}, but {name} needs "
            "both; pass, for example, (32, 32, 3) and 10"
        )
    is_imagenet = is_pretrained(name, file)
    if is_application(name):
        model = applications.build(name, input_shape, num_classes, is_imagenet)
        file = None if is_imagenet else file
        return fuse_batch_normalization(model if file is None else fill(model, name, file))
    if file is None or is_imagenet:
        return build(name, input_shape, num_classes, weights=file, **settings)
    if file.endswith(".weights.h5"):
        return fill(build(name, input_shape, num_classes, **settings), name, file)
    state = state_dict.read_state_dict(file)
    settings = {**options_from_state(name, state), **parse_name(name)[1], **settings}
    return pytorch.assign(build(name, input_shape, num_classes, **settings), state, file)


def load_for(
    dataset: Dataset,
    source: str,
    weights: str | None = None,
    normalization: str | None = None,
    num_classes: int | None = None,
) -> keras.Model:
    """Loads or builds a classifier for a data set.

    Args:
        dataset: gives the input shape and the number of classes.
        source: as in `load`.
        weights: as in `load`.
        normalization: how pixels are normalized for `weights`, as in
            `stkd_keras.data.parse_normalization`; None for the data set's own. A `.keras` file,
            an application and "imagenet" bring their own.
        num_classes: number of classes, if not the data set's.

    Raises:
        InputError: as in `load`.
    """
    mean = std = None
    brings_its_own = is_whole_model(source, weights) or is_application(source)
    brings_its_own = brings_its_own or is_pretrained(source, weights)
    if normalization is not None or not brings_its_own:
        mean, std = parse_normalization(normalization or "dataset", dataset)
    model = load(
        source,
        input_shape=dataset.image_shape,
        num_classes=num_classes or dataset.num_classes,
        weights=weights,
        mean=mean,
        std=std,
    )
    try:
        resolve_outputs(model, "auto", "model")
    except InputError as error:
        raise InputError(f"{source} isn't a classifier: {error}") from error
    return model


def check_source(source: str, weights: str | None = None) -> None:
    """Checks `source` and `weights` for `load`, without loading them.

    Raises:
        InputError: if the name is unknown, a file is missing, or the two don't go together.
    """
    if source.endswith(".keras"):
        if weights is not None:
            raise InputError(
                f"{source} has its own weights, but weights={weights} is given too: leave weights "
                "out, or name a model of the zoo"
            )
        _check_file(source)
    elif is_onnx(source):
        raise InputError(
            f"{source} can't be trained or evaluated; expected a .keras file or a model of the "
            "zoo: an ONNX file can only be a teacher"
        )
    elif source.endswith(_WEIGHTS_ENDINGS):
        raise InputError(
            f"{source} has weights but no architecture; expected a .keras file or a model of the "
            "zoo: name the model and pass this file as its weights"
        )
    elif is_application(source):
        applications.check_name(source)
        if (
            weights is not None
            and not is_pretrained(source, weights)
            and not weights.endswith((".h5", ".keras"))
        ):
            raise InputError(
                f"{weights} can't be the weights of {source}; expected imagenet, or a Keras file: "
                ".weights.h5, .h5 or .keras"
            )
    elif is_pretrained(source, weights):
        check_imagenet(source)
    else:
        parse_name(source)
    if weights is not None and not is_pretrained(source, weights):
        _check_file(weights)


def check_normalization(
    normalization: str | None, source: str, weights: str | None, prefix: str = ""
) -> None:
    """Refuses a `normalization` that the model wouldn't use; `prefix` is that of the flags."""
    if normalization is not None and not takes_normalization(source, weights):
        raise InputError(
            f"--{prefix}normalization={normalization} is only for --{prefix}weights of a zoo model "
            f"(.weights.h5 or PyTorch) and for ONNX files; {source} has its own normalization, so "
            "leave it out"
        )


def takes_normalization(source: str, weights: str | None) -> bool:
    """Whether the model needs to be told how pixels are normalized for its weights."""
    if is_onnx(source):
        return True
    return weights is not None and not (
        is_pretrained(source, weights) or is_whole_model(source, weights) or is_application(source)
    )


def is_pretrained(source: str, weights: str | None) -> bool:
    """Whether a model starts from ImageNet's weights, and so is fine-tuned by default.

    Weights from a file count as the start of an ordinary training, since nobody knows what they
    were trained on.
    """
    return weights == imagenet.WEIGHTS


def is_whole_model(*files: str | None) -> bool:
    """Whether one of the files holds a model with its architecture, not just weights."""
    return any(file is not None and file.endswith(".keras") for file in files)


def is_onnx(source: str) -> bool:
    """Whether a source is an ONNX file."""
    return source.endswith(".onnx")


def fill(model: keras.Model, name: str, file: str) -> keras.Model:
    """Loads weights that Keras wrote into a model; `name` is for the error message."""
    _check_file(file)
    advice = "expected weights of the same architecture: check name, options and num_classes"
    if is_application(name):  # Most of those who fine-tune one give it other layers.
        advice += "; load one with a head of your own as a whole, from a file of model.save"
    with explain_errors(f"can't load {file} into {name}", advice), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The error says what Keras warns of.
        model.load_weights(file)
    if is_application(name):
        applications.restore_scale(model, file)
    return _checked_finite(model, file)


def _check_file(file: str) -> None:
    if not pathlib.Path(file).is_file():
        raise InputError(f"no file {file}; expected a model's weights, check the path")


def _load_keras_file(
    file: str, shape: Sequence[int | None] | None, classes: int | None
) -> keras.Model:
    if not zipfile.is_zipfile(file):  # Keras says "File not found" of these.
        raise InputError(f"{file} isn't a valid .keras file; expected a file written by model.save")
    check_keras_file(file)
    advice = "expected a file written by model.save: import and register your own classes first"
    with explain_errors(f"can't load {file}", advice):
        model = keras.saving.load_model(file, compile=False, safe_mode=True)
    if not isinstance(model, keras.Model):
        raise InputError(f"{file} contains a {type(model).__name__}; expected a keras.Model")
    if not model.built or not model.weights:
        raise InputError(f"{file} has a model without weights; build the model before saving it")
    model = _with_preprocessor(file, model, shape)
    _check_input_shape(file, model, shape)
    count = num_classes(model, "model")
    if None not in (count, classes) and count != classes:
        raise InputError(
            f"{file} has {count} classes; expected {classes}: use a model made for this data"
        )
    return fuse_batch_normalization(_checked_finite(model, file))


def _with_preprocessor(
    file: str, model: keras.Model, input_shape: Sequence[int | None] | None
) -> keras.Model:
    """Adds the preprocessing of a KerasHub classifier, which is not part of its call."""
    converter = getattr(getattr(model, "preprocessor", None), "image_converter", None)
    if converter is None:
        return model
    with explain_errors(f"can't preprocess images for {file}", "expected images like its own"):
        pixels = keras.Input(tuple(input_shape or model.input_shape[1:]), name="pixels")
        return keras.Model(pixels, model(converter(pixels)), name=model.name)


def _checked_finite(model: keras.Model, file: str) -> keras.Model:
    """Refuses NaN and infinite weights, which a ReLU would hide."""
    for weight in model.weights:
        if weight.dtype.startswith(("float", "bfloat")) and not np.isfinite(weight.numpy()).all():
            raise InputError(
                f"{file} has NaNs or infinities in {weight.path}; expected finite weights: the "
                "training may have diverged, use an earlier file"
            )
    return model


def _check_input_shape(
    file: str, model: keras.Model, expected: Sequence[int | None] | None
) -> None:
    """Checks the shape of the model's images, as far as it is declared."""
    check_one_input(model, "model")
    declared = input_shape(model)
    if declared is None or expected is None or compatible(declared, tuple(expected)):
        return
    raise InputError(
        f"{file} takes inputs of shape {declared}; expected {tuple(expected)}: use a model made "
        "for this data"
    )
