"""The classifiers of keras.applications, each with the preprocessing that it was trained with.

They are named as in `keras.applications:EfficientNetB0`.
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
# Seconds. Without it, a network that swallows what is sent into it is waited for for minutes.
_NETWORK_TIMEOUT = 5.0

_FUNCTIONS = {
    name: function
    for name, function in vars(keras.applications).items()
    if inspect.isfunction(function)
    and "classifier_activation" in inspect.signature(function).parameters
}


def available() -> list[str]:
    """Returns the names that `build` knows."""
    return [PREFIX + name for name in _FUNCTIONS]


def is_application(source: str) -> bool:
    """Whether a name means a model of keras.applications."""
    return source.startswith(PREFIX)


def check_name(source: str) -> None:
    """Refuses a name that `build` doesn't know.

    Raises:
        InputError: with the nearest ones.
    """
    name = source.removeprefix(PREFIX)
    if name not in _FUNCTIONS:
        raise unknown_name("model of keras.applications", name, _FUNCTIONS)


def build(source: str, input_shape: Sequence[int | None], num_classes: int) -> keras.Model:
    """Builds an application with fresh weights for a data set's images.

    Args:
        source: one of `available()`.
        input_shape: (height, width, 3).
        num_classes: number of logits.

    Returns:
        A functional model from pixels, float32 in [0, 255] of shape (B, height, width, 3), to
        logits of shape (B, num_classes). Layers and weights are named as in the application.

    Raises:
        InputError: if the name isn't known, or the application doesn't take such images.
    """
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
    # Keras makes its input a list of one, and would warn of each call without a list.
    return keras.Model(pixels, model.outputs[0], name=model.name)


def build_as_published(source: str, num_classes: int | None = None) -> keras.Model:
    """Builds an application for images of the size that it was made for, to be a teacher.

    Args:
        source: one of `available()`.
        num_classes: number of logits of a model with fresh weights. None for the 1000 classes of
            ImageNet and the weights for them, which Keras finds in its cache or downloads.

    Returns:
        The application as Keras makes it, but with logits: its images have yet to be resized and
        given to `preprocess`.

    Raises:
        InputError: if the name isn't known, or the weights can't be had.
    """
    check_name(source)
    # MobileNetV3 takes images of any size, where the others have one; its weights are of this.
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
            "and on Keras's server: give a file that has them, --teacher_weights=FILE"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def preprocess(source: str, images: keras.KerasTensor) -> keras.KerasTensor:
    """Makes of pixels in [0, 255], (B, H, W, 3), what an application takes.

    It is the application's own `preprocess_input`, as operations that a model is saved with. Some
    applications preprocess within; for these it does nothing.
    """
    function = _FUNCTIONS[source.removeprefix(PREFIX)]
    return sys.modules[function.__module__].preprocess_input(images, data_format="channels_last")


def restore_scale(model: keras.Model, file: str) -> None:
    """Makes up for a layer that Keras gives EfficientNet with the weights of ImageNet alone.

    These networks divide by the root of the deviation of ImageNet's pixels once more than those
    built without weights do. Such a layer has no weights, so that a file of the one fills the other
    without a word. A file that names it gets the same factor into the normalisation's variance.

    Args:
        model: an application that was filled from the file.
        file: `.weights.h5`, or Keras's older `.h5`.
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
    """Refuses images that no application takes.

    Raises:
        InputError: if they aren't (height, width, 3).
    """
    if len(image_shape) != 3 or image_shape[-1] != 3:
        raise InputError(
            f"{source} takes colour images, but these are of shape {tuple(image_shape)}; expected "
            "(height, width, 3): choose a model of the zoo"
        )


def _call(source: str, **arguments: Any) -> keras.Model:
    """Calls Keras's function, without its warnings of sizes that have no weights of their own."""
    function = _FUNCTIONS[source.removeprefix(PREFIX)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(**arguments, classifier_activation=None)
    except ValueError as error:
        raise InputError(f"Keras can't build {source}: {one_line(error)}") from error
