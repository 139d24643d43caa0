"""RandAugment (arXiv 1909.13719) of whole batches: each image has operations of its own."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

NUM_OPERATIONS = 2
MAGNITUDE = 9 / 30
NUM_DRAWS = 2 * NUM_OPERATIONS
MID_GREY = 128


def distort(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Applies to each image two operations of its own, one after the other.

    An operation is drawn from the 14 of `OPERATIONS`, each as likely as the others and with
    replacement; so is the sign of its magnitude. The magnitude is 9 of 30 of each operation's
    maximum. Two operations at 9 of 30 are what `RandAugment()` means to PyTorch's users. Others
    count magnitudes to 10: their 9 is three times as strong and made for large networks on
    ImageNet, while the paper found that the smaller the network, the smaller the best magnitude.

    Args:
        images: uint8 tensor of shape (batch, height, width, channels); all but the batch are
            static.
        draws: float32 tensor of shape (`NUM_DRAWS`, batch), uniform in [0, 1), at most
            1 - 2**-23: for each operation in turn, which one it is and its sign.

    Returns:
        uint8 tensor of the shape of `images`. Each image depends on itself and its draws alone.
    """
    shape = images.shape
    for i in range(0, NUM_DRAWS, 2):
        # A draw is at most 1 - 2**-23, so the product is below 14 after rounding too.
        chosen = tf.cast(draws[i] * len(OPERATIONS), tf.int32)
        images = _apply(images, chosen, tf.where(draws[i + 1] < 0.5, -1.0, 1.0))
    return tf.ensure_shape(images, shape)


def identity(images: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    """Returns the images as they are."""
    del magnitude, sign
    return images


def autocontrast(images: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    """Stretches each channel to reach from 0 to 255; one of a single value stays as it is."""
    del magnitude, sign
    pixels = tf.cast(images, tf.float32)
    low = tf.reduce_min(pixels, axis=(1, 2), keepdims=True)
    span = tf.reduce_max(pixels, axis=(1, 2), keepdims=True) - low
    # Multiplied first, so that only the quotient is rounded, and never up to the next integer.
    stretched = (pixels - low) * 255.0 / tf.maximum(span, 1.0)
    return tf.where(span > 0, tf.cast(stretched, tf.uint8), images)


def equalize(images: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    """Flattens each channel's histogram, as Pillow does.

    A channel stays as it is if less than 255 of its pixels are darker than its brightest ones,
    as in any image smaller than 16x16.
    """
    del magnitude, sign
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


def rotate(images: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    """Turns about the centre, by 30 degrees at most, counter-clockwise if positive."""
    height, width = images.shape[1:3]
    x, y = width / 2, height / 2
    cos, sin = math.cos(math.radians(30 * magnitude)), math.sin(math.radians(30 * magnitude))
    constant = (cos, 0, x - cos * x, 0, cos, y - cos * y)
    return _transform(images, constant, (0, -sin, sin * y, sin, 0, -sin * x), sign)


def solarize(images: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    """Inverts the values from 256 (at magnitude 0: none) down to 0 (at magnitude 1: all)."""
    del sign
    threshold = 256 * (1 - magnitude)
    return tf.where(tf.cast(images, tf.float32) < threshold, images, 255 - images)


def color(images: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    """Scales the saturation by 1 + sign * 0.9 * magnitude. Grey images stay as they are."""
    return _blend(images, _grey(images), magnitude, sign)


def posterize(images: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    """Keeps the upper 8 bits of each value (at magnitude 0) down to 4 (at magnitude 1)."""
    del sign
    lowest_kept = 2 ** round(4 * magnitude)
    return tf.bitwise.bitwise_and(images, tf.constant(256 - lowest_kept, tf.uint8))


def contrast(images: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    """Scales the distance to the image's mean grey by 1 + sign * 0.9 * magnitude."""
    pixels = images.shape[1] * images.shape[2]
    total = tf.reduce_sum(_grey(images), axis=(1, 2), keepdims=True)
    return _blend(images, (2 * total + pixels) // (2 * pixels), magnitude, sign)


def brightness(images: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    """Scales the values by 1 + sign * 0.9 * magnitude."""
    return _blend(images, tf.zeros(()), magnitude, sign)


def sharpness(images: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    """Scales the distance to the smoothed image by 1 + sign * 0.9 * magnitude.

    The smoothed value is the mean over 3x3 pixels in which the middle one counts five times; the
    outermost pixels aren't smoothed.
    """
    height, width, channels = images.shape[1:]
    pixels = tf.cast(images, tf.float32)
    kernel = np.ones((3, 3, channels, 1), np.float32)
    kernel[1, 1] = 5
    # Sums of integers are exact in any order, and a 13th of an integer is never near a half.
    smoothed = tf.round(tf.nn.depthwise_conv2d(pixels, kernel, (1, 1, 1, 1), "SAME") / 13)
    inner = np.zeros((height, width, 1), bool)
    inner[1:-1, 1:-1] = True
    return _blend(images, tf.where(inner, smoothed, pixels), magnitude, sign)


def shear_x(images: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    """Moves each row sideways by up to 0.3 of its distance from the top, left if positive."""
    return _transform(images, (1, 0, 0, 0, 1, 0), (0, 0.3 * magnitude, 0, 0, 0, 0), sign)


def shear_y(images: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    """Moves each column by up to 0.3 of its distance from the left, up if positive."""
    return _transform(images, (1, 0, 0, 0, 1, 0), (0, 0, 0, 0.3 * magnitude, 0, 0), sign)


def translate_x(images: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    """Moves sideways by up to 0.45 of the width, left if positive."""
    shift = 0.45 * magnitude * images.shape[2]
    return _transform(images, (1, 0, 0, 0, 1, 0), (0, 0, shift, 0, 0, 0), sign)


def translate_y(images: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    """Moves by up to 0.45 of the height, up if positive."""
    shift = 0.45 * magnitude * images.shape[1]
    return _transform(images, (1, 0, 0, 0, 1, 0), (0, 0, 0, 0, 0, shift), sign)


OPERATIONS: dict[str, Callable[[tf.Tensor, float, tf.Tensor], tf.Tensor]] = {
    function.__name__: function
    for function in (
        identity,
        autocontrast,
        equalize,
        rotate,
        solarize,
        color,
        posterize,
        contrast,
        brightness,
        sharpness,
        shear_x,
        shear_y,
        translate_x,
        translate_y,
    )
}
"""The paper's operations by name.

Each is a function of

- images as in `distort`,
- the magnitude, a float from 0 to 1: the share of the maximum that the docstring states,
- the magnitude's sign, float32 tensor of shape (batch,), -1 or 1,

and returns uint8 of the shape of the images. Where magnitude or sign mean nothing they are
ignored. The maxima are the field's usual ones (timm, torchvision), arithmetic and rounding are
Pillow's, pixels are moved to the nearest place, and what comes from outside the image is mid grey.
"""


def _apply(images: tf.Tensor, chosen: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    """Applies to each image the operation of the number `chosen`, int32 (batch,)."""

    # Grouped by operation, every image is worked on once; all operations on all images and a
    # choice among the results would be fourteen times the work.
    def grouped(values: tf.Tensor) -> list[tf.Tensor]:
        return tf.dynamic_partition(values, chosen, len(OPERATIONS))

    results = [
        operation(group, MAGNITUDE, signs)
        for operation, group, signs in zip(
            OPERATIONS.values(), grouped(images), grouped(sign), strict=True
        )
    ]
    return tf.dynamic_stitch(grouped(tf.range(tf.size(chosen))), results)


def _transform(
    images: tf.Tensor, constant: Sequence[float], signed: Sequence[float], sign: tf.Tensor
) -> tf.Tensor:
    """Fills each pixel from the nearest one to where an affine map takes it.

    The map's six numbers are `constant + sign * signed`, row by row as in Pillow's
    `Image.transform`: (x, y) goes to (a x + b y + c, d x + e y + f), and the image's corner is
    (0, 0), so that the first pixel's centre is (0.5, 0.5).
    """
    # ImageProjectiveTransformV3 has (0, 0) at the first pixel's centre instead.
    to_corner = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    even = np.reshape(constant, (2, 3)) @ to_corner - [[0, 0, 0.5]]
    odd = np.reshape(signed, (2, 3)) @ to_corner
    even, odd = (np.append(part, [0, 0]).astype(np.float32) for part in (even, odd))
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=even + sign[:, None] * odd,
        output_shape=images.shape[1:3],
        interpolation="NEAREST",
        fill_mode="CONSTANT",
        fill_value=MID_GREY,
    )


def _blend(
    images: tf.Tensor, degenerate: tf.Tensor, magnitude: float, sign: tf.Tensor
) -> tf.Tensor:
    """Scales the images' distance to what they degenerate to, by 1 + sign * 0.9 * magnitude."""
    factor = 1 + 0.9 * magnitude * sign[:, None, None, None]
    degenerate = tf.cast(degenerate, tf.float32)
    blended = degenerate + factor * (tf.cast(images, tf.float32) - degenerate)
    return tf.cast(tf.clip_by_value(blended, 0, 255), tf.uint8)


def _grey(images: tf.Tensor) -> tf.Tensor:
    """Returns the luma (ITU-R 601) of RGB, else the channels' mean, int32 (batch, h, w, 1)."""
    values = tf.cast(images, tf.int32)
    channels = images.shape[3]
    if channels == 3:
        total = tf.reduce_sum(values * [19595, 38470, 7471], axis=3, keepdims=True)
        return (total + 2**15) // 2**16
    total = tf.reduce_sum(values, axis=3, keepdims=True)
    return (2 * total + channels) // (2 * channels)
