"""The classifiers of keras.applications with their preprocessing.

They have names such as "keras.applications:EfficientNetB0".
"""

import inspect
import os
import socket
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import h5py
import keras

from stkd_keras.errors import InputError, one_line, unknown_name

PREFIX = "keras.applications:"
IMAGENET_CLASSES = 1000
IMAGENET_STD = (0.229, 0.224, 0.225)
# Seconds. Without a limit, a network that drops packets blocks the download for minutes.
_NETWORK_TIMEOUT = 5.0

_FUNCTIONS = {
    name: function
    for name, function in vars(keras.applications).items()
    if inspect.isfunction(function)
    and "classifier_activation" in inspect.signature(function).parameters
}


def is_application(source: str) -> bool:
    return source.startswith(PREFIX)


def check_name(source: str) -> None:
    """Refuses a name that `build` doesn't accept."""
    name = source.removeprefix(PREFIX)
    if name not in _FUNCTIONS:
        raise unknown_name("model of keras.applications", name, _FUNCTIONS)


def build(source: str, input_shape: Sequence[int | None], num_classes: int) -> keras.Model:
    """Builds an application with fresh weights, from pixels in [0, 255] to logits."""
    check_name(source)
    check_images(source, input_shape)
    pixels = keras.Input(tuple(input_shape), dtype="float32", name="pixels")
    model = _call(
        source,
        input_tensor=preprocess(source, pixels),
        input_shape=tuple(input_shape),
        weights=None,
        classes=num_classes,
    )
    # Keras makes the input a list of one, and would warn at every call without a list.
    return keras.Model(pixels, model.outputs[0], name=model.name)


def build_as_published(source: str, num_classes: int | None = None) -> keras.Model:
    """Builds an application for preprocessed images of its own size, with logits as outputs."""
    check_name(source)
    # MobileNetV3 takes images of any size, but was trained on this one.
    size = {"input_shape": (224, 224, 3)} if "MobileNetV3" in source else {}
    if num_classes is not None:
        return _call(source, weights=None, classes=num_classes, **size)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT)
    try:
        return _call(source, weights="imagenet", **size)
    except Exception as error:  # Keras raises bare exceptions when a download fails.
        cache = os.path.join(os.environ.get("KERAS_HOME") or "~/.keras", "models")
        raise InputError(
            f"can't get the ImageNet weights of {source} ({one_line(error)}); looked in {cache} "
            "and on Keras's server: pass a file with them as weights (--teacher_weights=FILE)"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def preprocess(source: str, images: keras.KerasTensor) -> keras.KerasTensor:
    """Applies an application's `preprocess_input` to pixels in [0, 255], (B, H, W, 3)."""
    function = _FUNCTIONS[source.removeprefix(PREFIX)]
    return sys.modules[function.__module__].preprocess_input(images, data_format="channels_last")


def restore_scale(model: keras.Model, file: str) -> None:
    """Corrects the scale of an EfficientNet loaded from a file of ImageNet weights.

    Keras adds another Rescaling layer (1 / sqrt(std)) to an EfficientNet only for ImageNet's
    weights. That layer has no weights, so a file of either kind would fill the other silently. If
    the file names the layer, its factor goes into the variance of the Normalization layer.
    """
    norms = [x for x in model._flatten_layers() if type(x) is keras.layers.Normalization]
    scales = [x for x in model._flatten_layers() if type(x) is keras.layers.Rescaling]
    if len(norms) != 1 or len(scales) != 1 or not model.name.startswith("efficientnetb"):
        return
    with h5py.File(file) as content:
        root = content.get("model_weights", content)
        names = list(root["layers"]) if "layers" in root else list(root.attrs["layer_names"])
    rescalings = [str(name) for name in names if "rescaling" in str(name)]
    if len(rescalings) == 2:
        (norm,) = norms
        norm.adapt_variance.assign(norm.adapt_variance.numpy() * IMAGENET_STD)
        norm.finalize_state()


def check_images(source: str, image_shape: Sequence[int | None]) -> None:
    """Refuses images that aren't (height, width, 3)."""
    if len(image_shape) != 3 or image_shape[-1] != 3:
        raise InputError(
            f"{source} takes color images, but these are of shape {tuple(image_shape)}; expected "
            "(height, width, 3): choose a model of the zoo"
        )


def _call(source: str, **arguments: Any) -> keras.Model:
    """Calls Keras's function without its warnings about sizes without pretrained weights."""
    function = _FUNCTIONS[source.removeprefix(PREFIX)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(**arguments, classifier_activation=None)
    except ValueError as error:
        raise InputError(f"Keras can't build {source}: {one_line(error)}") from error
