"""MobileNetV2 for images of 32 pixels or for photographs, at half the width by default.

Inverted residuals: 1x1 convolutions around a depthwise one; Sandler et al., "MobileNetV2: Inverted
Residuals and Linear Bottlenecks" (arXiv 1801.04381), table 2, with a smaller stride unless
`output_stride` is 32, and ReLU in place of ReLU6.

Layers have the names of the modules in github.com/HobbitLong/RepDistiller's mobilenetv2.py, with
"_" for ".".
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

from models.architectures.blocks import (
    batch_normalization,
    classifier,
    convolution,
    depthwise_convolution,
    feature,
)
from stkd_keras.errors import InputError

# Expansion, channels at width 1, blocks, strides of the first block.
_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_ENDS_STAGE = {1: "stage1", 2: "stage2", 4: "stage3", 6: "stage4"}


def mobilenet_v2(
    images: keras.KerasTensor, num_classes: int, *, width: float = 0.5, output_stride: int = 16
) -> keras.KerasTensor:
    """Returns the logits; `width` scales the channels, but never narrows the last convolution.

    The last feature map is smaller than the images by `output_stride`: 32 as published, or 16,
    which needs three times the multiply-adds.
    """
    if output_stride not in (16, 32):
        raise InputError(f"output_stride is {output_stride!r}; expected 16, or 32 for photographs")
    if not isinstance(width, int | float) or not 1 / 16 <= width < float("inf"):
        raise InputError(f"width is {width!r}; expected a number of at least 1/16, such as 0.5")
    x = feature(_convolution(images, int(32 * width), "conv1", strides=2), "stem")
    for group, (expansion, channels, num_blocks, strides) in enumerate(_GROUPS):
        if group == 1:
            strides = output_stride // 16
        for block in range(num_blocks):
            first_strides = strides if block == 0 else 1
            name = f"blocks_{group}_{block}"
            x = _inverted_residual(x, int(channels * width), expansion, first_strides, name)
        if group in _ENDS_STAGE:
            # The blocks end without an activation, so both names mean the same tensor.
            x = feature(x, f"{_ENDS_STAGE[group]}_preactivation")
            x = feature(x, _ENDS_STAGE[group])
    x = _convolution(x, int(1280 * max(width, 1.0)), "conv2", kernel_size=1)
    return classifier(x, num_classes, "classifier_0")


MODELS = {"mobilenet_v2": mobilenet_v2}
ALIASES = {
    "mobilenetv2": "mobilenet_v2",
    "mobile_half": "mobilenet_v2:width=0.5",
    "mobile_full": "mobilenet_v2:width=1.0",
}


def options_from_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a width that gives the channels of a PyTorch state dict."""
    channels = {"conv1.0.weight": 32, "conv2.0.weight": 1280}
    channels |= {f"blocks.{n}.0.conv.6.weight": group[1] for n, group in enumerate(_GROUPS)}
    # The last convolution has 1,280 channels at all widths below 1.
    widths = [
        len(tensor) / channels[name]
        for name, tensor in state.items()
        if name in channels and np.ndim(tensor) and len(tensor) != 1280
    ]
    # Slightly more, so that rounding down doesn't lose a channel.
    return {"width": max(widths) + 1e-9} if widths else {}


def _inverted_residual(x, width: int, expansion: int, strides: int, name: str) -> keras.KerasTensor:
    """A depthwise convolution of expansion * C channels between two 1x1 convolutions."""
    y = _convolution(x, expansion * x.shape[-1], f"{name}_conv", kernel_size=1)
    y = depthwise_convolution(y, f"{name}_conv_3", strides)
    y = layers.ReLU(name=f"{name}_conv_5")(batch_normalization(y, f"{name}_conv_4"))
    y = batch_normalization(convolution(y, width, f"{name}_conv_6", 1), f"{name}_conv_7")
    if strides == 1 and x.shape[-1] == width:
        return layers.Add(name=f"{name}_add")([x, y])
    return y


def _convolution(
    x, width: int, name: str, kernel_size: int = 3, strides: int = 1
) -> keras.KerasTensor:
    """Convolution, normalization and ReLU."""
    x = convolution(x, width, f"{name}_0", kernel_size, strides)
    return layers.ReLU(name=f"{name}_2")(batch_normalization(x, f"{name}_1"))
