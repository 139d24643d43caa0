"""The ResNets for CIFAR of He et al., with either of their shortcuts.

Three stages of 16, 32 and 64 channels, each of (depth - 2) / 6 basic blocks; He et al., "Deep
Residual Learning for Image Recognition" (arXiv 1512.03385), section 4.2. Trainable parameters for
32x32x3 inputs (batch normalisation's moving statistics not counted):

| name      | identity, 10 classes | projection, 100 classes |
|-----------|----------------------|-------------------------|
| resnet8   |               75,290 |                  83,892 |
| resnet14  |              172,506 |                 181,108 |
| resnet20  |              269,722 |                 278,324 |
| resnet32  |              464,154 |                 472,756 |
| resnet44  |              658,586 |                 667,188 |
| resnet56  |              853,018 |                 861,620 |
| resnet110 |            1,727,962 |               1,736,564 |

Layers are named after the modules of the PyTorch implementations, "_" for ".":
github.com/akamaster/pytorch_resnet_cifar10 ("identity") and github.com/HobbitLong/RepDistiller
("projection").
"""

import keras
from keras import layers

from stkd_keras.errors import unknown_name

DEPTHS = (8, 14, 20, 32, 44, 56, 110)
WIDTHS = (16, 32, 64)


def _of_depth(depth: int):
    """Returns the function that the registry holds for one depth."""

    def resnet(
        images: keras.KerasTensor, num_classes: int, *, shortcut: str = "identity"
    ) -> keras.KerasTensor:
        """Builds the network on top of normalised images.

        Args:
            images: float, shape (B, H, W, C), normalised.
            num_classes: number of logits.
            shortcut: how a shortcut goes from one stage to the next: "identity" takes every second
                pixel and pads with channels of zeros (no parameters; He's option A),
                "projection" is a 1x1 convolution with batch normalisation (option B).

        Returns:
            The logits, float32, shape (B, num_classes).

        Raises:
            InputError: if the shortcut isn't one of the two.
        """
        if not isinstance(shortcut, str) or shortcut not in _SHORTCUTS:
            raise unknown_name("shortcut", str(shortcut), _SHORTCUTS)
        x = layers.ReLU(name="relu")(_convolution_and_norm(images, WIDTHS[0], "conv1", "bn1"))
        for stage, width in enumerate(WIDTHS, start=1):
            for block in range((depth - 2) // 6):
                stride = 2 if stage > 1 and block == 0 else 1
                x = _basic_block(x, width, stride, _SHORTCUTS[shortcut], f"layer{stage}_{block}")
        x = layers.GlobalAveragePooling2D(name="avgpool")(x)
        # Float32 whatever the policy: the loss needs more than half precision of the logits.
        return layers.Dense(
            num_classes, kernel_initializer="he_normal", dtype="float32", name="fc"
        )(x)

    return resnet


MODELS = {f"resnet{depth}": _of_depth(depth) for depth in DEPTHS}


def _basic_block(x, width: int, stride: int, shortcut, name: str) -> keras.KerasTensor:
    """Two 3x3 convolutions and the shortcut around them.

    Args:
        x: float, shape (B, H, W, C).
        width: number of channels to give.
        stride: 1, or 2 to halve height and width (rounding up).
        shortcut: what makes x fit where the stride isn't 1, one of `_SHORTCUTS`' values.
        name: what the names of the block's layers start with.
    """
    y = _convolution_and_norm(x, width, f"{name}_conv1", f"{name}_bn1", strides=stride)
    y = layers.ReLU(name=f"{name}_relu1")(y)
    y = _convolution_and_norm(y, width, f"{name}_conv2", f"{name}_bn2")
    if stride != 1:
        x = shortcut(x, width, stride, name)
    return layers.ReLU(name=f"{name}_relu2")(layers.Add(name=f"{name}_add")([y, x]))


def _identity_shortcut(x, width: int, stride: int, name: str) -> keras.KerasTensor:
    """Every second pixel, and as many channels of zeros before as after."""
    # Pooling over one pixel only subsamples; padding the "width" of an image that is said to be
    # channels first pads the channels of one that isn't. Both load in plain Keras, a lambda not.
    x = layers.AveragePooling2D(1, strides=stride, name=f"{name}_shortcut_subsample")(x)
    padding = (width - x.shape[-1]) // 2
    return layers.ZeroPadding2D(
        ((0, 0), (padding, padding)), data_format="channels_first", name=f"{name}_shortcut_pad"
    )(x)


def _projection_shortcut(x, width: int, stride: int, name: str) -> keras.KerasTensor:
    """A 1x1 convolution with batch normalisation."""
    return _convolution_and_norm(
        x, width, f"{name}_downsample_0", f"{name}_downsample_1", kernel_size=1, strides=stride
    )


_SHORTCUTS = {"identity": _identity_shortcut, "projection": _projection_shortcut}


def _convolution_and_norm(
    x, width: int, name: str, norm_name: str, kernel_size: int = 3, strides: int = 1
) -> keras.KerasTensor:
    """A convolution with PyTorch's padding of `kernel_size // 2` a side, then normalisation."""
    padding = "same"
    if strides > 1 and kernel_size > 1:
        # With a stride, Keras's "same" pads an even image at the bottom and right only.
        x = layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
        padding = "valid"
    x = layers.Conv2D(
        width,
        kernel_size,
        strides=strides,
        padding=padding,
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=norm_name)(x)
