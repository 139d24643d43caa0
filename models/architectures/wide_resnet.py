"""Wide ResNets: pre-activation residual networks of few but wide layers.

Three stages, each of (depth - 4) / 6 blocks, of 16, 32 and 64 channels times the width; Zagoruyko
and Komodakis, "Wide Residual Networks" (arXiv 1605.07146), table 1. Without dropout, as the bench
has them.

Layers are named after the modules of github.com/HobbitLong/RepDistiller's wrn.py, "_" for ".".
"""

from collections.abc import Callable

import keras
from keras import layers

from models.architectures.blocks import batch_normalization, classifier, convolution, feature


def _of(depth: int, width: int) -> Callable:
    """Returns the function that the registry holds for one depth and width."""

    def wide_resnet(images: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
        """Builds the network on top of normalised images.

        Args:
            images: float, shape (B, H, W, C), normalised.
            num_classes: number of logits.

        Returns:
            The logits, float32, shape (B, num_classes).
        """
        x = feature(convolution(images, 16, "conv1"), "stem")
        stage = None
        for number, channels in enumerate((16 * width, 32 * width, 64 * width), start=1):
            for block in range((depth - 4) // 6):
                strides = 2 if number > 1 and block == 0 else 1
                x = _block(x, channels, strides, f"block{number}_layer_{block}", stage)
                stage = None
            stage = f"stage{number}"
            x = feature(x, stage)
        return classifier(_normalized(x, "bn1", "relu", stage), num_classes, "fc")

    return wide_resnet


MODELS = {
    f"wrn_{depth}_{width}": _of(depth, width)
    for depth, width in ((16, 1), (16, 2), (40, 1), (40, 2), (28, 10))
}
ALIASES = {
    f"WRN-{depth}-{width}": f"wrn_{depth}_{width}"
    for depth, width in ((16, 1), (16, 2), (40, 1), (40, 2), (28, 10))
}


def _block(x, width: int, strides: int, name: str, ended: str | None) -> keras.KerasTensor:
    """Two times normalisation, ReLU and a 3x3 convolution, and the shortcut around them.

    Args:
        x: float, shape (B, H, W, C).
        width: number of channels to give.
        strides: 1, or 2 to halve height and width (rounding up).
        name: what the names of the block's layers start with.
        ended: the name of the stage that x is the output of; None where it is none's.
    """
    y = _normalized(x, f"{name}_bn1", f"{name}_relu1", ended)
    shortcut = x
    if x.shape[-1] != width:
        shortcut = convolution(y, width, f"{name}_convShortcut", kernel_size=1, strides=strides)
    y = convolution(y, width, f"{name}_conv1", strides=strides)
    y = _normalized(y, f"{name}_bn2", f"{name}_relu2", None)
    y = convolution(y, width, f"{name}_conv2")
    return layers.Add(name=f"{name}_add")([shortcut, y])


def _normalized(x, norm_name: str, relu_name: str, ended: str | None) -> keras.KerasTensor:
    """Normalisation and ReLU; what is between them belongs to the stage that ended."""
    x = batch_normalization(x, norm_name)
    if ended is not None:
        x = feature(x, f"{ended}_preactivation")
    return layers.ReLU(name=relu_name)(x)
