"""Operations shared by several methods, with gradients that are finite everywhere."""

import keras
import numpy as np
import tensorflow as tf

# Vectors whose entries are all smaller count as zero, so that gradients stay finite.
TINY = 1e-30


def per_sample_mean(values: tf.Tensor) -> tf.Tensor:
    """Returns the mean over all axes but the first, (B,)."""
    return tf.reduce_mean(values, axis=list(range(1, values.shape.rank)))


def squared_error(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Returns the mean squared difference of each sample, (B,)."""
    return per_sample_mean(tf.math.squared_difference(a, b))


def flat(features: tf.Tensor) -> tf.Tensor:
    """Returns features reshaped to (B, D)."""
    return tf.reshape(features, [tf.shape(features)[0], int(np.prod(features.shape[1:]))])


def lengths(x: tf.Tensor, axis: int = -1) -> tf.Tensor:
    """Returns Euclidean norms, keeping the axis. At 0 the gradient is 0, not infinite."""
    squares = tf.reduce_sum(tf.square(x), axis=axis, keepdims=True)
    return tf.where(squares > 0, tf.sqrt(tf.where(squares > 0, squares, 1.0)), 0.0)


def unit_vectors(x: tf.Tensor, axis: int = -1) -> tf.Tensor:
    """Returns vectors divided by their Euclidean norms; zero vectors stay zero.

    Like PyTorch's `normalize`, except that the gradient at zero is 0 and not 1e12.
    """
    # Squares of very large or small numbers leave float32's range, so scale by a constant first.
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(x), axis=axis, keepdims=True))
    scaled = tf.where(largest > TINY, x / tf.maximum(largest, TINY), 0.0)
    squares = tf.reduce_sum(tf.square(scaled), axis=axis, keepdims=True)
    return scaled * tf.math.rsqrt(tf.maximum(squares, 1.0))


def pooled(maps: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Average-pools maps to at most the given size, like PyTorch's `adaptive_avg_pool2d`."""
    size = min(maps.shape[1], height), min(maps.shape[2], width)
    if size == tuple(maps.shape[1:3]):
        return maps
    return keras.ops.adaptive_average_pool(maps, size, data_format="channels_last")


def pooled_alike(first: tf.Tensor, second: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns both maps, the larger average-pooled to the size of the smaller."""
    return (
        pooled(first, second.shape[1], second.shape[2]),
        pooled(second, first.shape[1], first.shape[2]),
    )
