"""RandAugment's operations are Pillow's, and each image draws its own."""

import collections

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from stkd_keras.data.randaugment import MAGNITUDE, NUM_DRAWS, OPERATIONS, distort, trivial

SIGNED = {"rotate", "color", "contrast", "brightness", "sharpness"} | {
    f"{kind}_{axis}" for kind in ("shear", "translate") for axis in "xy"
}


def in_pillow(name, image, magnitude, sign):
    """Applies the operation of that name to one image, uint8 (height, width, 1 or 3)."""
    image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    width, height = image.size
    gray = 128 if image.mode == "L" else (128, 128, 128)
    level = sign * magnitude

    def affine(*matrix):
        return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=gray)

    results = {
        "identity": lambda: image,
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "rotate": lambda: image.rotate(30 * level, fillcolor=gray),
        "solarize": lambda: ImageOps.solarize(image, 256 * (1 - magnitude)),
        "color": lambda: ImageEnhance.Color(image).enhance(1 + 0.9 * level),
        "posterize": lambda: ImageOps.posterize(image, 8 - round(4 * magnitude)),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(1 + 0.9 * level),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(1 + 0.9 * level),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * level),
        "shear_x": lambda: affine(1, 0.3 * level, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, 0.3 * level, 1, 0),
        "translate_x": lambda: affine(1, 0, 0.45 * level * width, 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, 0.45 * level * height),
    }
    return np.asarray(results[name]()).reshape(height, width, -1)


def varied_images(batch, height, width, channels):
    """Noise, of which a third has little contrast, with a flat image and a flat channel."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, height, width, channels))
    dull = batch // 3
    images[:dull] = rng.integers(0, 99, (dull, 1, 1, channels)) + images[:dull] // 2
    images[0] = images[0, 0, 0]
    images[1, ..., 0] = 255
    return images.astype(np.uint8)


def apply(name, images, magnitude, sign=1.0):
    signs = np.broadcast_to(np.float32(sign), len(images))
    magnitudes = np.broadcast_to(np.float64(magnitude), len(images))
    return OPERATIONS[name](tf.constant(images), magnitudes, tf.constant(signs)).numpy()


def drawing(name, sign=1.0):
    """The two draws that choose an operation and its sign."""
    return (list(OPERATIONS).index(name) + 0.5) / len(OPERATIONS), 0.25 if sign < 0 else 0.75


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("magnitude", [0.3, 0.7])
@pytest.mark.parametrize("shape", [(32, 32, 3), (64, 48, 3), (28, 28, 1), (9, 7, 3), (2, 2, 3)])
def test_operations_match_pillow(name, magnitude, shape):
    images = varied_images(30, *shape)
    signs = np.resize(np.float32([1, -1, -1, 1, 1]), 30)
    expected = [
        in_pillow(name, image, magnitude, float(sign))
        for image, sign in zip(images, signs, strict=True)
    ]
    difference = np.abs(apply(name, images, magnitude, signs).astype(int) - expected)
    if name == "rotate":
        # Pillow rounds coordinates to 1/65536, which decides where two pixels are equally near.
        assert (difference > 0).mean() < 0.001
    else:
        # Pillow's autocontrast rounds twice, and is sometimes a level below the exact value.
        assert difference.max() <= (1 if name == "autocontrast" else 0)


def test_the_strongest_rotation_is_by_30_degrees():
    images = varied_images(4, 32, 32, 3)
    result = apply("rotate", images, 1.0, [1, -1, 1, -1])
    expected = [in_pillow("rotate", image, 1.0, 1 - 2 * (i % 2)) for i, image in enumerate(images)]
    np.testing.assert_array_equal(result, expected)


def test_autocontrast_is_exact():
    images = varied_images(20, 8, 8, 3).astype(int)
    low, high = images.min(axis=(1, 2), keepdims=True), images.max(axis=(1, 2), keepdims=True)
    expected = np.where(high > low, (images - low) * 255 // np.maximum(high - low, 1), images)
    np.testing.assert_array_equal(apply("autocontrast", images.astype(np.uint8), 0.0), expected)


def test_equalize_does_not_change_images_smaller_than_16x16():
    images = varied_images(6, 15, 17, 1)
    assert (apply("equalize", images, 0.0) != apply("identity", images, 0.0)).sum() == 0
    larger = varied_images(6, 32, 32, 1)
    assert (apply("equalize", larger, 0.0) != larger).any()


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"autocontrast", "equalize"}))
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_magnitude_0_changes_nothing(name, channels):
    images = varied_images(6, 12, 10, channels)
    np.testing.assert_array_equal(apply(name, images, 0.0), images)


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"identity"}))
def test_the_sign_matters_only_for_signed_operations(name):
    images = varied_images(12, 32, 32, 3)[2:]
    positive, negative = apply(name, images, 0.6, 1.0), apply(name, images, 0.6, -1.0)
    assert (positive != images).any()
    assert (positive != negative).any() == (name in SIGNED)


def test_color_does_not_change_grayscale_images():
    images = varied_images(6, 12, 10, 1)
    np.testing.assert_array_equal(apply("color", images, 1.0, -1.0), images)


def test_pixels_outside_of_the_image_are_gray():
    images = np.zeros((2, 20, 20, 3), np.uint8)
    moved = apply("translate_x", images, 1.0, [1, -1])
    assert (moved[0, :, 11:] == 128).all()
    assert (moved[0, :, :11] == 0).all()
    assert (moved[1, :, :9] == 128).all()
    assert (moved[1, :, 9:] == 0).all()


def test_the_magnitude_is_9_of_30():
    images = varied_images(2, 40, 40, 3)
    draws = np.array([drawing("translate_x"), drawing("identity")], np.float32).reshape(4, 1)
    result = distort(tf.constant(images), tf.repeat(draws, 2, axis=1)).numpy()
    # 0.3 of 0.45 of 40 pixels is 5.4.
    np.testing.assert_array_equal(result[:, :, :35], images[:, :, 5:])


def test_the_largest_draw_is_the_last_operation():
    images = tf.constant(varied_images(3, 32, 32, 3))
    last, sign, magnitude = list(OPERATIONS)[-1], tf.ones(3), np.full(3, MAGNITUDE)
    expected = OPERATIONS[last](OPERATIONS[last](images, magnitude, sign), magnitude, sign)
    result = distort(images, tf.fill((NUM_DRAWS, 3), np.float32(1 - 2**-23)))
    np.testing.assert_array_equal(result, expected)


def test_pairs_of_operations_and_signs_are_uniform_and_independent():
    image = varied_images(9, 32, 32, 3)[2:3]
    single = [(name, sign) for name in OPERATIONS for sign in (-1.0, 1.0)]
    first = np.concatenate([apply(name, image, MAGNITUDE, sign) for name, sign in single])
    both = np.concatenate([apply(name, first, MAGNITUDE, sign) for name, sign in single])
    # Some pairs give the same image, as identity does before and after another operation.
    pairs = collections.Counter(result.tobytes() for result in both)
    assert len(pairs) > 400

    number = 8_000
    draws = tf.random.stateless_uniform((NUM_DRAWS, number), (3, 4), alg="philox")
    results = distort(tf.constant(np.repeat(image, number, axis=0)), draws).numpy()
    found = collections.Counter(result.tobytes() for result in results)
    assert set(found) <= set(pairs)
    observed = np.array([found[result] for result in pairs])
    expected = np.array(list(pairs.values())) * number / len(both)
    # The chi-square test's p-value: below this once in a thousand seeds.
    assert scipy.stats.chisquare(observed, expected).pvalue > 0.001


# The wide maxima of the paper, in Pillow's terms.
WIDE = {
    "identity": lambda image, sign: image,
    "autocontrast": lambda image, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, sign: ImageOps.equalize(image),
    "solarize": lambda image, sign: ImageOps.invert(image),
    "posterize": lambda image, sign: ImageOps.posterize(image, 2),
    "color": lambda image, sign: ImageEnhance.Color(image).enhance(1 + 0.99 * sign),
    "contrast": lambda image, sign: ImageEnhance.Contrast(image).enhance(1 + 0.99 * sign),
    "brightness": lambda image, sign: ImageEnhance.Brightness(image).enhance(1 + 0.99 * sign),
    "sharpness": lambda image, sign: ImageEnhance.Sharpness(image).enhance(1 + 0.99 * sign),
    "shear_x": lambda image, sign: moved(image, (1, 0.99 * sign, 0, 0, 1, 0)),
    "shear_y": lambda image, sign: moved(image, (1, 0, 0, 0.99 * sign, 1, 0)),
    "translate_x": lambda image, sign: moved(image, (1, 0, 32 * sign, 0, 1, 0)),
    "translate_y": lambda image, sign: moved(image, (1, 0, 0, 0, 1, 32 * sign)),
    "rotate": lambda image, sign: image.rotate(135 * sign, fillcolor=(128, 128, 128)),
}


def moved(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=(128, 128, 128))


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_magnitudes_of_trivialaugment_are_the_papers(sign):
    image = varied_images(9, 48, 64, 3)[4]
    operation, signs = np.transpose([drawing(name, sign) for name in WIDE])
    draws = np.float32([operation, np.full(len(WIDE), 0.99), signs])
    results = trivial(tf.constant(np.repeat(image[None], len(WIDE), axis=0)), draws).numpy()
    for name, result in zip(WIDE, results.astype(int), strict=True):
        expected = WIDE[name](Image.fromarray(image), sign)
        # Pillow rounds coordinates to 1/65536, and enhances in float32.
        is_other = (np.abs(result - expected) > 1).any(axis=2).mean()
        assert is_other < (0.02 if name == "rotate" else 0.001), name


def test_trivialaugment_has_31_magnitudes_from_0():
    image = np.full((1, 8, 80, 3), 100, np.uint8)
    image[:, :, 40:] = 200
    brightness = drawing("brightness")
    draws = np.float32(
        [np.full(310, brightness[0]), np.arange(310) / 310, np.full(310, brightness[1])]
    )
    results = trivial(tf.constant(np.repeat(image, 310, axis=0)), draws).numpy()[:, 0, 0, 0]
    assert results[0] == 100
    expected = np.repeat(np.floor(100 * (1 + 0.99 * np.arange(31) / 30)), 10)
    np.testing.assert_allclose(results, expected, atol=1)
    assert len(set(results)) == 31
