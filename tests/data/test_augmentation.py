import numpy as np
import pytest
import tensorflow as tf

from stkd_keras.data.augmentation import AUGMENTATIONS, pad_crop_flip


def coordinates(batch, height, width):
    """Images whose pixel at (row, column) is (row + 1, column + 1); black means padding."""
    row, column = np.mgrid[1 : height + 1, 1 : width + 1]
    return np.tile(np.stack([row, column], -1).astype(np.uint8), (batch, 1, 1, 1))


def choices(images, augmented, padding):
    """Finds each image's (top, left, mirrored) by trying every crop with NumPy."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    found = []
    for source, result in zip(padded, augmented, strict=True):
        fitting = [
            (top, left, mirrored)
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
            for mirrored in (False, True)
            if np.array_equal(
                source[top : top + height, left : left + width][:, :: -1 if mirrored else 1], result
            )
        ]
        assert len(fitting) == 1
        found += fitting
    return np.array(found)


@pytest.mark.parametrize(
    ("height", "width", "padding"), [(32, 32, 4), (8, 8, 1), (64, 64, 8), (4, 4, 1), (16, 24, 2)]
)
def test_every_image_is_a_crop_of_its_padded_self(height, width, padding):
    images = np.random.default_rng(0).integers(1, 256, (16, height, width, 3), np.uint8)
    augmented = pad_crop_flip(tf.constant(images), (1, 2), flip=True)
    assert augmented.dtype == tf.uint8
    assert augmented.shape == images.shape
    choices(images, augmented.numpy(), padding)


def test_offsets_and_flips_are_uniform_and_independent():
    images = coordinates(3_000, 16, 16)
    found = choices(images, pad_crop_flip(tf.constant(images), (3, 4), flip=True).numpy(), 2)
    counts = np.zeros((5, 5, 2))
    np.add.at(counts, tuple(found.T), 1)
    # Chi-square of 49 degrees of freedom: 85 is passed once in a thousand seeds.
    assert ((counts - 60) ** 2 / 60).sum() < 85


def test_without_flip_nothing_is_mirrored_and_the_crops_are_the_same():
    images = coordinates(64, 16, 16)
    with_flip, without = (
        choices(images, pad_crop_flip(tf.constant(images), (5, 6), flip=flip).numpy(), 2)
        for flip in (True, False)
    )
    assert with_flip[:, 2].any()
    assert not without[:, 2].any()
    np.testing.assert_array_equal(with_flip[:, :2], without[:, :2])


def test_is_a_pure_function_of_the_seed_in_graphs_too():
    images = tf.constant(coordinates(32, 16, 16))
    eager = pad_crop_flip(images, (7, 8), flip=True)
    graph = tf.function(pad_crop_flip)(images, tf.constant((7, 8)), flip=True)
    np.testing.assert_array_equal(eager, graph)
    assert (eager.numpy() != pad_crop_flip(images, (7, 9), flip=True).numpy()).any()


def test_none_changes_nothing():
    images = coordinates(4, 8, 8)
    assert AUGMENTATIONS["none"](images, (0, 0), True) is images
