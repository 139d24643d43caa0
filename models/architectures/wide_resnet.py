"""Wide ResNets: pre-activation residual networks with few but wide layers.

Three stages, each of (depth - 4) / 6 blocks, with 16, 32 and 64 channels times the width;
Zagoruyko and Komodakis, "Wide Residual Networks" (arXiv 1605.07146), table 1, without dropout.

Layers have the names of the modules in github.com/HobbitLong/RepDistiller's wrn.py, with "_" for
".".
"""

import functools

import keras
from keras import layers

from models.architectures.blocks import batch_normalization, classifier, convolution, feature


def _wide_resnet(
    depth: int, width: int, images: keras.KerasTensor, num_classes: int
) -> keras.KerasTensor:
    x = feature(convolution(images, 16, "conv1"), "stem")
    ended = None
    for stage, channels in enumerate((16 * width, 32 * width, 64 * width), start=1):
        for block in range((depth - 4) // 6):
            strides = 2 if stage > 1 and block == 0 else 1
            x = _block(x, channels, strides, f"block{stage}_layer_{block}", ended)
            ended = None
        ended = f"stage{stage}"
        x = feature(x, ended)
    return classifier(_normalized(x, "bn1", "relu", ended), num_classes, "fc")


MODELS = {
    f"wrn_{depth}_{width}": functools.partial(_wide_resnet, depth, width)
    for depth, width in ((16, 1), (16, 2), (40, 1), (40, 2), (28, 10))
}


def _block(x, width: int, strides: int, name: str, ended: str | None) -> keras.KerasTensor:
    """Normalization, ReLU and a 3x3 convolution, twice; `ended` names the stage that ends in x."""
    y = _normalized(x, f"{name}_bn1", f"{name}_relu1", ended)
    shortcut = x
    if x.shape[-1] != width:
        shortcut = convolution(y, width, f"{name}_convShortcut", kernel_size=1, strides=strides)
    y = convolution(y, width, f"{name}_conv1", strides=strides)
    y = _normalized(y, f"{name}_bn2", f"{name}_relu2", None)
    y = convolution(y, width, f"{name}_conv2")
    return layers.Add(name=f"{name}_add")([shortcut, y])


def _normalized(x, norm_name: str, relu_name: str, ended: str | None) -> keras.KerasTensor:
    x = batch_normalization(x, norm_name)
    if ended is not None:
        x = feature(x, f"{ended}_preactivation")
    return layers.ReLU(name=relu_name)(x)
