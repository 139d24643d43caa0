import collections
import dataclasses

import numpy as np
import pytest
import sklearn.datasets

from stkd_keras import data
from stkd_keras.errors import InputError


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


class TestSplit:
    @pytest.mark.parametrize(
        ("images", "labels"),
        [
            (np.zeros((2, 8, 8, 1), np.float32), np.zeros(2, np.int64)),
            (np.zeros((2, 8, 8), np.uint8), np.zeros(2, np.int64)),
            (np.zeros((2, 8, 8, 1), np.uint8), np.zeros(3, np.int64)),
            (np.zeros((2, 8, 8, 1), np.uint8), np.zeros((2, 1), np.int64)),
            (np.zeros((2, 8, 8, 1), np.uint8), np.zeros(2, np.float32)),
            (np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, np.int64)),
        ],
    )
    def test_refuses_what_isnt_images_with_labels(self, images, labels):
        with pytest.raises(InputError, match="expected") as error:
            data.Split(images, labels)
        one_line(error)

    def test_a_label_without_class_is_refused(self):
        with pytest.raises(InputError, match="expected 0 to 1"):
            dataclasses.replace(data.load("digits"), class_names=("a", "b"))


class TestDigits:
    def test_are_sklearns_images_each_once(self):
        digits = data.load("digits")
        ours = np.concatenate([digits.train.images, digits.test.images])
        labels = np.concatenate([digits.train.labels, digits.test.labels])
        theirs = sklearn.datasets.load_digits()
        expected = [(round_up(x), y) for x, y in zip(theirs.images, theirs.target, strict=True)]
        assert collections.Counter(
            (x.tobytes(), y) for x, y in zip(ours, labels, strict=True)
        ) == collections.Counter(expected)
        assert (ours.dtype, ours.min(), ours.max()) == (np.uint8, 0, 255)

    def test_describes_itself(self):
        digits = data.load("digits")
        assert digits.image_shape == digits.test.images.shape[1:] == (8, 8, 1)
        assert digits.num_classes == 10
        assert digits.class_names == tuple("0123456789")
        assert not digits.flip
        pixels = digits.train.images / 255
        np.testing.assert_allclose(
            (digits.mean[0], digits.std[0]), (pixels.mean(), pixels.std()), atol=1e-3
        )

    def test_a_fifth_of_each_class_is_the_test_split_and_always_the_same(self):
        first, second = data.load("digits"), data.load("digits")
        assert (len(first.train.labels), len(first.test.labels)) == (1437, 360)
        train, test = (np.bincount(s.labels) for s in (first.train, first.test))
        assert (np.abs(test - (train + test) * 360 / 1797) < 1).all()
        np.testing.assert_array_equal(first.test.images, second.test.images)


def round_up(image) -> bytes:
    return (image * 255 / 16 + 0.5).astype(np.uint8).tobytes()
