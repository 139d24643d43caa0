"""Augmentation of whole batches, as pure functions of the images and uniform draws."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from stkd_keras.data.randaugment import MID_GREY, NUM_DRAWS, distort


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """One way to augment a batch, each image by its own draws.

    `apply(images, draws, flip)` returns a tensor of the shape and dtype of `images`, a pure
    function of its arguments. Image i of the result depends on image i and `draws[:, i]` alone:
    a part of a batch, augmented with its part of the draws, is that part of the augmented batch,
    bit for bit.

    - `images`: uint8 tensor of shape (batch, height, width, channels). The batch may be unknown
      until the graph runs, and empty; the other three are static.
    - `draws`: float32 tensor of shape (num_draws, batch), uniform in [0, 1), at most 1 - 2**-23
      as `tf.random.stateless_uniform` gives them.
    - `flip`: whether images are mirrored left to right, each with probability 1/2.

    Attributes:
        num_draws: integer, the draws that each image needs.
        apply: the function.
    """

    num_draws: int
    apply: Callable[[tf.Tensor, tf.Tensor, bool], tf.Tensor]


def pad_crop_flip(images: tf.Tensor, draws: tf.Tensor, flip: bool) -> tf.Tensor:
    """Crops every image at random from its padded self and mirrors half of them.

    The padding is black and as wide as an eighth of the shorter side, at least 1 pixel: 4 pixels
    for 32x32 (the field's standard augmentation of CIFAR), 8 for 64x64, 1 for 8x8.

    Args:
        images: as `Augmentation` says.
        draws: of shape (3, batch): the crop's top and left, and whether the image is mirrored.
        flip: as `Augmentation` says; without it the crops are the same.

    Returns:
        uint8 tensor of the shape of `images`.
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
    # One gather over all the batch's pixels is several times faster than a crop for each image.
    first_row = tf.range(tf.shape(images)[0])[:, None] * padded_height
    pixel = ((first_row + row) * padded_width)[:, :, None] + column[:, None, :]
    cropped = tf.gather(tf.reshape(padded, (-1, channels)), pixel)
    return tf.ensure_shape(cropped, images.shape)


def cutout(images: tf.Tensor, draws: tf.Tensor, flip: bool) -> tf.Tensor:
    """Augments as `pad_crop_flip`, then covers one square of each image (arXiv 1708.04552).

    The square's side is half the image's shorter side (16 for 32x32, which the paper chose for
    CIFAR-10). Its centre is anywhere in the image, so that the border clips most squares. It is
    mid grey, where the paper has the mean of the data set: that is 0 after its normalisation,
    and pixels here aren't normalised yet.

    Args:
        images: as `Augmentation` says.
        draws: of shape (5, batch): those of `pad_crop_flip`, then the centre's row and column.
        flip: as `Augmentation` says.

    Returns:
        uint8 tensor of the shape of `images`.
    """
    height, width, channels = images.shape[1:]
    side = max(1, min(height, width) // 2)
    rows = _covered(draws[3], height, side)
    columns = tf.repeat(_covered(draws[4], width, side), channels, axis=1)
    hole = rows[:, :, None] & columns[:, None, :]
    # Broadcasting over three dimensions takes half as long as over four.
    cropped = tf.reshape(pad_crop_flip(images, draws[:3], flip), (-1, height, width * channels))
    covered = tf.where(hole, tf.constant(MID_GREY, images.dtype), cropped)
    return tf.ensure_shape(tf.reshape(covered, (-1, height, width, channels)), images.shape)


def randaugment(images: tf.Tensor, draws: tf.Tensor, flip: bool) -> tf.Tensor:
    """Augments as `pad_crop_flip`, then by RandAugment (arXiv 1909.13719).

    Args:
        images: as `Augmentation` says.
        draws: of shape (7, batch): those of `pad_crop_flip`, then those of
            `stkd_keras.data.randaugment.distort`, which says what is done.
        flip: as `Augmentation` says.

    Returns:
        uint8 tensor of the shape of `images`.
    """
    return distort(pad_crop_flip(images, draws[:3], flip), draws[3:])


def unchanged(images: tf.Tensor, draws: tf.Tensor, flip: bool) -> tf.Tensor:
    """Returns the images as they are."""
    del draws, flip
    return images


AUGMENTATIONS: dict[str, Augmentation] = {
    "standard": Augmentation(3, pad_crop_flip),
    "none": Augmentation(0, unchanged),
    "cutout": Augmentation(5, cutout),
    "randaugment": Augmentation(3 + NUM_DRAWS, randaugment),
}
"""By name, what `pipeline(augment=...)` applies to a batch."""


def _integers(draws: tf.Tensor, limit: int) -> tf.Tensor:
    """Turns uniform draws into int32 numbers that are uniform from 0 to limit - 1."""
    # A draw is at most 1 - 2**-23, so the product is below the limit after rounding too.
    return tf.cast(draws * limit, tf.int32)


def _covered(draws: tf.Tensor, length: int, side: int) -> tf.Tensor:
    """Tells which of `length` rows (or columns) the square of each image covers, as bool."""
    offset = tf.range(length) - _integers(draws, length)[:, None] + side // 2
    return (offset >= 0) & (offset < side)
