"""What the families are made of: PyTorch's layers, in Keras."""

import keras
from keras import layers


def convolution(
    x,
    width: int,
    name: str,
    kernel_size: int = 3,
    strides: int = 1,
    use_bias: bool = False,
) -> keras.KerasTensor:
    """A convolution with PyTorch's padding of `kernel_size // 2` a side.

    Args:
        x: float, shape (B, H, W, C).
        width: number of channels to give.
        name: the module's path in PyTorch, "_" for ".".
        kernel_size: height and width of the kernel.
        strides: 1, or 2 to halve height and width (rounding up).
        use_bias: whether a bias is added.
    """
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
    """A 3x3 convolution of each channel by itself; arguments as of `convolution`."""
    x, padding = _padded(x, name, 3, strides)
    return layers.DepthwiseConv2D(
        3,
        strides=strides,
        padding=padding,
        use_bias=False,
        depthwise_initializer="he_normal",
        name=name,
    )(x)


def batch_normalization(x, name: str) -> keras.KerasTensor:
    """Batch normalisation with PyTorch's momentum (0.1 there is 0.9 here) and epsilon."""
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def feature(x, name: str) -> keras.KerasTensor:
    """Gives a tensor the uniform name that `models.features` finds it by."""
    return layers.Identity(name=name)(x)


def residual_sum(x, shortcut, name: str, stage: str | None) -> keras.KerasTensor:
    """ReLU of a sum, which ends a residual block.

    Args:
        x: what the block computed, float, shape (B, H, W, C).
        shortcut: what goes around it, of the same shape.
        name: what the names of the layers start with.
        stage: the name of the stage that this block ends; None where it ends none.
    """
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    if stage is None:
        return layers.ReLU(name=f"{name}_relu")(x)
    return end_of_stage(x, name, stage)


def end_of_stage(preactivation, name: str, stage: str) -> keras.KerasTensor:
    """A stage's last ReLU, with what goes into it and what comes out of it as features."""
    preactivation = feature(preactivation, f"{stage}_preactivation")
    return feature(layers.ReLU(name=f"{name}_relu")(preactivation), stage)


def classifier(x, num_classes: int, name: str) -> keras.KerasTensor:
    """Global average pooling, the embedding, and the logits, float32, shape (B, num_classes)."""
    x = layers.GlobalAveragePooling2D(name="embedding")(x)
    # Float32 whatever the policy: the loss needs more than half precision of the logits.
    return layers.Dense(num_classes, kernel_initializer="he_normal", dtype="float32", name=name)(x)


def _padded(x, name: str, kernel_size: int, strides: int) -> tuple[keras.KerasTensor, str]:
    """Returns what a convolution is applied to, and its own padding."""
    if strides == 1 or kernel_size == 1:
        return x, "same"
    # With a stride, Keras's "same" pads an even image at the bottom and right only.
    return layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x), "valid"
