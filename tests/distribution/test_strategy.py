"""Tests of the choice of a strategy."""

import types

import pytest
import tensorflow as tf

from stkd_keras import InputError
from stkd_keras.distribution.strategy import check_batch_size, largest_batch, make_strategy

TWO_REPLICAS = types.SimpleNamespace(num_replicas_in_sync=2)


def test_one_device_needs_no_strategy():
    assert make_strategy("none") is None
    if len(tf.config.list_logical_devices("GPU")) < 2:
        assert make_strategy("auto") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mirored",), "unknown way to distribute 'mirored'; the nearest known: mirrored"),
        (("mirrored", -1), "logical_devices is -1"),
        (("mirrored", 65), "logical_devices is 65"),
        (("multi_worker", 2), "each worker has one replica per GPU"),
    ],
)
def test_a_strategy_that_cannot_be_made_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        make_strategy(*arguments)


def test_devices_cannot_be_split_once_tensorflow_has_run():
    tf.zeros(1)
    with pytest.raises(InputError, match="the CPU can't be split anymore"):
        make_strategy("mirrored", 2)


def test_batches_split_evenly_over_the_replicas():
    assert [largest_batch(64, n) for n in (1, 63, 64, 65)] == [1, 63, 64, 64]
    assert [largest_batch(64, n, TWO_REPLICAS) for n in (1, 63, 64, 65)] == [2, 62, 64, 64]
    check_batch_size("batch_size", 3)
    check_batch_size("batch_size", 4, TWO_REPLICAS)
    with pytest.raises(InputError, match=r"batch_size is 3.* over 2 replicas"):
        check_batch_size("batch_size", 3, TWO_REPLICAS)
