"""PyTorch's layers and residual blocks in Keras, shared by the families."""

from collections.abc import Callable, Sequence

import keras
from keras import layers


def convolution(
    x, width: int, name: str, kernel_size: int = 3, strides: int = 1, use_bias: bool = False
) -> keras.KerasTensor:
    """Convolves (B, H, W, C) with PyTorch's padding of `kernel_size // 2` on each side."""
    x, padding = _padded(x, name, kernel_size, strides)
    return layers.Conv2D(
        width,
        kernel_size,
        strides=strides,
        padding=padding,
        use_bias=use_bias,
        kernel_initializer="he_normal",
        name=name,
    )(x)


def depthwise_convolution(x, name: str, strides: int = 1) -> keras.KerasTensor:
    """Convolves each channel with its own 3x3 kernel."""
    x, padding = _padded(x, name, 3, strides)
    return layers.DepthwiseConv2D(
        3,
        strides=strides,
        padding=padding,
        use_bias=False,
        depthwise_initializer="he_normal",
        name=name,
    )(x)


def batch_normalization(x, name: str, epsilon: float = 1e-5) -> keras.KerasTensor:
    """Applies batch normalization with PyTorch's epsilon and momentum (0.1 there is 0.9 here)."""
    return layers.BatchNormalization(momentum=0.9, epsilon=epsilon, name=name)(x)


def conv_bn(
    x, width: int, block: str, number: int, kernel_size: int = 3, strides: int = 1
) -> keras.KerasTensor:
    """Applies a block's numbered convolution and its batch normalization."""
    x = convolution(x, width, f"{block}_conv{number}", kernel_size, strides)
    return batch_normalization(x, f"{block}_bn{number}")


def feature(x, name: str) -> keras.KerasTensor:
    """Names a tensor so that `models.features` finds it."""
    return layers.Identity(name=name)(x)


def residual_stages(
    x,
    block: Callable[..., keras.KerasTensor],
    widths: Sequence[int],
    num_blocks: Sequence[int],
    first_strides: int = 1,
) -> keras.KerasTensor:
    """Stacks stages of blocks; every stage after the first halves height and width."""
    strides = first_strides
    for stage, (width, count) in enumerate(zip(widths, num_blocks, strict=True), start=1):
        for index in range(count):
            ended = f"stage{stage}" if index == count - 1 else None
            x = block(x, width, strides, f"layer{stage}_{index}", ended)
            strides = 1
        strides = 2
    return x


def basic_block(
    x,
    width: int,
    strides: int,
    name: str,
    ended: str | None,
    shortcut: Callable[..., keras.KerasTensor],
) -> keras.KerasTensor:
    """Two 3x3 convolutions; `shortcut` is applied to x where the block changes its shape."""
    y = layers.ReLU(name=f"{name}_relu1")(conv_bn(x, width, name, 1, strides=strides))
    y = conv_bn(y, width, name, 2)
    if strides != 1 or x.shape[-1] != width:
        x = shortcut(x, width, strides, name)
    return residual_sum(y, x, name, ended)


def residual_sum(x, shortcut, name: str, ended: str | None) -> keras.KerasTensor:
    """Ends a residual block with the sum and ReLU; `ended` names the stage this block ends."""
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    if ended is None:
        return layers.ReLU(name=f"{name}_relu")(x)
    return end_of_stage(x, name, ended)


def end_of_stage(preactivation, name: str, stage: str) -> keras.KerasTensor:
    """Applies a stage's last ReLU; its input and output become features."""
    preactivation = feature(preactivation, f"{stage}_preactivation")
    return feature(layers.ReLU(name=f"{name}_relu")(preactivation), stage)


def classifier(x, num_classes: int, name: str, dropout: float = 0.0) -> keras.KerasTensor:
    """Returns the logits, float32 (B, num_classes), from global average pooling of x."""
    x = layers.GlobalAveragePooling2D(name="embedding")(x)
    if dropout:
        x = layers.Dropout(dropout, name="dropout")(x)
    # The loss needs more than half precision, even under a mixed-precision policy.
    return layers.Dense(num_classes, kernel_initializer="he_normal", dtype="float32", name=name)(x)


def _padded(x, name: str, kernel_size: int, strides: int) -> tuple[keras.KerasTensor, str]:
    """Returns the padded input of a convolution and its `padding` argument."""
    if strides == 1 or kernel_size == 1:
        return x, "same"
    # With a stride, Keras's "same" pads an even image at the bottom and right only.
    return layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x), "valid"
