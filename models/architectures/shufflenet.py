"""ShuffleNetV1 and V2, with a stem for images of 32 pixels.

Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices"
(arXiv 1707.01083), table 1 with three groups; Ma et al., "ShuffleNet V2: Practical Guidelines for
Efficient CNN Architecture Design" (arXiv 1807.11164), table 5 at width 1. The stem is a 1x1
convolution. V1's bottlenecks have a quarter of the channels that their block computes, which
in a downsampling block is less than a quarter of its output.

Layers have the names of the modules in github.com/HobbitLong/RepDistiller's ShuffleNetv1.py and
ShuffleNetv2.py, with "_" for ".".
"""

import keras
from keras import layers

from models.architectures.blocks import (
    batch_normalization,
    classifier,
    convolution,
    depthwise_convolution,
    feature,
    residual_stages,
    residual_sum,
)
from stkd_keras.errors import InputError

_STEM_WIDTH = 24
_GROUPS = 3


def shufflenet_v1(images: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    """Returns the logits; height and width must be known."""
    x = _stem(images, "shufflenet_v1")
    x = residual_stages(x, _block_v1, (240, 480, 960), (4, 8, 4), first_strides=2)
    return classifier(x, num_classes, "linear")


def shufflenet_v2(images: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    """Returns the logits; height and width must be known."""
    x = _stem(images, "shufflenet_v2")
    for stage, (width, num_blocks) in enumerate(((116, 3), (232, 7), (464, 3)), start=1):
        x = _down_block_v2(x, width, f"layer{stage}_0")
        for block in range(1, num_blocks + 1):
            ended = f"stage{stage}" if block == num_blocks else None
            x = _block_v2(x, f"layer{stage}_{block}", ended)
    x = _activated(convolution(x, 1024, "conv2", kernel_size=1), "bn2")
    return classifier(x, num_classes, "linear")


MODELS = {"shufflenet_v1": shufflenet_v1, "shufflenet_v2": shufflenet_v2}
ALIASES = {
    "shufflev1": "shufflenet_v1",
    "shufflev2": "shufflenet_v2",
    "shufflenetv1": "shufflenet_v1",
    "shufflenetv2": "shufflenet_v2",
}


def _stem(images, name: str) -> keras.KerasTensor:
    if None in images.shape[1:3]:
        raise InputError(
            f"{name} is built for images of {images.shape[1:3]}; expected height and width as "
            "numbers, because channels are shuffled by reshaping"
        )
    x = convolution(images, _STEM_WIDTH, "conv1", kernel_size=1)
    return feature(_activated(x, "bn1"), "stem")


def _block_v1(x, width: int, strides: int, name: str, ended: str | None) -> keras.KerasTensor:
    """Grouped 1x1 convolutions around a depthwise one; `ended` names the stage this block ends."""
    computed = width - x.shape[-1] if strides == 2 else width
    groups = 1 if x.shape[-1] == _STEM_WIDTH else _GROUPS
    y = _activated(_grouped_convolution(x, computed // 4, groups, f"{name}_conv1"), f"{name}_bn1")
    y = _shuffled(y, groups, f"{name}_shuffle1")
    y = _activated(depthwise_convolution(y, f"{name}_conv2", strides), f"{name}_bn2")
    y = _grouped_convolution(y, computed, _GROUPS, f"{name}_conv3")
    y = batch_normalization(y, f"{name}_bn3")
    if strides == 1:
        return residual_sum(y, x, name, ended)
    # PyTorch's average includes the padding.
    pooled = layers.ZeroPadding2D(1, name=f"{name}_shortcut_pad")(x)
    pooled = layers.AveragePooling2D(3, strides=2, name=f"{name}_shortcut_pool")(pooled)
    y = layers.Concatenate(name=f"{name}_concatenate")([y, pooled])
    return layers.ReLU(name=f"{name}_relu")(y)


def _down_block_v2(x, width: int, name: str) -> keras.KerasTensor:
    """Halves height and width in two branches with half the channels each."""
    half = width // 2
    left = batch_normalization(depthwise_convolution(x, f"{name}_conv1", 2), f"{name}_bn1")
    left = _activated(convolution(left, half, f"{name}_conv2", 1), f"{name}_bn2")
    right = _activated(convolution(x, half, f"{name}_conv3", 1), f"{name}_bn3")
    right = batch_normalization(depthwise_convolution(right, f"{name}_conv4", 2), f"{name}_bn4")
    right = _activated(convolution(right, half, f"{name}_conv5", 1), f"{name}_bn5")
    x = layers.Concatenate(name=f"{name}_concatenate")([left, right])
    return _shuffled(x, 2, f"{name}_shuffle")


def _block_v2(x, name: str, ended: str | None) -> keras.KerasTensor:
    """Changes half of the channels; `ended` names the stage this block ends."""
    half = x.shape[-1] // 2
    kept = _channels(x, 0, half, f"{name}_kept")
    y = _channels(x, half, x.shape[-1], f"{name}_changed")
    y = _activated(convolution(y, half, f"{name}_conv1", 1), f"{name}_bn1")
    y = batch_normalization(depthwise_convolution(y, f"{name}_conv2"), f"{name}_bn2")
    y = batch_normalization(convolution(y, half, f"{name}_conv3", 1), f"{name}_bn3")
    join = layers.Concatenate(name=f"{name}_concatenate")
    if ended is None:
        y = join([kept, layers.ReLU(name=f"{name}_relu")(y)])
        return _shuffled(y, 2, f"{name}_shuffle")
    # The kept half comes from a ReLU, so a second ReLU doesn't change it. RepDistiller shuffles
    # the channels of the stage, but not those before the activation.
    y = feature(join([kept, y]), f"{ended}_preactivation")
    y = layers.ReLU(name=f"{name}_relu")(y)
    return feature(_shuffled(y, 2, f"{name}_shuffle"), ended)


def _activated(x, name: str) -> keras.KerasTensor:
    """Normalization and ReLU."""
    return layers.ReLU(name=f"{name}_relu")(batch_normalization(x, name))


def _grouped_convolution(x, width: int, groups: int, name: str) -> keras.KerasTensor:
    """Convolves each group of channels with its own 1x1 kernel."""
    if groups == 1:
        return convolution(x, width, name, kernel_size=1)
    # Conv2D(groups=) is compiled by XLA, where its gradient is several times slower on a CPU.
    height, breadth, channels = x.shape[1:]
    per_group = channels // groups
    x = layers.Reshape((height, breadth, groups, per_group), name=f"{name}_split")(x)
    x = layers.EinsumDense(
        "bhwgi,gio->bhwgo",
        (height, breadth, groups, width // groups),
        kernel_initializer=keras.initializers.RandomNormal(stddev=(2 / per_group) ** 0.5),
        name=name,
    )(x)
    return layers.Reshape((height, breadth, width), name=f"{name}_join")(x)


def _shuffled(x, groups: int, name: str) -> keras.KerasTensor:
    """Interleaves the channels of the groups."""
    if groups == 1:
        return x
    height, width, channels = x.shape[1:]
    x = layers.Reshape((height, width, groups, channels // groups), name=f"{name}_split")(x)
    x = layers.Permute((1, 2, 4, 3), name=f"{name}_permute")(x)
    return layers.Reshape((height, width, channels), name=f"{name}_join")(x)


def _channels(x, start: int, end: int, name: str) -> keras.KerasTensor:
    # Loads in plain Keras, where a lambda does not: cropping the "width" of an image declared
    # channels first crops its channels.
    cropping = ((0, 0), (start, x.shape[-1] - end))
    return layers.Cropping2D(cropping, data_format="channels_first", name=name)(x)
