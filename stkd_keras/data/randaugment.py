"""RandAugment (arXiv 1909.13719) and TrivialAugment (arXiv 2103.10158) on batches.

Each image gets operations of its own.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import tensorflow as tf

NUM_OPERATIONS = 2
MAGNITUDE = 9 / 30
NUM_DRAWS = 2 * NUM_OPERATIONS
TRIVIAL_DRAWS = 3
TRIVIAL_MAGNITUDES = 31
MID_GRAY = 128

Operation: TypeAlias = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def distort(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Applies two random operations to each image, one after the other.

    Operations and signs are drawn uniformly. The magnitude is 9 of 30, as in torchvision's
    `RandAugment()`; papers that count to 10 mean a magnitude three times as strong by their 9.
    Images are uint8 (batch, height, width, channels), draws float32 (`NUM_DRAWS`, batch) in [0, 1).
    """
    shape = images.shape
    magnitude = tf.fill(tf.shape(draws)[1:], tf.constant(MAGNITUDE, tf.float64))
    for i in range(0, NUM_DRAWS, 2):
        images = _apply(images, draws[i], magnitude, draws[i + 1])
    return tf.ensure_shape(images, shape)


def trivial(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Applies one random operation with one of 31 random magnitudes to each image.

    The maxima are the paper's wide ones, as in torchvision's `TrivialAugmentWide()`. Images are
    uint8 (batch, height, width, channels), draws float32 (`TRIVIAL_DRAWS`, batch) in [0, 1).
    """
    steps = tf.floor(draws[1] * TRIVIAL_MAGNITUDES)
    magnitude = tf.cast(steps, tf.float64) / (TRIVIAL_MAGNITUDES - 1)
    wider = [_wider(name, *images.shape[1:3]) for name in OPERATIONS]
    magnitude *= tf.gather(tf.constant(wider, tf.float64), _chosen(draws[0]))
    return tf.ensure_shape(_apply(images, draws[0], magnitude, draws[2]), images.shape)


def identity(images: tf.Tensor, magnitude: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    """Returns the images as they are, one of RandAugment's operations."""
    return images


def autocontrast(images: tf.Tensor, magnitude: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    """Stretches each channel to the range 0 to 255, unless it is constant."""
    pixels = tf.cast(images, tf.float32)
    low = tf.reduce_min(pixels, axis=(1, 2), keepdims=True)
    span = tf.reduce_max(pixels, axis=(1, 2), keepdims=True) - low
    # Multiplying first leaves a single rounding, which never reaches the next integer.
    stretched = (pixels - low) * 255.0 / tf.maximum(span, 1.0)
    return tf.where(span > 0, tf.cast(stretched, tf.uint8), images)


def equalize(images: tf.Tensor, magnitude: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    """Equalizes each channel's histogram like Pillow."""
    height, width, channels = images.shape[1:]
    by_channel = tf.transpose(images, (0, 3, 1, 2))
    values = tf.cast(tf.reshape(by_channel, (-1, height * width)), tf.int32)
    histogram = tf.math.bincount(values, minlength=256, maxlength=256, axis=-1)

    darker = tf.cumsum(histogram, axis=1, exclusive=True)
    darker_than_brightest = tf.where(darker < height * width, darker, 0)
    step = tf.reduce_max(darker_than_brightest, axis=1, keepdims=True) // 255
    table = tf.minimum((step // 2 + darker) // tf.maximum(step, 1), 255)
    table = tf.cast(tf.where(step > 0, table, tf.range(256)), tf.uint8)

    equalized = tf.reshape(tf.gather(table, values, batch_dims=1), (-1, channels, height, width))
    return tf.transpose(equalized, (0, 2, 3, 1))


def rotate(images: tf.Tensor, magnitude: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    """Rotates around the center by up to 30 degrees, counterclockwise if positive."""
    height, width = images.shape[1:3]
    x, y = width / 2, height / 2
    angle = magnitude * math.radians(30)
    cos, sin = tf.cos(angle)[:, None], tf.sin(angle)[:, None]
    constant = [[0.0, 0, x, 0, 0, y]] + cos * [[1.0, 0, -x, 0, 1, -y]]
    return _transform(images, constant, sin * [[0.0, -1, y, 1, 0, -x]], sign)


def solarize(images: tf.Tensor, magnitude: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    """Inverts the values above a threshold from 256 (magnitude 0) down to 0 (magnitude 1)."""
    threshold = tf.cast(256 * (1 - magnitude), tf.float32)[:, None, None, None]
    return tf.where(tf.cast(images, tf.float32) < threshold, images, 255 - images)


def color(images: tf.Tensor, magnitude: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    """Scales the saturation by 1 + sign * 0.9 * magnitude."""
    return _blend(images, _gray(images), magnitude, sign)


def posterize(images: tf.Tensor, magnitude: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    """Keeps the upper 8 (magnitude 0) to 4 (magnitude 1) bits of each value."""
    lowest_kept = tf.bitwise.left_shift(1, tf.cast(tf.round(4 * magnitude), tf.int32))
    mask = tf.cast(256 - lowest_kept, tf.uint8)[:, None, None, None]
    return tf.bitwise.bitwise_and(images, mask)


def contrast(images: tf.Tensor, magnitude: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    """Scales the distance to the image's mean gray by 1 + sign * 0.9 * magnitude."""
    pixels = images.shape[1] * images.shape[2]
    total = tf.reduce_sum(_gray(images), axis=(1, 2), keepdims=True)
    return _blend(images, (2 * total + pixels) // (2 * pixels), magnitude, sign)


def brightness(images: tf.Tensor, magnitude: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    """Scales the values by 1 + sign * 0.9 * magnitude."""
    return _blend(images, tf.zeros(()), magnitude, sign)


def sharpness(images: tf.Tensor, magnitude: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    """Scales the distance to the smoothed image by 1 + sign * 0.9 * magnitude."""
    height, width, channels = images.shape[1:]
    pixels = tf.cast(images, tf.float32)
    kernel = np.ones((3, 3, channels, 1), np.float32)
    kernel[1, 1] = 5
    # Bit-identical on all devices: integer sums are exact, and no sum / 13 is close to a half.
    smoothed = tf.round(tf.nn.depthwise_conv2d(pixels, kernel, (1, 1, 1, 1), "SAME") / 13)
    inner = np.zeros((height, width, 1), bool)
    inner[1:-1, 1:-1] = True
    return _blend(images, tf.where(inner, smoothed, pixels), magnitude, sign)


def _affine(coefficient: int, maximum: float, axis: int | None = None) -> Operation:
    """Returns an operation that changes one coefficient of `_transform`, in units of `axis`."""

    def apply(images: tf.Tensor, magnitude: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
        change = maximum * magnitude * (1 if axis is None else images.shape[axis])
        signed = change[:, None] * tf.one_hot([coefficient], 6, dtype=tf.float64)
        return _transform(images, tf.constant([[1, 0, 0, 0, 1, 0]], tf.float64), signed, sign)

    return apply


OPERATIONS: dict[str, Operation] = {
    "identity": identity,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "rotate": rotate,
    "solarize": solarize,
    "color": color,
    "posterize": posterize,
    "contrast": contrast,
    "brightness": brightness,
    "sharpness": sharpness,
    # Shears shift each row (column) by up to 0.3 of its distance from the top (left), translations
    # shift the image by up to 0.45 of its width (height). Positive signs shift left (up).
    "shear_x": _affine(1, 0.3),
    "shear_y": _affine(3, 0.3),
    "translate_x": _affine(2, 0.45, axis=2),
    "translate_y": _affine(5, 0.45, axis=1),
}
"""The paper's operations by name, functions of (images, magnitude, sign).

`magnitude` is the fraction of the maximum in the operation's docstring, `sign` -1 or 1, tensors of
shape (batch,), float64 and float32. Some operations ignore one or both. The maxima are those of
timm's and torchvision's RandAugment; arithmetic and rounding match Pillow. Geometric operations use
the nearest pixel and fill with mid gray.
"""


def _wider(name: str, height: int, width: int) -> float:
    """Returns an operation's maximum in TrivialAugment, as a multiple of that in RandAugment."""
    enhance = 0.99 / 0.9
    return {
        "rotate": 135 / 30,
        "color": enhance,
        "posterize": 6 / 4,
        "contrast": enhance,
        "brightness": enhance,
        "sharpness": enhance,
        "shear_x": 0.99 / 0.3,
        "shear_y": 0.99 / 0.3,
        # 32 pixels, whatever the size.
        "translate_x": 32 / (0.45 * width),
        "translate_y": 32 / (0.45 * height),
    }.get(name, 1.0)


def _chosen(draws: tf.Tensor) -> tf.Tensor:
    """Returns the numbers of the operations that draws (batch,) choose."""
    # A draw is at most 1 - 2**-23, so even the rounded product is below 14.
    return tf.cast(draws * len(OPERATIONS), tf.int32)


def _apply(
    images: tf.Tensor, operation_draws: tf.Tensor, magnitude: tf.Tensor, sign_draws: tf.Tensor
) -> tf.Tensor:
    """Applies an operation to each image; all other arguments have the shape (batch,)."""
    chosen = _chosen(operation_draws)
    sign = tf.where(sign_draws < 0.5, -1.0, 1.0)

    # Grouping by operation processes every image once. Applying all operations and selecting would
    # be fourteen times the work.
    def grouped(values: tf.Tensor) -> list[tf.Tensor]:
        return tf.dynamic_partition(values, chosen, len(OPERATIONS))

    results = [
        operation(*groups)
        for operation, *groups in zip(
            OPERATIONS.values(), grouped(images), grouped(magnitude), grouped(sign), strict=True
        )
    ]
    return tf.dynamic_stitch(grouped(tf.range(tf.size(chosen))), results)


def _transform(
    images: tf.Tensor, constant: tf.Tensor, signed: tf.Tensor, sign: tf.Tensor
) -> tf.Tensor:
    """Applies the affine map with the coefficients `constant + sign * signed` to the images.

    Both are float64, (batch, 6) or (1, 6). As in Pillow's `Image.transform`, output pixel (x, y) is
    input pixel (a x + b y + c, d x + e y + f), and the center of the first pixel is (0.5, 0.5).
    """
    # ImageProjectiveTransformV3 puts (0, 0) at the center of the first pixel, not at its corner.
    to_corner = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    even = tf.reshape(constant, (-1, 2, 3)) @ to_corner - [[0, 0, 0.5]]
    odd = tf.reshape(signed, (-1, 2, 3)) @ to_corner
    even, odd = (tf.cast(tf.reshape(part, (-1, 6)), tf.float32) for part in (even, odd))
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.pad(even + sign[:, None] * odd, [[0, 0], [0, 2]]),
        output_shape=images.shape[1:3],
        interpolation="NEAREST",
        fill_mode="CONSTANT",
        fill_value=MID_GRAY,
    )


def _blend(
    images: tf.Tensor, degenerate: tf.Tensor, magnitude: tf.Tensor, sign: tf.Tensor
) -> tf.Tensor:
    """Scales the distance to the degenerate images by 1 + sign * 0.9 * magnitude."""
    factor = 1 + (tf.cast(0.9 * magnitude, tf.float32) * sign)[:, None, None, None]
    degenerate = tf.cast(degenerate, tf.float32)
    blended = degenerate + factor * (tf.cast(images, tf.float32) - degenerate)
    return tf.cast(tf.clip_by_value(blended, 0, 255), tf.uint8)


def _gray(images: tf.Tensor) -> tf.Tensor:
    """Returns RGB's luma (ITU-R 601) or other channels' mean, int32 (batch, h, w, 1)."""
    values = tf.cast(images, tf.int32)
    channels = images.shape[3]
    if channels == 3:
        total = tf.reduce_sum(values * [19595, 38470, 7471], axis=3, keepdims=True)
        return (total + 2**15) // 2**16
    total = tf.reduce_sum(values, axis=3, keepdims=True)
    return (2 * total + channels) // (2 * channels)
