"""Every augmentation does to each image what its docstring says."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from stkd_keras.data.augmentation import AUGMENTATIONS, PHOTO_STEPS, parse_augmentation
from stkd_keras.errors import InputError

SMALLEST, LARGEST = 0.0, 1 - 2**-23


def apply(name, images, draws, flip=True):
    return AUGMENTATIONS[name].apply(tf.constant(images), draws, flip).numpy()


def uniform_draws(name, batch, seed=0):
    shape = (AUGMENTATIONS[name].num_draws, batch)
    return tf.random.stateless_uniform(shape, (seed, 1), alg="philox")


def random_images(batch, height, width, channels=3):
    """Images without black, which means padding, and without the gray of holes."""
    images = np.random.default_rng(0).integers(1, 256, (batch, height, width, channels), np.uint8)
    images[images == 128] = 127
    return images


def coordinates(batch, height, width):
    """Images whose pixel at (row, column) is (row + 1, column + 1); black means padding."""
    row, column = np.mgrid[1 : height + 1, 1 : width + 1]
    return np.tile(np.stack([row, column], -1).astype(np.uint8), (batch, 1, 1, 1))


def choices(images, augmented, padding):
    """Finds each image's (top, left, flipped) by trying every crop with NumPy."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    found = []
    for source, result in zip(padded, augmented, strict=True):
        fitting = [
            (top, left, flipped)
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
            for flipped in (False, True)
            if np.array_equal(
                source[top : top + height, left : left + width][:, :: -1 if flipped else 1], result
            )
        ]
        assert len(fitting) == 1
        found += fitting
    return np.array(found)


def hole_centers(augmented, side):
    """Finds each image's hole, checks that it is a square, and returns its (row, column)."""
    gray = (augmented == 128).all(axis=-1)
    size = np.array(gray.shape[1:])
    found = []
    for hole in gray:
        covered = np.argwhere(hole)
        start, stop = covered.min(axis=0), covered.max(axis=0) + 1
        assert hole.sum() == (stop - start).prod()
        center = np.where(start > 0, start + side // 2, stop - side + side // 2)
        np.testing.assert_array_equal(start, np.maximum(center - side // 2, 0))
        np.testing.assert_array_equal(stop, np.minimum(center - side // 2 + side, size))
        found.append(center)
    return np.array(found)


@pytest.mark.parametrize(
    ("height", "width", "padding"), [(32, 32, 4), (8, 8, 1), (64, 64, 8), (4, 4, 1), (16, 24, 2)]
)
def test_every_standard_image_is_a_crop_of_its_padded_self(height, width, padding):
    images = random_images(16, height, width)
    augmented = apply("standard", images, uniform_draws("standard", 16))
    assert augmented.dtype == np.uint8
    choices(images, augmented, padding)


def test_offsets_and_flips_are_uniform_and_independent():
    images = coordinates(3_000, 16, 16)
    found = choices(images, apply("standard", images, uniform_draws("standard", 3_000)), 2)
    counts = np.zeros((5, 5, 2))
    np.add.at(counts, tuple(found.T), 1)
    # Chi-square of 49 degrees of freedom: 85 is passed once in a thousand seeds.
    assert ((counts - 60) ** 2 / 60).sum() < 85


@pytest.mark.parametrize("size", [8, 32, 64, 96])
def test_extreme_draws_are_the_outermost_crops(size):
    images = coordinates(2, size, size)
    draws = tf.constant([[SMALLEST, LARGEST]] * 3)
    found = choices(images, apply("standard", images, draws), size // 8)
    np.testing.assert_array_equal(found, [[0, 0, True], [size // 4, size // 4, False]])


def test_without_flip_nothing_is_flipped_and_the_crops_are_the_same():
    images, draws = coordinates(64, 16, 16), uniform_draws("standard", 64)
    with_flip, without = (
        choices(images, apply("standard", images, draws, flip), 2) for flip in (True, False)
    )
    assert with_flip[:, 2].any()
    assert not without[:, 2].any()
    np.testing.assert_array_equal(with_flip[:, :2], without[:, :2])


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(
    ("height", "width", "side"), [(32, 32, 16), (64, 64, 32), (16, 24, 8), (8, 8, 4), (9, 7, 3)]
)
def test_cutout_is_standard_with_one_gray_square_of_half_the_shorter_side(
    height, width, side, flip
):
    images = random_images(50, height, width)
    draws = uniform_draws("cutout", 50)
    augmented = apply("cutout", images, draws, flip)
    hole_centers(augmented, side)
    hole = (augmented == 128).all(axis=-1)
    standard = apply("standard", images, draws[:3], flip)
    np.testing.assert_array_equal(augmented[~hole], standard[~hole])


def test_the_squares_center_is_uniform_over_the_image():
    images = random_images(6_400, 8, 8)
    found = hole_centers(apply("cutout", images, uniform_draws("cutout", 6_400)), 4)
    counts = np.zeros((8, 8))
    np.add.at(counts, tuple(found.T), 1)
    # Chi-square of 63 degrees of freedom: 104 is passed once in a thousand seeds.
    assert ((counts - 100) ** 2 / 100).sum() < 104


def test_the_extreme_draws_are_squares_centered_on_the_corners():
    images = random_images(2, 24, 40)
    draws = tf.constant([[SMALLEST, LARGEST]] * 5)
    found = hole_centers(apply("cutout", images, draws), 12)
    np.testing.assert_array_equal(found, [[0, 0], [23, 39]])


def test_randaugment_changes_most_images_but_not_all():
    images = random_images(500, 16, 16)
    draws = uniform_draws("randaugment", 500)
    standard = apply("standard", images, draws[:3])
    same = (apply("randaugment", images, draws) == standard).all(axis=(1, 2, 3))
    # Twice identity is drawn for one image in 196; autocontrast changes few of these images.
    assert 0 < same.mean() < 0.1


def test_none_changes_nothing_and_needs_no_draws():
    assert AUGMENTATIONS["none"].num_draws == 0
    images = coordinates(4, 8, 8)
    assert AUGMENTATIONS["none"].apply(images, tf.zeros((0, 4)), True) is images


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 5, 1), (3, 3, 2), (16, 16, 4), (33, 17, 3)])
def test_any_size_and_number_of_channels_keeps_its_shape_and_dtype(name, shape):
    images = random_images(60, *shape)
    augmented = AUGMENTATIONS[name].apply(tf.constant(images), uniform_draws(name, 60), True)
    assert augmented.shape == images.shape
    assert augmented.dtype == tf.uint8


IN_GRAPHS = {
    (name, channels, flip): tf.function(
        lambda images, draws, apply=augmentation.apply, flip=flip: apply(images, draws, flip),
        input_signature=[
            tf.TensorSpec((None, 16, 18, channels), tf.uint8),
            tf.TensorSpec((augmentation.num_draws, None), tf.float32),
        ],
    )
    for name, augmentation in AUGMENTATIONS.items()
    for channels in (1, 3)
    for flip in (True, False)
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
@given(
    data=st.data(), channels=st.sampled_from([1, 3]), flip=st.booleans(), batch=st.integers(0, 40)
)
@settings(max_examples=8, deadline=None)
def test_a_slice_is_augmented_as_in_the_whole_batch(name, data, channels, flip, batch):
    start = data.draw(st.integers(0, batch), label="start")
    stop = data.draw(st.integers(start, batch), label="stop")
    images = random_images(batch, 16, 18, channels)
    draws = uniform_draws(name, batch, seed=data.draw(st.integers(0, 2**31 - 1), label="seed"))
    augment = IN_GRAPHS[name, channels, flip]
    whole = augment(images, draws).numpy()
    part = augment(images[start:stop], draws[:, start:stop]).numpy()
    np.testing.assert_array_equal(part, whole[start:stop])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_graphs_with_an_unknown_batch_size_match_eager_calls(name):
    images = random_images(200, 16, 18)
    draws = uniform_draws(name, 200)
    augment = IN_GRAPHS[name, 3, True]
    assert augment.get_concrete_function().output_shapes.as_list() == [None, 16, 18, 3]
    np.testing.assert_array_equal(augment(images, draws), apply(name, images, draws))


@pytest.mark.parametrize("name", sorted(set(AUGMENTATIONS) - {"none", "photo"}))
def test_other_draws_give_other_images(name):
    images = random_images(32, 16, 16)
    first, second = (apply(name, images, uniform_draws(name, 32, seed)) for seed in (0, 1))
    assert (first != second).any(axis=(1, 2, 3)).mean() > 0.5


def test_a_quarter_of_the_images_are_erased_in_part():
    number_of_draws, erase = PHOTO_STEPS["erasing"]
    draws = tf.random.stateless_uniform((number_of_draws, 4000), (1, 2), alg="philox")
    images = np.zeros((4000, 20, 30, 1), np.uint8)
    erased = erase(tf.constant(images), draws).numpy()[..., 0]
    assert set(np.unique(erased)) == {0, 128}
    is_erased = erased.any(axis=(1, 2))
    assert is_erased.mean() == pytest.approx(0.25, abs=0.03)
    holes = erased[is_erased] > 0
    rows, columns = holes.any(axis=2), holes.any(axis=1)
    # Each hole is a whole rectangle.
    np.testing.assert_array_equal(holes, rows[:, :, None] & columns[:, None, :])
    areas = holes.mean(axis=(1, 2))
    assert 0.01 < areas.min() < 0.03
    assert 0.3 < areas.max() < 0.37
    ratios = columns.sum(axis=1) / rows.sum(axis=1)
    assert np.median(ratios) == pytest.approx(1, abs=0.15)
    for lines in (rows, columns):
        assert lines.mean(axis=0).min() > 0.03


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("foto", "photo"),
        ("photo,trivial", "trivialaugment"),
        ("photo,erasing,randaugment", "then erasing"),
        ("photo,trivialaugment,randaugment", "trivialaugment or randaugment"),
        ("photo,erasing,erasing", "then erasing"),
        ("standard,erasing", "expected photo"),
        ("photo, erasing", "erasing"),
    ],
)
def test_steps_that_are_unknown_or_out_of_order_are_refused(text, named):
    with pytest.raises(InputError, match=named):
        parse_augmentation(text)
