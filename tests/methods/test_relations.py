"""Tests of SP, RKD and PKT."""

import numpy as np
import pytest
import tensorflow as tf
from every_method import call, inputs_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stkd_keras import methods

SEEDS = st.integers(0, 2**32 - 1)
DIMENSIONS = st.integers(2, 12)


def random_vectors(seed, count, dimension):
    vectors = np.random.default_rng(seed).normal(size=(count, 5, dimension)).astype("float32")
    # In nearly constant vectors, rounding errors dominate.
    assume(np.std(vectors, axis=2).min() > 0.05)
    return vectors


def loss_of(term, student, teacher):
    return call(term, {"embedding": student}, {"embedding": teacher}, np.eye(5)).numpy()


@given(seed=SEEDS, dimension=DIMENSIONS, scale=st.floats(0.5, 1e3))
@settings(max_examples=10, deadline=None)
@pytest.mark.parametrize("make_term", [methods.PKT, methods.RKD, methods.SP])
def test_relations_do_not_depend_on_the_scale(make_term, seed, dimension, scale):
    student, teacher = random_vectors(seed, 2, dimension)
    term = make_term(["embedding"])
    np.testing.assert_allclose(
        loss_of(term, np.float32(scale) * student, teacher),
        loss_of(term, student, teacher),
        rtol=1e-2,
        atol=1e-6,
    )
    assert abs(loss_of(term, student, student)) < 1e-6


@given(seed=SEEDS, dimension=DIMENSIONS, shift=st.floats(-20, 20))
@settings(max_examples=10, deadline=None)
def test_distances_and_angles_do_not_depend_on_rotation_and_shift(seed, dimension, shift):
    student, teacher = random_vectors(seed, 2, dimension)
    square = np.random.default_rng(seed).normal(size=(dimension, dimension)).astype("float32")
    rotation, _ = np.linalg.qr(square)
    moved = student @ rotation + np.float32(shift)
    expected = loss_of(methods.RKD(), student, teacher)
    np.testing.assert_allclose(
        loss_of(methods.RKD(), moved, teacher), expected, rtol=1e-3, atol=1e-3
    )


def test_equal_samples_do_not_repel_each_other():
    student, teacher, labels = inputs_of("rkd")
    student["embedding"][1] = student["embedding"][0]
    embedding = tf.constant(student["embedding"])
    with tf.GradientTape() as tape:
        tape.watch(embedding)
        loss = call(methods.RKD(), {"embedding": embedding}, teacher, labels)
    assert np.abs(tape.gradient(loss, embedding)).max() < 1e3
