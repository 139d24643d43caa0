import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stkd_keras import data
from stkd_keras.errors import InputError


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def labeled(labels) -> data.Dataset:
    """A data set whose images store their index in their four pixels."""
    labels = np.asarray(labels)
    images = np.arange(len(labels), dtype=np.uint32).view(np.uint8).reshape(-1, 2, 2, 1)
    split = data.Split(images, labels)
    names = tuple(f"class{label}" for label in range(labels.max() + 1))
    return data.Dataset("made", "1.0.0", names, (0.5,), (0.5,), False, split, split)


def numbers(split: data.Split) -> np.ndarray:
    return np.ascontiguousarray(split.images).reshape(-1, 4).view(np.uint32)[:, 0]


class TestSplitTrain:
    @settings(max_examples=50, deadline=None)
    @given(
        counts=st.lists(st.integers(20, 60), min_size=2, max_size=6),
        validation=st.floats(0.06, 0.5),
        fractions=st.tuples(st.floats(0.12, 1), st.floats(0.12, 1)).map(sorted),
        seed=st.integers(0, 2**40),
    )
    def test_every_class_gives_its_share(self, counts, validation, fractions, seed):
        labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
        dataset = labeled(labels)
        smaller, held_out = data.split_train(dataset, validation, fractions[0], seed)
        larger, again = data.split_train(dataset, validation, fractions[1], seed)
        np.testing.assert_array_equal(numbers(held_out), numbers(again))
        assert set(numbers(smaller)) <= set(numbers(larger))
        assert not set(numbers(larger)) & set(numbers(held_out))

        rest = np.array(counts) - np.bincount(held_out.labels)
        for part, fraction, source in (
            (held_out, validation, np.array(counts)),
            (smaller, fractions[0], rest),
            (larger, fractions[1], rest),
        ):
            np.testing.assert_array_equal(part.labels, labels[numbers(part)])
            assert len(part.labels) == round(fraction * source.sum())
            exact = source * len(part.labels) / source.sum()
            assert (np.abs(np.bincount(part.labels) - exact) < 1).all()

    def test_counts_for_cifar10(self):
        dataset = labeled(np.arange(50_000) % 10)
        train, validation = data.split_train(dataset, 0.02, 0.1, 0)
        assert np.bincount(validation.labels).tolist() == [100] * 10
        assert np.bincount(train.labels).tolist() == [490] * 10

    def test_the_default_keeps_all_images(self):
        dataset = labeled([0, 1, 0, 1])
        train, validation = data.split_train(dataset)
        assert train is dataset.train
        assert validation is None

    def test_the_seed_decides(self):
        dataset = labeled(np.arange(1000) % 10)
        parts = [data.split_train(dataset, 0.1, 0.5, seed) for seed in (0, 0, 1)]
        for index in (0, 1):
            same, again, other = (numbers(part[index]) for part in parts)
            np.testing.assert_array_equal(same, again)
            assert set(same) != set(other)

    def test_almost_all_of_the_rest(self):
        train, _ = data.split_train(labeled(np.arange(1000) % 10), 0.0, 0.999, 0)
        assert len(train.labels) == 999

    def test_images_per_class(self):
        dataset = labeled(np.repeat([0, 1, 2], [30, 40, 50]))
        train, validation = data.split_train(dataset, 0.1, seed=3, images_per_class=20)
        assert np.bincount(train.labels).tolist() == [20, 20, 20]
        assert np.bincount(validation.labels).tolist() == [3, 4, 5]
        with pytest.raises(InputError, match="at most 27") as error:
            data.split_train(dataset, 0.1, seed=3, images_per_class=28)
        assert "'class0'" in one_line(error)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"validation_fraction": -0.1},
            {"validation_fraction": 1},
            {"validation_fraction": float("nan")},
            {"validation_fraction": 0.004},
            {"validation_fraction": 0.99},
            {"train_fraction": 0},
            {"train_fraction": 1.5},
            {"train_fraction": 0.01},
            {"images_per_class": 0},
            {"images_per_class": 2, "train_fraction": 0.5},
            {"seed": -1},
        ],
    )
    def test_refuses(self, arguments):
        with pytest.raises(InputError) as error:
            data.split_train(labeled(np.arange(100) % 10), **arguments)
        assert next(iter(arguments)) in one_line(error)
