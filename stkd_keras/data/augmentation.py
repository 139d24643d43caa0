"""Batch augmentations, as pure functions of the images and random numbers."""

import dataclasses
import math
from collections.abc import Callable

import tensorflow as tf

from stkd_keras.data import photo
from stkd_keras.data.randaugment import MID_GRAY, NUM_DRAWS, TRIVIAL_DRAWS, distort, trivial
from stkd_keras.errors import InputError, unknown_name

ERASING_PROBABILITY = 0.25
ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT_RATIO = (0.3, 1 / 0.3)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A batch augmentation that uses `num_draws` random numbers per image.

    If it `crops`, the first `photo.NUM_DRAWS` of them choose random resized crops, and it is
    applied to these.
    """

    num_draws: int
    apply: Callable[[tf.Tensor, tf.Tensor, bool], tf.Tensor]
    crops: bool = False


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


def erase(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Applies Random Erasing (arXiv 1708.04896), with draws (5, batch).

    A quarter of the images, as in timm's recipes, get a mid gray rectangle of 2 to 33 % of the area
    and an aspect ratio from 0.3 to 3.3. Sides that are longer than the image's are cut.
    """
    height, width = images.shape[1:3]
    area = ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * draws[1]
    low, high = map(math.log, ERASED_ASPECT_RATIO)
    ratio = tf.exp(low + (high - low) * draws[2])
    covered = [
        _in_interval(side * math.sqrt(height * width), draw, length)
        for side, draw, length in (
            (tf.sqrt(area / ratio), draws[3], height),
            (tf.sqrt(area * ratio), draws[4], width),
        )
    ]
    hole = covered[0][:, :, None] & covered[1][:, None, :]
    hole &= draws[0, :, None, None] < ERASING_PROBABILITY
    return tf.where(hole[..., None], tf.constant(MID_GRAY, images.dtype), images)


def unchanged(images: tf.Tensor, draws: tf.Tensor, flip: bool) -> tf.Tensor:
    """Returns the images as they are, for augmentations without further steps."""
    return images


AUGMENTATIONS: dict[str, Augmentation] = {
    "standard": Augmentation(3, pad_crop_flip),
    "none": Augmentation(0, unchanged),
    "cutout": Augmentation(5, cutout),
    "randaugment": Augmentation(3 + NUM_DRAWS, randaugment),
    "photo": Augmentation(photo.NUM_DRAWS, unchanged, crops=True),
}
"""The augmentations of `pipeline(augment=...)`, by name."""

PHOTO_STEPS: dict[str, tuple[int, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]]] = {
    "trivialaugment": (TRIVIAL_DRAWS, trivial),
    "randaugment": (NUM_DRAWS, distort),
    "erasing": (5, erase),
}
"""Number of draws and function of what may follow "photo"."""

_STEPS_IN_ORDER = [
    [*distortion, *erasing]
    for distortion in ([], ["trivialaugment"], ["randaugment"])
    for erasing in ([], ["erasing"])
]


def parse_augmentation(text: str) -> Augmentation:
    """Parses a name in `AUGMENTATIONS`, or "photo" with comma-separated steps.

    Raises:
        InputError: if a name is unknown, or the steps are out of order.
    """
    name, *steps = text.split(",")
    if name not in AUGMENTATIONS:
        raise unknown_name("augmentation", name, AUGMENTATIONS)
    for step in steps:
        if step not in PHOTO_STEPS:
            raise unknown_name("step of an augmentation", step, PHOTO_STEPS)
    if steps and (name != "photo" or steps not in _STEPS_IN_ORDER):
        raise InputError(
            f"augment={text} given, expected photo, then trivialaugment or randaugment or neither, "
            "then erasing or not, separated by commas"
        )
    augmentation = AUGMENTATIONS[name]
    for step in steps:
        augmentation = _then(augmentation, *PHOTO_STEPS[step])
    return augmentation


def _then(
    first: Augmentation, num_draws: int, step: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
) -> Augmentation:
    def apply(images: tf.Tensor, draws: tf.Tensor, flip: bool) -> tf.Tensor:
        return step(first.apply(images, draws, flip), draws[first.num_draws :])

    return Augmentation(first.num_draws + num_draws, apply, first.crops)


def _integers(draws: tf.Tensor, limit: int) -> tf.Tensor:
    """Converts draws from [0, 1) to int32 numbers in [0, limit)."""
    # A draw is at most 1 - 2**-23, so even the rounded product is below the limit.
    return tf.cast(draws * limit, tf.int32)


def _in_interval(sides: tf.Tensor, draws: tf.Tensor, length: int) -> tf.Tensor:
    """Returns which of `length` rows (or columns) an interval of each image covers."""
    sides = tf.clip_by_value(tf.round(sides), 1, length)
    start = tf.floor(draws * (length - sides + 1))[:, None]
    positions = tf.range(length, dtype=tf.float32)
    return (positions >= start) & (positions < start + sides[:, None])


def _covered(draws: tf.Tensor, length: int, side: int) -> tf.Tensor:
    """Returns which of `length` rows (or columns) the square of each image covers."""
    offset = tf.range(length) - _integers(draws, length)[:, None] + side // 2
    return (offset >= 0) & (offset < side)
