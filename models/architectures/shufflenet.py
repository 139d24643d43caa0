"""ShuffleNetV1 and V2, with a stem for images of 32 pixels.

Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices"
(arXiv 1707.01083), table 1 with three groups; Ma et al., "ShuffleNet V2: Practical Guidelines for
Efficient CNN Architecture Design" (arXiv 1807.11164), table 5 at width 1. The stem is a 1x1
convolution, and V1's bottlenecks are a quarter as wide as what each adds (not as what it gives).

Layers are named after the modules of github.com/HobbitLong/RepDistiller's ShuffleNetv1.py and
ShuffleNetv2.py, "_" for ".".
"""

import keras
from keras import layers

from models.architectures.blocks import (
    batch_normalization,
    classifier,
    convolution,
    depthwise_convolution,
    feature,
    residual_sum,
)
from stkd_keras.errors import InputError

_STEM_WIDTH = 24
_GROUPS = 3


def shufflenet_v1(images: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    """Builds the network on top of normalised images.

    Args:
        images: float, shape (B, H, W, C), normalised; H and W must be known.
        num_classes: number of logits.

    Returns:
        The logits, float32, shape (B, num_classes).

    Raises:
        InputError: if height or width is None.
    """
    x = _stem(images, "shufflenet_v1")
    for stage, (width, num_blocks) in enumerate(((240, 4), (480, 8), (960, 4)), start=1):
        for block in range(num_blocks):
            name = f"layer{stage}_{block}"
            ended = f"stage{stage}" if block == num_blocks - 1 else None
            x = _block_v1(x, width, 2 if block == 0 else 1, name, ended)
    return classifier(x, num_classes, "linear")


def shufflenet_v2(images: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    """Builds the network on top of normalised images; arguments as of `shufflenet_v1`."""
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
    "ShuffleV1": "shufflenet_v1",
    "ShuffleV2": "shufflenet_v2",
    "ShuffleNetV1": "shufflenet_v1",
    "ShuffleNetV2": "shufflenet_v2",
}


def _stem(images, name: str) -> keras.KerasTensor:
    if None in images.shape[1:3]:
        raise InputError(
            f"{name} is built for images of {images.shape[1:3]}; expected height and width as "
            "numbers, since its channels are shuffled by reshaping"
        )
    x = convolution(images, _STEM_WIDTH, "conv1", kernel_size=1)
    return feature(_activated(x, "bn1"), "stem")


def _block_v1(x, width: int, strides: int, name: str, ended: str | None) -> keras.KerasTensor:
    """Grouped 1x1 convolutions around a depthwise one; the input is added, or joined when pooled.

    Args:
        x: float, shape (B, H, W, C).
        width: number of channels to give.
        strides: 1, or 2 to halve height and width (rounding up).
        name: what the names of the block's layers start with.
        ended: the name of the stage that this block ends; None where it ends none.
    """
    added = width - x.shape[-1] if strides == 2 else width
    groups = 1 if x.shape[-1] == _STEM_WIDTH else _GROUPS
    y = _activated(_grouped_convolution(x, added // 4, groups, f"{name}_conv1"), f"{name}_bn1")
    y = _shuffled(y, groups, f"{name}_shuffle1")
    y = depthwise_convolution(y, f"{name}_conv2", strides)
    y = _activated(y, f"{name}_bn2")
    y = _grouped_convolution(y, added, _GROUPS, f"{name}_conv3")
    y = batch_normalization(y, f"{name}_bn3")
    if strides == 1:
        return residual_sum(y, x, name, ended)
    # PyTorch's average counts the padding.
    pooled = layers.ZeroPadding2D(1, name=f"{name}_shortcut_pad")(x)
    pooled = layers.AveragePooling2D(3, strides=2, name=f"{name}_shortcut_pool")(pooled)
    y = layers.Concatenate(name=f"{name}_concatenate")([y, pooled])
    return layers.ReLU(name=f"{name}_relu")(y)


def _down_block_v2(x, width: int, name: str) -> keras.KerasTensor:
    """Halves height and width in two branches of half the channels each."""
    half = width // 2
    left = batch_normalization(depthwise_convolution(x, f"{name}_conv1", 2), f"{name}_bn1")
    left = _activated(convolution(left, half, f"{name}_conv2", 1), f"{name}_bn2")
    right = _activated(convolution(x, half, f"{name}_conv3", 1), f"{name}_bn3")
    right = batch_normalization(depthwise_convolution(right, f"{name}_conv4", 2), f"{name}_bn4")
    right = _activated(convolution(right, half, f"{name}_conv5", 1), f"{name}_bn5")
    x = layers.Concatenate(name=f"{name}_concatenate")([left, right])
    return _shuffled(x, 2, f"{name}_shuffle")


def _block_v2(x, name: str, ended: str | None) -> keras.KerasTensor:
    """Changes half the channels and leaves the other; arguments as of `_block_v1`."""
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
    # The kept half comes from a ReLU, so that another one leaves it alone. The bench shuffles
    # the channels of the stage, and not those before the activation.
    y = feature(join([kept, y]), f"{ended}_preactivation")
    y = layers.ReLU(name=f"{name}_relu")(y)
    return feature(_shuffled(y, 2, f"{name}_shuffle"), ended)


def _activated(x, name: str) -> keras.KerasTensor:
    """Normalisation and ReLU."""
    return layers.ReLU(name=f"{name}_relu")(batch_normalization(x, name))


def _grouped_convolution(x, width: int, groups: int, name: str) -> keras.KerasTensor:
    """A 1x1 convolution of each group of channels by itself."""
    if groups == 1:
        return convolution(x, width, name, kernel_size=1)
    # Keras's Conv2D compiles groups by XLA, whose gradient takes several times as long on a CPU.
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
    """Takes the channels of the groups by turns."""
    if groups == 1:
        return x
    height, width, channels = x.shape[1:]
    x = layers.Reshape((height, width, groups, channels // groups), name=f"{name}_split")(x)
    x = layers.Permute((1, 2, 4, 3), name=f"{name}_permute")(x)
    return layers.Reshape((height, width, channels), name=f"{name}_join")(x)


def _channels(x, start: int, end: int, name: str) -> keras.KerasTensor:
    """Channels from start to end."""
    # Cropping the "width" of an image that is said to be channels first crops the channels of one
    # that isn't. It loads in plain Keras, a lambda doesn't.
    cropping = ((0, 0), (start, x.shape[-1] - end))
    return layers.Cropping2D(cropping, data_format="channels_first", name=name)(x)
