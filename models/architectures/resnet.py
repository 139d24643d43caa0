"""The ResNets for CIFAR of He et al., with identity or projection shortcuts, and "x4" variants.

Three stages, each of (depth - 2) / 6 basic blocks; He et al., "Deep Residual Learning for Image
Recognition" (arXiv 1512.03385), section 4.2. They have 16, 32 and 64 channels; the "x4" variants
have four times as many after a first convolution of 32 (github.com/HobbitLong/RepDistiller).

Layers have the names of the modules in PyTorch, with "_" for ".": those of
github.com/akamaster/pytorch_resnet_cifar10 ("identity") or of RepDistiller ("projection").
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import layers

from models.architectures.blocks import (
    basic_block,
    batch_normalization,
    classifier,
    convolution,
    feature,
    residual_stages,
)
from stkd_keras.errors import unknown_name

_NARROW = (16, 16, 32, 64)
_WIDE = (32, 64, 128, 256)


def _resnet(
    depth: int, widths: Sequence[int], images, num_classes: int, *, shortcut: str = "identity"
) -> keras.KerasTensor:
    """Returns the logits; `shortcut` names He's option A ("identity") or B ("projection")."""
    if not isinstance(shortcut, str) or shortcut not in _SHORTCUTS:
        raise unknown_name("shortcut", str(shortcut), _SHORTCUTS)
    x = batch_normalization(convolution(images, widths[0], "conv1"), "bn1")
    x = feature(layers.ReLU(name="relu")(x), "stem")
    block = functools.partial(basic_block, shortcut=_SHORTCUTS[shortcut])
    x = residual_stages(x, block, widths[1:], 3 * [(depth - 2) // 6])
    return classifier(x, num_classes, "linear" if shortcut == "identity" else "fc")


MODELS: dict[str, Callable] = {
    f"resnet{depth}": functools.partial(_resnet, depth, _NARROW)
    for depth in (8, 14, 20, 32, 44, 56, 110)
}
for _depth in (8, 32):
    MODELS[f"resnet{_depth}x4"] = functools.partial(_resnet, _depth, _WIDE, shortcut="projection")


def options_from_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the shortcut of a PyTorch state dict."""
    projects = any({"downsample", "shortcut"} & set(name.split(".")) for name in state)
    return {"shortcut": "projection" if projects else "identity"}


def _identity(x, width: int, strides: int, name: str) -> keras.KerasTensor:
    """Takes every second pixel, and adds zero channels in front and at the end."""
    # Both layers load in plain Keras, where a lambda does not: pooling over one pixel subsamples,
    # and padding the "width" of an image declared channels first pads its channels.
    x = layers.AveragePooling2D(1, strides=strides, name=f"{name}_shortcut_subsample")(x)
    padding = (width - x.shape[-1]) // 2
    return layers.ZeroPadding2D(
        ((0, 0), (padding, padding)), data_format="channels_first", name=f"{name}_shortcut_pad"
    )(x)


def _projection(x, width: int, strides: int, name: str) -> keras.KerasTensor:
    x = convolution(x, width, f"{name}_downsample_0", kernel_size=1, strides=strides)
    return batch_normalization(x, f"{name}_downsample_1")


_SHORTCUTS = {"identity": _identity, "projection": _projection}
