"""EfficientNet-Lite 0 to 2: EfficientNets without squeeze-and-excitation, made for INT8.

Inverted residuals with ReLU6; Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional
Neural Networks" (arXiv 1905.11946), table 1. The stem, the last convolution and the depth of the
first and last stage are the same in all sizes (github.com/tensorflow/tpu,
models/official/efficientnet/lite).

Layers have the names of the modules in github.com/lukemelas/EfficientNet-PyTorch, with "_" for "."
and without the underscores that those begin with.
"""

import functools
import math
import re

import keras
from keras import layers

from models.architectures.blocks import batch_normalization, classifier, feature

# Expansion, channels at width 1, blocks at depth 1, strides of the first block, kernel size.
_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
_ENDS_STAGE = {1: "stage1", 2: "stage2", 4: "stage3", 6: "stage4"}


def module_name(layer: str) -> str:
    """Returns the PyTorch module of a layer: "_blocks.0._expand_conv" of "blocks_0_expand_conv"."""
    return "_" + re.sub(r"^blocks_(\d+)_", r"blocks.\1._", layer)


def _efficientnet_lite(
    width: float, depth: float, dropout: float, images: keras.KerasTensor, num_classes: int
) -> keras.KerasTensor:
    x = feature(_convolution(images, 32, "conv_stem", "bn0", 3, strides=2), "stem")
    index = 0
    for stage, (expansion, channels, num_blocks, strides, kernel_size) in enumerate(_STAGES):
        is_scaled = stage not in (0, len(_STAGES) - 1)
        for block in range(math.ceil(num_blocks * depth) if is_scaled else num_blocks):
            x = _inverted_residual(
                x, _rounded(channels * width), expansion, strides if block == 0 else 1,
                kernel_size, f"blocks_{index}",
            )  # fmt: skip
            index += 1
        if stage in _ENDS_STAGE:
            # The blocks end without an activation, so both names mean the same tensor.
            x = feature(x, f"{_ENDS_STAGE[stage]}_preactivation")
            x = feature(x, _ENDS_STAGE[stage])
    return classifier(_convolution(x, 1280, "conv_head", "bn1"), num_classes, "fc", dropout)


def _rounded(channels: float) -> int:
    """Rounds to a multiple of 8, down by at most a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def _inverted_residual(
    x, width: int, expansion: int, strides: int, kernel_size: int, name: str
) -> keras.KerasTensor:
    """A depthwise convolution of expansion * C channels between two 1x1 convolutions."""
    y = x
    if expansion != 1:
        y = _convolution(y, expansion * x.shape[-1], f"{name}_expand_conv", f"{name}_bn0")
    y = layers.DepthwiseConv2D(
        kernel_size, strides=strides, padding="same", use_bias=False,
        depthwise_initializer="he_normal", name=f"{name}_depthwise_conv",
    )(y)  # fmt: skip
    y = _relu6(batch_normalization(y, f"{name}_bn1", epsilon=1e-3), f"{name}_bn1")
    y = _convolution(y, width, f"{name}_project_conv", f"{name}_bn2", activation=False)
    if strides == 1 and x.shape[-1] == width:
        return layers.Add(name=f"{name}_add")([x, y])
    return y


def _convolution(
    x, width: int, name: str, normalization: str, kernel_size=1, strides=1, activation=True
) -> keras.KerasTensor:
    """Convolution with TensorFlow's padding, normalization and ReLU6."""
    x = layers.Conv2D(
        width, kernel_size, strides=strides, padding="same", use_bias=False,
        kernel_initializer="he_normal", name=name,
    )(x)  # fmt: skip
    x = batch_normalization(x, normalization, epsilon=1e-3)
    return _relu6(x, normalization) if activation else x


def _relu6(x, normalization: str) -> keras.KerasTensor:
    return layers.ReLU(6.0, name=f"{normalization}_relu")(x)


MODELS = {
    "efficientnet_lite0": functools.partial(_efficientnet_lite, 1.0, 1.0, 0.2),
    "efficientnet_lite1": functools.partial(_efficientnet_lite, 1.0, 1.1, 0.2),
    "efficientnet_lite2": functools.partial(_efficientnet_lite, 1.1, 1.2, 0.3),
}
