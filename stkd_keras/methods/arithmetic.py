"""What several methods compute with features, with gradients that are finite everywhere."""

import numpy as np
import tensorflow as tf

# Vectors whose numbers are all smaller count as zero: the gradients of others are finite.
TINY = 1e-30


def per_sample_mean(values: tf.Tensor) -> tf.Tensor:
    """Returns the mean over all axes but the first, (B,)."""
    return tf.reduce_mean(values, axis=list(range(1, values.shape.rank)))


def flat(features: tf.Tensor) -> tf.Tensor:
    """Returns features as rows, (B, D)."""
    return tf.reshape(features, [tf.shape(features)[0], int(np.prod(features.shape[1:]))])


def lengths(x: tf.Tensor, axis: int = -1) -> tf.Tensor:
    """Returns Euclidean norms, with axis kept; at 0 the gradient is 0, where sqrt's is infinite."""
    squares = tf.reduce_sum(tf.square(x), axis=axis, keepdims=True)
    return tf.where(squares > 0, tf.sqrt(tf.where(squares > 0, squares, 1.0)), 0.0)


def unit_vectors(x: tf.Tensor, axis: int = -1) -> tf.Tensor:
    """Returns vectors divided by their Euclidean norms; a vector of zeros stays one.

    As PyTorch's `normalize`, but with no gradient at zero, where that has one of 1e12.
    """
    # Divided by a constant first: the squares of large and of tiny numbers leave float32's range.
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(x), axis=axis, keepdims=True))
    scaled = tf.where(largest > TINY, x / tf.maximum(largest, TINY), 0.0)
    squares = tf.reduce_sum(tf.square(scaled), axis=axis, keepdims=True)
    return scaled * tf.math.rsqrt(tf.maximum(squares, 1.0))


def pooled(maps: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Returns averages over a grid of windows, as PyTorch's `adaptive_avg_pool2d` gives them.

    Args:
        maps: (B, H, W, C), H and W known.
        height: rows of the result; those that aren't fewer than H leave the rows as they are.
        width: likewise.

    Returns:
        (B, min(height, H), min(width, W), C).
    """
    if maps.shape[1] > height:
        maps = tf.einsum("bhwc,hi->biwc", maps, _windows(maps.shape[1], height))
    if maps.shape[2] > width:
        maps = tf.einsum("bhwc,wj->bhjc", maps, _windows(maps.shape[2], width))
    return maps


def pooled_alike(first: tf.Tensor, second: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns both maps, the larger averaged down to the size of the smaller."""
    return (
        pooled(first, second.shape[1], second.shape[2]),
        pooled(second, first.shape[1], first.shape[2]),
    )


def _windows(size: int, count: int) -> np.ndarray:
    """(size, count): how much each element adds to the mean of each window."""
    weights = np.zeros((size, count), np.float32)
    for i in range(count):
        start, end = i * size // count, -(-(i + 1) * size // count)
        weights[start:end, i] = 1 / (end - start)
    return weights
