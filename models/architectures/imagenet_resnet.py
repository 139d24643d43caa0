"""ResNet-18, -34 and -50: the ResNets for ImageNet of He et al., with a stem for small images.

Four stages of 64, 128, 256 and 512 channels (of ResNet-50 four times as many behind each
bottleneck); He et al., "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), table 1.
ImageNet's stem, which divides height and width by four, is replaced by a 3x3 convolution.

Layers are named after the modules of github.com/HobbitLong/RepDistiller's resnetv2.py, "_" for ".".
"""

from collections.abc import Callable

import keras
from keras import layers

from models.architectures.blocks import (
    batch_normalization,
    classifier,
    convolution,
    feature,
    residual_sum,
)
from stkd_keras.errors import InputError

_WIDTHS = (64, 128, 256, 512)
_STRIDES_OF_STEM = {32: 1, 64: 2}


def _of(block: Callable, num_blocks: tuple[int, int, int, int]) -> Callable:
    """Returns the function that the registry holds for one kind and number of blocks."""

    def resnet(images: keras.KerasTensor, num_classes: int, *, stem: int = 32) -> keras.KerasTensor:
        """Builds the network on top of normalised images.

        Args:
            images: float, shape (B, H, W, C), normalised.
            num_classes: number of logits.
            stem: height and width of the images that the first convolution is meant for: 32 keeps
                them (as the bench does, also with images of 64 pixels), 64 halves them, for about
                a quarter of the cost. The weights have the same shapes.

        Returns:
            The logits, float32, shape (B, num_classes).

        Raises:
            InputError: if the stem isn't one of the two.
        """
        if not isinstance(stem, int) or stem not in _STRIDES_OF_STEM:
            raise InputError(f"stem is {stem!r}; expected 32 or 64, for images of so many pixels")
        x = convolution(images, _WIDTHS[0], "conv1", strides=_STRIDES_OF_STEM[stem])
        x = batch_normalization(x, "bn1")
        x = feature(layers.ReLU(name="relu")(x), "stem")
        for stage, (width, count) in enumerate(zip(_WIDTHS, num_blocks, strict=True), start=1):
            for index in range(count):
                x = block(
                    x,
                    width,
                    2 if stage > 1 and index == 0 else 1,
                    f"layer{stage}_{index}",
                    f"stage{stage}" if index == count - 1 else None,
                )
        return classifier(x, num_classes, "linear")

    return resnet


def _basic_block(x, width: int, strides: int, name: str, stage: str | None) -> keras.KerasTensor:
    """Two 3x3 convolutions and the shortcut around them.

    Args:
        x: float, shape (B, H, W, C).
        width: number of channels to give.
        strides: 1, or 2 to halve height and width (rounding up).
        name: what the names of the block's layers start with.
        stage: as in `residual_sum`.
    """
    y = batch_normalization(convolution(x, width, f"{name}_conv1", strides=strides), f"{name}_bn1")
    y = layers.ReLU(name=f"{name}_relu1")(y)
    y = batch_normalization(convolution(y, width, f"{name}_conv2"), f"{name}_bn2")
    return residual_sum(y, _shortcut(x, width, strides, name), name, stage)


def _bottleneck(x, width: int, strides: int, name: str, stage: str | None) -> keras.KerasTensor:
    """A 3x3 convolution between two of 1x1, and the shortcut; arguments as of `_basic_block`."""
    y = batch_normalization(convolution(x, width, f"{name}_conv1", 1), f"{name}_bn1")
    y = layers.ReLU(name=f"{name}_relu1")(y)
    y = batch_normalization(convolution(y, width, f"{name}_conv2", strides=strides), f"{name}_bn2")
    y = layers.ReLU(name=f"{name}_relu2")(y)
    y = batch_normalization(convolution(y, 4 * width, f"{name}_conv3", 1), f"{name}_bn3")
    return residual_sum(y, _shortcut(x, 4 * width, strides, name), name, stage)


def _shortcut(x, width: int, strides: int, name: str) -> keras.KerasTensor:
    """The block's input, projected where the block changes the shape."""
    if strides == 1 and x.shape[-1] == width:
        return x
    x = convolution(x, width, f"{name}_shortcut_0", kernel_size=1, strides=strides)
    return batch_normalization(x, f"{name}_shortcut_1")


MODELS = {
    "resnet18": _of(_basic_block, (2, 2, 2, 2)),
    "resnet34": _of(_basic_block, (3, 4, 6, 3)),
    "resnet50": _of(_bottleneck, (3, 4, 6, 3)),
}
ALIASES = {"ResNet18": "resnet18", "ResNet34": "resnet34", "ResNet50": "resnet50"}
