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

from models.architectures.blocks import feature
from models.weights import imagenet
from stkd_keras.errors import InputError, one_line, unknown_name

PREFIX = "keras.applications:"
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
    """Whether a source names a model of keras.applications."""
    return source.startswith(PREFIX)


def check_name(source: str) -> None:
    """Refuses a name that `build` doesn't accept."""
    name = source.removeprefix(PREFIX)
    if name not in _FUNCTIONS:
        raise unknown_name("model of keras.applications", name, _FUNCTIONS)


def build(
    source: str, input_shape: Sequence[int | None], num_classes: int, is_imagenet: bool = False
) -> keras.Model:
    """Builds an application, from pixels in [0, 255] to logits, with fresh or ImageNet weights.

    With ImageNet weights, the head is new unless there are 1000 classes.
    """
    check_name(source)
    check_images(source, input_shape)
    pixels = keras.Input(tuple(input_shape), dtype="float32", name="pixels")
    images = {"input_tensor": preprocess(source, pixels), "input_shape": tuple(input_shape)}
    if is_imagenet and num_classes != imagenet.NUM_CLASSES:
        model = _call_imagenet(source, **images, include_top=False, pooling="avg")
        x = feature(model.outputs[0], "embedding")
        if rate := _dropout_rate(source, images["input_shape"]):
            x = keras.layers.Dropout(rate, name="dropout")(x)
        logits = keras.layers.Dense(num_classes, dtype="float32", name="head")(x)
    else:
        model = _call(source, **images, weights=None, classes=num_classes)
        logits = model.outputs[0]
        if is_imagenet:
            _copy_weights(source, build_as_published(source), model)
    # Keras makes the input a list of one, and would warn at every call without a list.
    return keras.Model(pixels, logits, name=model.name)


def build_as_published(source: str, num_classes: int | None = None) -> keras.Model:
    """Builds an application for preprocessed images of its own size, with logits as outputs."""
    check_name(source)
    # MobileNetV3 takes images of any size, but was trained on this one.
    size = {"input_shape": (224, 224, 3)} if "MobileNetV3" in source else {}
    if num_classes is not None:
        return _call(source, weights=None, classes=num_classes, **size)
    return _call_imagenet(source, **size)


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
    if not model.name.startswith("efficientnetb"):
        return
    with h5py.File(file) as content:
        root = content.get("model_weights", content)
        names = list(root["layers"]) if "layers" in root else list(root.attrs["layer_names"])
    if sum("rescaling" in str(name) for name in names) == 2 and len(_rescalings(model)) == 1:
        _include_scale(model)


def check_images(source: str, image_shape: Sequence[int | None]) -> None:
    """Refuses images that aren't (height, width, 3)."""
    if len(image_shape) != 3 or image_shape[-1] != 3:
        raise InputError(
            f"{source} takes color images, but these are of shape {tuple(image_shape)}; expected "
            "(height, width, 3): choose a model of the zoo"
        )


def _dropout_rate(source: str, input_shape: tuple[int | None, ...]) -> float:
    """Returns the rate of the dropout in an application's own head, or 0."""
    layers = _call(source, weights=None, input_shape=input_shape).layers
    dropouts = [x for x in layers if isinstance(x, keras.layers.Dropout)]
    # In its blocks, an application drops whole images.
    return next((x.rate for x in reversed(dropouts) if x.noise_shape is None), 0.0)


def _copy_weights(source: str, published: keras.Model, model: keras.Model) -> None:
    """Copies the weights of an application to one for another image size."""
    try:
        model.set_weights(published.get_weights())
    except ValueError as error:
        raise InputError(
            f"the ImageNet weights of {source} are for images of {published.input_shape[1:3]} and "
            f"don't fit {model.input_shape[1:3]}: choose that size, or a number of classes other "
            f"than {imagenet.NUM_CLASSES} for a new head"
        ) from error
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    if len(_rescalings(published)) > len(_rescalings(model)):
        _include_scale(model)


def _rescalings(model: keras.Model) -> list[keras.layers.Layer]:
    return [x for x in model._flatten_layers() if type(x) is keras.layers.Rescaling]


def _include_scale(model: keras.Model) -> None:
    """Moves the factor 1 / sqrt(std) of ImageNet's EfficientNets into the normalization."""
    for norm in model._flatten_layers():
        if type(norm) is keras.layers.Normalization:
            norm.adapt_variance.assign(norm.adapt_variance.numpy() * IMAGENET_STD)
            norm.finalize_state()


def _call_imagenet(source: str, **arguments: Any) -> keras.Model:
    """Calls Keras's function, which downloads the weights unless they are in Keras's cache."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT)
    try:
        return _call(source, weights="imagenet", **arguments)
    except InputError:
        raise
    except Exception as error:  # Keras raises bare exceptions when a download fails.
        cache = os.path.join(os.environ.get("KERAS_HOME") or "~/.keras", "models")
        raise InputError(
            f"can't get the ImageNet weights of {source} ({one_line(error)}); looked in {cache} "
            "and on Keras's server: connect to the network, or copy Keras's file there"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _call(source: str, **arguments: Any) -> keras.Model:
    """Calls Keras's function without its warnings about sizes without pretrained weights."""
    function = _FUNCTIONS[source.removeprefix(PREFIX)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(**arguments, classifier_activation=None)
    except ValueError as error:
        raise InputError(f"Keras can't build {source}: {one_line(error)}") from error
