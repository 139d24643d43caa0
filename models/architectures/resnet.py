"""The ResNets for CIFAR of He et al., with either of their shortcuts, and their wide versions.

Three stages, each of (depth - 2) / 6 basic blocks; He et al., "Deep Residual Learning for Image
Recognition" (arXiv 1512.03385), section 4.2. 16, 32 and 64 channels; of the "x4" four times as
many behind a first convolution of 32 (github.com/HobbitLong/RepDistiller).

Layers are named after the modules of the PyTorch implementations, "_" for ".":
github.com/akamaster/pytorch_resnet_cifar10 ("identity") and RepDistiller ("projection").
"""

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import layers

from models.architectures.blocks import (
    batch_normalization,
    classifier,
    convolution,
    feature,
    residual_sum,
)
from stkd_keras.errors import unknown_name

_NARROW = (16, 16, 32, 64)
_WIDE = (32, 64, 128, 256)


def _of(depth: int, widths: tuple[int, int, int, int], default_shortcut: str) -> Callable:
    """Returns the function that the registry holds for one depth and width."""

    def resnet(
        images: keras.KerasTensor, num_classes: int, *, shortcut: str = default_shortcut
    ) -> keras.KerasTensor:
        """Builds the network on top of normalised images.

        Args:
            images: float, shape (B, H, W, C), normalised.
            num_classes: number of logits.
            shortcut: what goes around a block that changes the shape: "identity" takes every second
                pixel and pads with channels of zeros (no parameters; He's option A),
                "projection" is a 1x1 convolution with batch normalisation (option B).

        Returns:
            The logits, float32, shape (B, num_classes).

        Raises:
            InputError: if the shortcut isn't one of the two.
        """
        if not isinstance(shortcut, str) or shortcut not in _SHORTCUTS:
            raise unknown_name("shortcut", str(shortcut), _SHORTCUTS)
        x = batch_normalization(convolution(images, widths[0], "conv1"), "bn1")
        x = feature(layers.ReLU(name="relu")(x), "stem")
        num_blocks = (depth - 2) // 6
        for stage, width in enumerate(widths[1:], start=1):
            for block in range(num_blocks):
                x = _basic_block(
                    x,
                    width,
                    2 if stage > 1 and block == 0 else 1,
                    _SHORTCUTS[shortcut],
                    f"layer{stage}_{block}",
                    f"stage{stage}" if block == num_blocks - 1 else None,
                )
        return classifier(x, num_classes, "linear" if shortcut == "identity" else "fc")

    return resnet


MODELS = {
    **{f"resnet{depth}": _of(depth, _NARROW, "identity") for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": _of(depth, _WIDE, "projection") for depth in (8, 32)},
}
ALIASES: dict[str, str] = {}


def options_from_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a PyTorch state dict says of the options: weights of shortcuts, or none."""
    projects = any({"downsample", "shortcut"} & set(name.split(".")) for name in state)
    return {"shortcut": "projection" if projects else "identity"}


def _basic_block(
    x, width: int, strides: int, shortcut: Callable, name: str, stage: str | None
) -> keras.KerasTensor:
    """Two 3x3 convolutions and the shortcut around them.

    Args:
        x: float, shape (B, H, W, C).
        width: number of channels to give.
        strides: 1, or 2 to halve height and width (rounding up).
        shortcut: what makes x fit where the shape changes, one of `_SHORTCUTS`' values.
        name: what the names of the block's layers start with.
        stage: as in `residual_sum`.
    """
    y = batch_normalization(convolution(x, width, f"{name}_conv1", strides=strides), f"{name}_bn1")
    y = layers.ReLU(name=f"{name}_relu1")(y)
    y = batch_normalization(convolution(y, width, f"{name}_conv2"), f"{name}_bn2")
    if strides != 1 or x.shape[-1] != width:
        x = shortcut(x, width, strides, name)
    return residual_sum(y, x, name, stage)


def _identity_shortcut(x, width: int, strides: int, name: str) -> keras.KerasTensor:
    """Every second pixel, and as many channels of zeros before as after."""
    # Pooling over one pixel only subsamples; padding the "width" of an image that is said to be
    # channels first pads the channels of one that isn't. Both load in plain Keras, a lambda not.
    x = layers.AveragePooling2D(1, strides=strides, name=f"{name}_shortcut_subsample")(x)
    padding = (width - x.shape[-1]) // 2
    return layers.ZeroPadding2D(
        ((0, 0), (padding, padding)), data_format="channels_first", name=f"{name}_shortcut_pad"
    )(x)


def _projection_shortcut(x, width: int, strides: int, name: str) -> keras.KerasTensor:
    """A 1x1 convolution with batch normalisation."""
    x = convolution(x, width, f"{name}_downsample_0", kernel_size=1, strides=strides)
    return batch_normalization(x, f"{name}_downsample_1")


_SHORTCUTS = {"identity": _identity_shortcut, "projection": _projection_shortcut}
