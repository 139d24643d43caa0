import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from stkd_keras import data
from stkd_keras.data.dataset import Subset, pixel_statistics
from stkd_keras.errors import InputError


def noise(count, shape=(4, 5, 3)) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)


def split_of(count, shape=(4, 5, 3)) -> data.Split:
    return data.Split(noise(count, shape), np.arange(count) % 7)


@settings(max_examples=10, deadline=None)
@given(
    chosen=st.lists(st.integers(0, 19), min_size=1, max_size=30),
    indices=st.lists(st.integers(0, 10**6), max_size=40),
)
def test_joined_subsets_match_numpy(chosen, indices):
    first, second = split_of(20), split_of(9)
    joined = data.Joined(Subset(first, np.array(chosen)), second)
    images = np.concatenate([first.images[chosen], second.images])
    labels = np.concatenate([first.labels[chosen], second.labels])
    indices = np.array(indices, np.int32) % len(joined)
    for fetch in (joined.fetch, tf.function(joined.fetch)):
        fetched = fetch(tf.constant(indices))
        np.testing.assert_array_equal(fetched[0], images[indices])
        np.testing.assert_array_equal(fetched[1], labels[indices])
    np.testing.assert_array_equal(joined.labels, labels)


def test_splits_of_different_shapes_cannot_be_joined():
    with pytest.raises(InputError, match="expected the same"):
        data.Joined(split_of(3), split_of(3, (4, 4, 3)))


def test_statistics_match_numpy():
    split = split_of(50)
    mean, std = pixel_statistics(split)
    pixels = split.images / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, pixels.std((0, 1, 2)), rtol=1e-6)


def test_a_constant_channel_can_be_divided_by_its_deviation():
    images = noise(10)
    images[..., 1] = 7
    assert pixel_statistics(data.Split(images, np.arange(10)))[1][1] == 1 / 255


def test_from_arrays():
    images, labels = noise(20), np.arange(20) % 3
    dataset = data.from_arrays(images, labels.astype(np.uint8), images[:5], labels[:5])
    assert dataset.class_names == ("0", "1", "2")
    x, y = next(iter(data.pipeline(dataset, "train", 20, 0, "none")))
    order = np.argsort([image.tobytes() for image in np.uint8(x)])
    expected = np.argsort([image.tobytes() for image in images])
    np.testing.assert_array_equal(y.numpy()[order], labels[expected])
    with pytest.raises(InputError, match="expected uint8"):
        data.from_arrays(images / 255, labels, images, labels)


@pytest.mark.parametrize("aligned", [False, True])
def test_fetches_from_arrays_of_any_alignment(aligned):
    # TensorFlow aborts the process if it gets misaligned memory.
    buffer = data.aligned_empty((10 * 60 + 1,))
    start = 0 if aligned else 1
    buffer[:] = np.arange(601) % 251
    images = buffer[start : start + 600].reshape(10, 4, 5, 3)
    fetched, _ = data.Split(images, np.arange(10)).fetch(tf.constant([7, 2]))
    np.testing.assert_array_equal(fetched, images[[7, 2]])
    assert data.aligned_empty((3, 5)).ctypes.data % 64 == 0
