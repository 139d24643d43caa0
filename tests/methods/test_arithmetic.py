"""Tests of the operations that methods share."""

import numpy as np
import pytest
import tensorflow as tf

from stkd_keras.methods.arithmetic import pooled


@pytest.mark.parametrize("sizes", [(8, 4), (7, 3), (5, 5), (4, 8), (9, 1)])
def test_maps_are_pooled_like_pytorch(sizes):
    torch = pytest.importorskip("torch")
    size, smaller = sizes
    maps = np.random.default_rng(0).normal(size=(2, size, size + 1, 3)).astype("float32")
    result = pooled(tf.constant(maps), smaller, smaller)
    expected = torch.nn.functional.adaptive_avg_pool2d(
        torch.from_numpy(maps).permute(0, 3, 1, 2), (min(size, smaller), min(size + 1, smaller))
    )
    np.testing.assert_allclose(result, expected.permute(0, 2, 3, 1), atol=1e-6)


def test_a_window_is_averaged_even_if_sizes_do_not_divide():
    row = tf.reshape(tf.range(5.0), (1, 1, 5, 1))
    np.testing.assert_allclose(pooled(row, 1, 2).numpy().ravel(), [1.0, 3.0])
