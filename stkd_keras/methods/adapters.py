"""Trainable layers that bring the student's features to the shape of the teacher's."""

from typing import Any

import keras
from keras import layers

from stkd_keras.errors import InputError
from stkd_keras.methods.base import Shape


class Adapter(keras.layers.Layer):
    """A chain of float32 layers. (`Sequential` would cast its input to the global dtype policy.)"""

    def __init__(self, layers: list[keras.layers.Layer]):
        super().__init__(dtype="float32")
        self.layers = layers

    def build(self, input_shape: Shape) -> None:
        for layer in self.layers:
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def call(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def convolution(channels: int, size: int | tuple[int, int], **options: Any) -> layers.Conv2D:
    """Returns a float32 convolution."""
    return layers.Conv2D(channels, size, dtype="float32", **options)


def linear(size: int) -> layers.Dense:
    """Returns a float32 dense layer."""
    return layers.Dense(size, dtype="float32")


def batch_normalization() -> layers.BatchNormalization:
    """Returns float32 batch normalization with PyTorch's momentum and epsilon."""
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype="float32")


def regressor(name: str, student: Any, teacher: Any, relu: bool) -> Adapter:
    """Builds an adapter from maps (B, H, W, C) to the teacher's shape (RepDistiller's ConvReg)."""
    (_, height, width, _), (_, to_height, to_width, channels) = student, teacher
    if (height, width) == (2 * to_height, 2 * to_width):
        resize = [layers.ZeroPadding2D(1, dtype="float32"), convolution(channels, 3, strides=2)]
    elif (2 * height, 2 * width) == (to_height, to_width):
        resize = [layers.Conv2DTranspose(channels, 4, strides=2, padding="same", dtype="float32")]
    elif height >= to_height and width >= to_width:
        resize = [convolution(channels, (1 + height - to_height, 1 + width - to_width))]
    else:
        raise InputError(
            f"{name}: the student's maps are {height}x{width} and the teacher's "
            f"{to_height}x{to_width}; expected the teacher's to be no larger, or exactly twice as "
            "large: choose features of another stage"
        )
    activation = [layers.Activation("relu", dtype="float32")] if relu else []
    adapter = Adapter([*resize, batch_normalization(), *activation])
    adapter.build(student)
    return adapter
