"""Batch augmentations, as pure functions of the images and random numbers."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from stkd_keras.data.randaugment import MID_GRAY, NUM_DRAWS, distort


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A batch augmentation that uses `num_draws` random numbers per image."""

    num_draws: int
    apply: Callable[[tf.Tensor, tf.Tensor, bool], tf.Tensor]


def pad_crop_flip(images: tf.Tensor, draws: tf.Tensor, flip: bool) -> tf.Tensor:
    """Pads, crops and flips each image at random, with draws of shape (3, batch).

    The padding is black, an eighth of the shorter side: 4 pixels for 32x32, as is usual for CIFAR.
    Without `flip` the crops are the same.
    """
    height, width, channels = images.shape[1:]
    padding = max(1, min(height, width) // 8)
    top, left = (_integers(draws[i], 2 * padding + 1) for i in (0, 1))
    row = top[:, None] + tf.range(height)
    column = tf.range(width)
    if flip:
        column = tf.where(draws[2, :, None] < 0.5, width - 1 - column, column)
    column = left[:, None] + column

    sides = [padding, padding]
    padded = tf.pad(images, [[0, 0], sides, sides, [0, 0]])
    padded_height, padded_width = height + 2 * padding, width + 2 * padding
    # One gather over the pixels of the batch is several times faster than a crop per image.
    first_row = tf.range(tf.shape(images)[0])[:, None] * padded_height
    pixel = ((first_row + row) * padded_width)[:, :, None] + column[:, None, :]
    cropped = tf.gather(tf.reshape(padded, (-1, channels)), pixel)
    return tf.ensure_shape(cropped, images.shape)


def cutout(images: tf.Tensor, draws: tf.Tensor, flip: bool) -> tf.Tensor:
    """Applies `pad_crop_flip`, then Cutout (arXiv 1708.04552), with draws of shape (5, batch).

    The square's side is half the shorter side of the image, as in the paper for CIFAR-10. It is mid
    gray, where the paper has the data set's mean, since pixels aren't normalized yet.
    """
    height, width, channels = images.shape[1:]
    side = max(1, min(height, width) // 2)
    rows = _covered(draws[3], height, side)
    columns = tf.repeat(_covered(draws[4], width, side), channels, axis=1)
    hole = rows[:, :, None] & columns[:, None, :]
    # Broadcasting over three dimensions is twice as fast as over four.
    cropped = tf.reshape(pad_crop_flip(images, draws[:3], flip), (-1, height, width * channels))
    covered = tf.where(hole, tf.constant(MID_GRAY, images.dtype), cropped)
    return tf.ensure_shape(tf.reshape(covered, (-1, height, width, channels)), images.shape)


def randaugment(images: tf.Tensor, draws: tf.Tensor, flip: bool) -> tf.Tensor:
    """Applies `pad_crop_flip`, then RandAugment (arXiv 1909.13719), with draws (7, batch)."""
    return distort(pad_crop_flip(images, draws[:3], flip), draws[3:])


def unchanged(images: tf.Tensor, draws: tf.Tensor, flip: bool) -> tf.Tensor:
    return images


AUGMENTATIONS: dict[str, Augmentation] = {
    "standard": Augmentation(3, pad_crop_flip),
    "none": Augmentation(0, unchanged),
    "cutout": Augmentation(5, cutout),
    "randaugment": Augmentation(3 + NUM_DRAWS, randaugment),
}
"""The augmentations of `pipeline(augment=...)`, by name."""


def _integers(draws: tf.Tensor, limit: int) -> tf.Tensor:
    """Converts draws from [0, 1) to int32 numbers in [0, limit)."""
    # A draw is at most 1 - 2**-23, so even the rounded product is below the limit.
    return tf.cast(draws * limit, tf.int32)


def _covered(draws: tf.Tensor, length: int, side: int) -> tf.Tensor:
    """Returns which of `length` rows (or columns) the square of each image covers."""
    offset = tf.range(length) - _integers(draws, length)[:, None] + side // 2
    return (offset >= 0) & (offset < side)
