"""Trainable parts that bring a student's features to the shape of the teacher's."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from stkd_keras.errors import InputError
from stkd_keras.methods.base import Shape


class Adapter(keras.layers.Layer):
    """Layers one behind the other, in float32: a Sequential casts to the global policy's dtype.

    Args:
        layers: list of layers that compute in float32 themselves.
    """

    def __init__(self, layers: list[keras.layers.Layer]):
        super().__init__(dtype="float32")
        self.layers = layers

    def build(self, input_shape: Shape) -> None:
        """Builds each layer for what the one before it gives."""
        for layer in self.layers:
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def call(self, x):
        """Returns what the last layer gives."""
        for layer in self.layers:
            x = layer(x)
        return x


def convolution(channels: int, size: int | tuple[int, int], **options: Any) -> layers.Conv2D:
    """Returns a convolution in float32."""
    return layers.Conv2D(channels, size, dtype="float32", **options)


def linear(size: int) -> layers.Dense:
    """Returns a linear map in float32."""
    return layers.Dense(size, dtype="float32")


def batch_normalization() -> layers.BatchNormalization:
    """Returns a batch normalisation in float32, with PyTorch's momentum and epsilon."""
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype="float32")


def activation(kind: str, **options: Any) -> layers.Layer:
    """Returns an activation in float32."""
    return layers.Activation(kind, dtype="float32", **options)


def regressor(name: str, student: Sequence[int], teacher: Sequence[int], relu: bool) -> Adapter:
    """Returns what maps the student's maps to the shape of the teacher's (the bench's ConvReg).

    A convolution and batch normalisation. The convolution halves the size (3x3, stride 2),
    doubles it (4x4, transposed, stride 2), or takes the difference off (without padding; 1x1
    where the sizes are equal).

    Args:
        name: what it is for, for the error.
        student: (H, W, C).
        teacher: likewise.
        relu: whether a ReLU follows.

    Raises:
        InputError: where the teacher's maps are larger, but not twice as large.
    """
    (height, width, _), (to_height, to_width, channels) = student, teacher
    if (height, width) == (2 * to_height, 2 * to_width):
        resize = [
            layers.ZeroPadding2D(1, dtype="float32"),
            convolution(channels, 3, strides=2),
        ]
    elif (2 * height, 2 * width) == (to_height, to_width):
        resize = [
            layers.Conv2DTranspose(channels, 4, strides=2, padding="same", dtype="float32"),
        ]
    elif height >= to_height and width >= to_width:
        resize = [convolution(channels, (1 + height - to_height, 1 + width - to_width))]
    else:
        raise InputError(
            f"{name}: the student's maps are {height}x{width} and the teacher's "
            f"{to_height}x{to_width}; expected the teacher's to be no larger, or exactly twice as "
            "large: choose features of another stage"
        )
    return Adapter([*resize, batch_normalization(), *([activation("relu")] if relu else [])])
