"""Tests of random draws."""

import numpy as np
import pytest
import tensorflow as tf

from stkd_keras import randomness


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("seed", [(1, 2), (123456789012, -5), (-3, 0)])
def test_draws_are_those_of_tensorflows_philox(seed, jit_compile):
    def ours(seed):
        return (
            randomness.fold_in(seed, 7),
            randomness.split_seed(seed, 3),
            randomness.random_bits((2, 50), seed),
        )

    seed = tf.constant(seed, tf.int64)
    expected = (
        tf.random.experimental.stateless_fold_in(seed, tf.constant(7, tf.int64), alg="philox"),
        tf.random.experimental.stateless_split(seed, 3, alg="philox"),
        tf.random.stateless_uniform(
            (2, 50), seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
        ),
    )
    for a, b in zip(tf.function(ours, jit_compile=jit_compile)(seed), expected, strict=True):
        np.testing.assert_array_equal(a, b)
