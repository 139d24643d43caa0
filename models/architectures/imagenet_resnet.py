"""ResNet-18, -34 and -50 with a stem for small images.

Four stages of 64, 128, 256 and 512 channels, times four in ResNet-50; He et al., "Deep Residual
Learning for Image Recognition" (arXiv 1512.03385), table 1. A 3x3 convolution replaces ImageNet's
stem, which divides height and width by four.

Layers have the names of the modules in github.com/HobbitLong/RepDistiller's resnetv2.py, with "_"
for ".".
"""

import functools
from collections.abc import Callable, Sequence

import keras
from keras import layers

from models.architectures.blocks import (
    basic_block,
    batch_normalization,
    classifier,
    conv_bn,
    convolution,
    feature,
    residual_stages,
    residual_sum,
)
from stkd_keras.errors import InputError

_WIDTHS = (64, 128, 256, 512)
_STRIDES_OF_STEM = {32: 1, 64: 2}


def _resnet(
    block: Callable, num_blocks: Sequence[int], images, num_classes: int, *, stem: int = 32
) -> keras.KerasTensor:
    """Returns the logits; `stem` is 32, or 64 to halve larger images in the first layer."""
    if not isinstance(stem, int) or stem not in _STRIDES_OF_STEM:
        raise InputError(f"stem is {stem!r}; expected 32 or 64, the height and width of the images")
    x = convolution(images, _WIDTHS[0], "conv1", strides=_STRIDES_OF_STEM[stem])
    x = feature(layers.ReLU(name="relu")(batch_normalization(x, "bn1")), "stem")
    return classifier(residual_stages(x, block, _WIDTHS, num_blocks), num_classes, "linear")


def _bottleneck(x, width: int, strides: int, name: str, ended: str | None) -> keras.KerasTensor:
    """A 3x3 convolution between two 1x1 convolutions."""
    y = layers.ReLU(name=f"{name}_relu1")(conv_bn(x, width, name, 1, 1))
    y = layers.ReLU(name=f"{name}_relu2")(conv_bn(y, width, name, 2, strides=strides))
    y = conv_bn(y, 4 * width, name, 3, 1)
    if strides != 1 or x.shape[-1] != 4 * width:
        x = _projection(x, 4 * width, strides, name)
    return residual_sum(y, x, name, ended)


def _projection(x, width: int, strides: int, name: str) -> keras.KerasTensor:
    x = convolution(x, width, f"{name}_shortcut_0", kernel_size=1, strides=strides)
    return batch_normalization(x, f"{name}_shortcut_1")


_basic_block = functools.partial(basic_block, shortcut=_projection)
MODELS = {
    "resnet18": functools.partial(_resnet, _basic_block, (2, 2, 2, 2)),
    "resnet34": functools.partial(_resnet, _basic_block, (3, 4, 6, 3)),
    "resnet50": functools.partial(_resnet, _bottleneck, (3, 4, 6, 3)),
}
