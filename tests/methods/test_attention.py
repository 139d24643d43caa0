"""Tests of AT and NST."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from every_method import STUDENT, call, make, random_features
from hypothesis import given, settings
from hypothesis import strategies as st

from stkd_keras import methods
from stkd_keras.methods.arithmetic import pooled


@pytest.mark.parametrize("name", ["at", "nst", "vid", "ft"])
@pytest.mark.parametrize("student_is_larger", [True, False])
def test_the_larger_maps_are_pooled_to_the_smaller(name, student_is_larger):
    halved = {key: (h // 2, w // 2, c) for key, (h, w, c) in STUDENT.items()}
    shapes = (STUDENT, halved) if student_is_larger else (halved, STUDENT)
    student, teacher = (random_features(i, shapes=shapes[i]) for i in range(2))
    keras.utils.set_random_seed(0)
    loss = call(make(name), student, teacher, np.eye(6))
    assert np.isfinite(loss)
    if name in ("at", "nst"):
        smaller, larger = (teacher, student) if student_is_larger else (student, teacher)
        sizes = {key: values.shape[1:3] for key, values in smaller.items() if values.ndim == 4}
        larger |= {
            key: pooled(tf.constant(larger[key]), *size).numpy() for key, size in sizes.items()
        }
        np.testing.assert_allclose(call(make(name), student, teacher, np.eye(6)), loss, rtol=1e-5)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    scale=st.floats(1e-3, 1e3),
)
@settings(max_examples=10, deadline=None)
def test_attention_does_not_depend_on_the_scale_and_equal_maps_cost_nothing(seed, shape, scale):
    maps = np.random.default_rng(seed).normal(size=(2, 5, *shape)).astype("float32")
    student, teacher = ({"a": each} for each in maps)
    scaled = {"a": np.float32(scale) * student["a"]}
    labels, at = np.eye(5), methods.AT(["a"])
    np.testing.assert_allclose(
        call(at, scaled, teacher, labels), call(at, student, teacher, labels), rtol=1e-4, atol=1e-7
    )
    for term in (at, methods.NST(["a"])):
        assert abs(call(term, student, student, labels)) < 1e-6
