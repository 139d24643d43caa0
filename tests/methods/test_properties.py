"""What holds of a method's loss for any features."""

import numpy as np
import pytest
import tensorflow as tf
from every_method import NAMES, call, inputs_of, make
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stkd_keras import methods
from stkd_keras.methods import crd, hints, logits

SEEDS = st.integers(0, 2**32 - 1)
MAPS = st.tuples(*[st.integers(1, 6)] * 3)
ANY = {"max_examples": 20, "deadline": None}


def maps(seed, shape, batch=5):
    return np.random.default_rng(seed).normal(size=(batch, *shape)).astype("float32")


def loss(term, student, teacher):
    """The mean loss of a term of one feature, or of the same one twice."""
    student, teacher = (dict.fromkeys(term.features, each) for each in (student, teacher))
    return call(term, student, teacher, np.eye(len(next(iter(student.values()))))).numpy()


def assume_spread(*features, axis=1):
    """Leaves out what is nearly constant along an axis: there rounding errors count."""
    assume(min(np.std(each, axis=axis).min() for each in features) > 0.05)


@given(seed=SEEDS, shape=MAPS)
@settings(**ANY)
@pytest.mark.parametrize("make_term", [methods.AT, methods.NST, methods.SP])
def test_equal_maps_cost_nothing(make_term, seed, shape):
    x = maps(seed, shape)
    assert abs(loss(make_term(["a"]), x, x)) < 1e-6
    assert not np.any(hints.hint_loss(x, x))
    assert loss(methods.FSP(["a", "b"]), x, x) == 0


@given(seed=SEEDS, dimension=st.integers(2, 12))
@settings(**ANY)
@pytest.mark.parametrize("make_term", [methods.RKD, methods.PKT, methods.StandardizedKD])
def test_equal_vectors_cost_nothing(make_term, seed, dimension):
    x = maps(seed, (dimension,))
    assert abs(loss(make_term(), x, x)) < 1e-6


@given(seed=SEEDS, shape=MAPS, scale=st.floats(1e-3, 1e3))
@settings(**ANY)
def test_attention_does_not_depend_on_the_size_of_the_maps(seed, shape, scale):
    student, teacher = maps(seed, shape), maps(seed + 1, shape)
    term = methods.AT(["a"])
    scaled = loss(term, np.float32(scale) * student, teacher)
    np.testing.assert_allclose(scaled, loss(term, student, teacher), rtol=1e-4, atol=1e-7)


@given(seed=SEEDS, dimension=st.integers(2, 12), scale=st.floats(0.5, 1e3))
@settings(**ANY)
@pytest.mark.parametrize("make_term", [methods.PKT, methods.RKD, methods.SP])
def test_relations_do_not_depend_on_the_size_of_the_vectors(make_term, seed, dimension, scale):
    student, teacher = maps(seed, (dimension,)), maps(seed + 1, (dimension,))
    assume_spread(student, teacher)
    term = make_term(["embedding"])
    scaled = loss(term, np.float32(scale) * student, teacher)
    np.testing.assert_allclose(scaled, loss(term, student, teacher), rtol=1e-2, atol=1e-6)


@given(seed=SEEDS, dimension=st.integers(2, 8), shift=st.floats(-20, 20))
@settings(**ANY)
def test_distances_and_angles_do_not_depend_on_rotation_and_shift(seed, dimension, shift):
    student, teacher = maps(seed, (dimension,)), maps(seed + 1, (dimension,))
    rotation, _ = np.linalg.qr(maps(seed + 2, (dimension,), batch=dimension))
    moved = student @ rotation + np.float32(shift)
    expected = loss(methods.RKD(), student, teacher)
    np.testing.assert_allclose(loss(methods.RKD(), moved, teacher), expected, rtol=1e-3, atol=1e-3)


@given(seed=SEEDS, classes=st.integers(2, 12), shift=st.floats(-30, 30), scale=st.floats(0.1, 50))
@settings(**ANY)
def test_standardized_logits_do_not_depend_on_shift_and_scale(seed, classes, shift, scale):
    student, teacher = maps(seed, (classes,)), maps(seed + 1, (classes,))
    assume_spread(student, teacher)
    moved = np.float32(scale) * student + np.float32(shift)
    np.testing.assert_allclose(
        logits.standardized(tf.constant(moved)),
        logits.standardized(tf.constant(student)),
        atol=2e-3,
    )
    assert loss(methods.StandardizedKD(), moved, teacher) == pytest.approx(
        loss(methods.StandardizedKD(), student, teacher), rel=1e-2, abs=1e-3
    )


@given(seed=SEEDS, classes=st.integers(2, 12), scale=st.floats(0.1, 5), axis=st.integers(0, 1))
@settings(**ANY)
def test_relations_of_probabilities_do_not_depend_on_affine_maps(seed, classes, scale, axis):
    student, teacher = maps(seed, (classes,)), maps(seed + 1, (classes,))
    assume_spread(student, teacher, axis=axis)
    assert abs(logits.relation_loss(student, student, axis)) < 1e-5
    shape = (len(student), 1) if axis == 1 else (1, classes)
    shifts = np.random.default_rng(seed).normal(size=shape).astype("float32")
    np.testing.assert_allclose(
        logits.relation_loss(np.float32(scale) * student + shifts, teacher, axis),
        logits.relation_loss(student, teacher, axis),
        atol=1e-3,
    )


# Of neighbours in the batch alone, so that their order counts.
ORDERED = {"cc"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ORDERED | {"crd"}])
@given(order=st.permutations(range(6)))
@settings(max_examples=5, deadline=None)
def test_the_order_of_the_batch_does_not_count(name, order):
    student, teacher, labels = inputs_of(name)
    term = make(name)
    expected = call(term, student, teacher, labels)
    order = np.array(order)
    student, teacher = (
        {key: values[order] for key, values in each.items()} for each in (student, teacher)
    )
    permuted = call(term, student, teacher, labels[order])
    np.testing.assert_allclose(permuted, expected, rtol=1e-4, atol=1e-6)


@given(seed=SEEDS, negatives=st.integers(1, 20), num_images=st.integers(2, 100))
@settings(**ANY)
def test_a_likelier_positive_and_unlikelier_negatives_cost_less(seed, negatives, num_images):
    rng = np.random.default_rng(seed)
    likelihoods = rng.normal(size=(3, 1 + negatives)).astype("float32")
    better = likelihoods + np.array([1] + [-1] * negatives, "float32")
    before, after = (crd.contrastive_loss(x, num_images) for x in (likelihoods, better))
    assert (after < before).numpy().all()
