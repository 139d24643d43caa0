"""Augmentation of whole batches, as pure functions of the images and a seed."""

from collections.abc import Callable

import tensorflow as tf


def pad_crop_flip(images: tf.Tensor, seed: tf.Tensor, flip: bool) -> tf.Tensor:
    """Crops every image at random from its padded self and mirrors half of them.

    The padding is black and as wide as an eighth of the shorter side, at least 1 pixel: 4 pixels
    for 32x32 (the field's standard augmentation of CIFAR), 8 for 64x64, 1 for 8x8.

    Args:
        images: tensor of shape (batch, height, width, channels), any dtype; the shape is static.
        seed: integer tensor of shape (2,), as in `tf.random.stateless_uniform`.
        flip: whether images are mirrored left to right, each with probability 1/2.

    Returns:
        Tensor of the shape and dtype of `images`.
    """
    batch_size, height, width, channels = images.shape
    padding = max(1, min(height, width) // 8)
    top, left, mirrored = _draw_choices(batch_size, 2 * padding + 1, seed)
    row = top[:, None] + tf.range(height)
    column = tf.range(width)
    if flip:
        column = tf.where(mirrored[:, None], width - 1 - column, column)
    column = left[:, None] + column

    sides = [padding, padding]
    padded = tf.pad(images, [[0, 0], sides, sides, [0, 0]])
    padded_height, padded_width = height + 2 * padding, width + 2 * padding
    # One gather over all the batch's pixels is several times faster than a crop for each image.
    pixel = (tf.range(batch_size)[:, None] * padded_height + row) * padded_width
    return tf.gather(tf.reshape(padded, (-1, channels)), pixel[:, :, None] + column[:, None, :])


def unchanged(images: tf.Tensor, seed: tf.Tensor, flip: bool) -> tf.Tensor:
    """Returns the images as they are."""
    del seed, flip
    return images


AUGMENTATIONS: dict[str, Callable[[tf.Tensor, tf.Tensor, bool], tf.Tensor]] = {
    "standard": pad_crop_flip,
    "none": unchanged,
}
"""By name, what `pipeline(augment=...)` applies to a batch."""


def _draw_choices(
    batch_size: int, num_offsets: int, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Draws, for each image, the crop's top and left (int32) and whether it is mirrored (bool)."""
    draws = tf.random.stateless_uniform((3, batch_size), seed, alg="philox")
    # A draw is at most 1 - 2**-23, so the product is below num_offsets after rounding too.
    top, left = tf.unstack(tf.cast(draws[:2] * num_offsets, tf.int32))
    return top, left, draws[2] < 0.5
