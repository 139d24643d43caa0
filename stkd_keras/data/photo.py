"""Random resized crops (Inception's augmentation) and flips of images of any size."""

import math

import tensorflow as tf

# The smallest area is torchvision's 0.08 for trainings of hundreds of epochs; recipes for short
# trainings of ImageNet (fast.ai, FFCV) have 0.25 to 0.35.
AREA = (0.35, 1.0)
ASPECT_RATIO = (3 / 4, 4 / 3)
NUM_DRAWS = 5


def random_crops(draws: tf.Tensor, image_shape: tuple[int, int, int], flip: bool) -> tf.Tensor:
    """Returns the crops, (batch, 5), that draws (`NUM_DRAWS`, batch) in [0, 1) choose.

    A crop is (height, width, top, left, flipped). Its sides are in units of the square root of the
    image's area, and its position is a fraction of the space that they leave. The area is uniform
    in `AREA`, the logarithm of the aspect ratio in `ASPECT_RATIO`, which is relative to that of the
    result, so it is the largest distortion. A side that is longer than the image's is cut. Half of
    the crops are flipped, none without `flip`.
    """
    height, width, _ = image_shape
    area = AREA[0] + (AREA[1] - AREA[0]) * draws[0]
    low, high = (math.log(ratio * width / height) for ratio in ASPECT_RATIO)
    ratio = tf.exp(low + (high - low) * draws[1])
    flipped = tf.cast(draws[4] < (0.5 if flip else 0.0), tf.float32)
    sides = tf.sqrt(area / ratio), tf.sqrt(area * ratio)
    return tf.stack([*sides, draws[2], draws[3], flipped], axis=1)


def cut(image: tf.Tensor, crop: tf.Tensor, image_shape: tuple[int, int, int]) -> tf.Tensor:
    """Cuts a crop, (5,), out of an image, uint8 (height, width, channels), and resizes it."""
    top, left, height, width = tf.unstack(_window(crop, tf.shape(image)[:2]))
    return _resized(image[top : top + height, left : left + width], crop, image_shape)


def decode_jpeg(
    content: tf.Tensor, size: tf.Tensor, crop: tf.Tensor, image_shape: tuple[int, int, int]
) -> tf.Tensor:
    """Like `cut`, for a JPEG file of a size (2,), of which only the crop is decoded."""
    window = _window(crop, size)

    def decode(reduction: int) -> tf.Tensor:
        return tf.io.decode_and_crop_jpeg(
            content,
            window // reduction,
            channels=image_shape[2],
            ratio=reduction,
            dct_method="INTEGER_ACCURATE",  # Pillow's.
        )

    branches = [lambda n=n: decode(2**n) for n in range(4)]
    pixels = tf.switch_case(_halvings(window, image_shape), branches)
    return _resized(pixels, crop, image_shape)


def reduction(crop: tf.Tensor, size: tf.Tensor, image_shape: tuple[int, int, int]) -> tf.Tensor:
    """Returns by how much a JPEG of a size (2,) can be reduced: 1, 2, 4 or 8, scalar int32.

    At that size, the crop isn't smaller than the result.
    """
    return tf.bitwise.left_shift(1, _halvings(_window(crop, size), image_shape))


def _window(crop: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns a crop's (top, left, height, width) in an image of a size (2,), int32 (4,)."""
    size = tf.cast(size, tf.float32)
    sides = tf.round(crop[:2] * tf.sqrt(size[0] * size[1]))
    sides = tf.clip_by_value(sides, 1.0, size)
    start = tf.minimum(tf.floor(crop[2:4] * (size - sides + 1)), size - sides)
    return tf.cast(tf.concat([start, sides], axis=0), tf.int32)


def _halvings(window: tf.Tensor, image_shape: tuple[int, int, int]) -> tf.Tensor:
    longer = tf.reduce_min(window[2:] // image_shape[:2])
    return tf.reduce_sum(tf.cast(longer >= [2, 4, 8], tf.int32))


def _resized(image: tf.Tensor, crop: tf.Tensor, image_shape: tuple[int, int, int]) -> tf.Tensor:
    """Resizes an image by averaging areas or, if a side grows, bilinearly, and flips it."""
    size, channels = image_shape[:2], image_shape[2]
    image = tf.ensure_shape(image, (None, None, channels))[None]
    resized = tf.cond(
        tf.reduce_all(tf.shape(image)[1:3] >= size),
        # Four times as fast as `tf.image.resize(antialias=True)`.
        lambda: tf.raw_ops.ResizeArea(images=image, size=size),
        lambda: tf.raw_ops.ResizeBilinear(images=image, size=size, half_pixel_centers=True),
    )
    rounded = tf.cast(resized[0] + 0.5, tf.uint8)
    # `tf.where` on a batch takes longer than resizing.
    flipped = tf.raw_ops.Reverse(tensor=rounded, dims=tf.stack([False, crop[4] > 0, False]))
    return tf.ensure_shape(flipped, image_shape)
