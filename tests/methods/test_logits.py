"""Tests of DKD, DIST and distillation of standardized logits."""

import contextlib

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from every_method import NUM_CLASSES, call, inputs_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stkd_keras import SimilarityTransferDistiller, SoftTargetLoss, methods
from stkd_keras.methods import logits

SEEDS = st.integers(0, 2**32 - 1)


def random_pair(seed, classes, axis=1):
    """Logits of student and teacher, neither nearly constant, where rounding errors dominate."""
    pair = np.random.default_rng(seed).normal(size=(2, 5, classes)).astype("float32")
    assume(np.std(pair, axis=axis + 1).min() > 0.05)
    return pair


def loss_of(term, student, teacher):
    return call(term, {"logits": student}, {"logits": teacher}, np.eye(5)).numpy()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_losses_add_up_to_plain_distillation(temperature):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(scale=4, size=(2, 8, NUM_CLASSES)).astype("float32")
    labels = np.eye(NUM_CLASSES, dtype="float32")[rng.integers(NUM_CLASSES, size=8)]
    target_loss, other_loss = logits.decoupled_losses(
        tf.constant(student), tf.constant(teacher), tf.constant(labels), temperature
    )
    p_target = (keras.ops.softmax(teacher / temperature) * labels).numpy().sum(axis=1)
    plain = SoftTargetLoss(temperature).call(teacher, student)
    np.testing.assert_allclose(target_loss + (1 - p_target) * other_loss, plain, rtol=1e-4)
    loss = methods.DKD(temperature=temperature, alpha=3.0, beta=0.5)(
        {"logits": student}, {"logits": teacher}, labels
    )
    np.testing.assert_allclose(loss, 3 * target_loss + 0.5 * other_loss, rtol=1e-5)


@pytest.mark.parametrize("name", ["dkd", "dist", "kd_standardized", "sp"])
def test_a_method_that_learns_little_from_two_classes_says_so(name):
    rng = np.random.default_rng(0)
    student, teacher = tf.constant(rng.normal(size=(2, 8, 2)), tf.float32)
    labels = np.eye(2, dtype="float32")[[0, 1] * 4]
    if name == "dkd":
        _, other_loss = logits.decoupled_losses(student, teacher, labels, 4.0)
        np.testing.assert_allclose(other_loss, np.zeros(8), atol=1e-6)
    elif name == "dist":
        with tf.GradientTape() as tape:
            tape.watch(student)
            loss = logits.relation_loss(tf.nn.softmax(student), tf.nn.softmax(teacher), axis=1)
        np.testing.assert_allclose(tape.gradient(loss, student), np.zeros((8, 2)), atol=1e-6)
    elif name == "kd_standardized":
        sign = np.sign(teacher.numpy() - teacher.numpy()[:, ::-1])
        np.testing.assert_allclose(logits.standardized(teacher), sign * 0.5**0.5, rtol=1e-5)
    says_so = pytest.warns(UserWarning, match="learns little from two classes")
    for classes in (2, 3):
        models = [networks.staged_classifier(4, classes) for _ in range(2)]
        with says_so if classes == 2 and name != "sp" else contextlib.nullcontext():
            SimilarityTransferDistiller(*models, mixing=None, terms=[methods.METHODS[name].term()])


def test_unlabeled_samples_have_no_decoupled_loss():
    student, teacher, labels = inputs_of("dkd")
    labels[2] = 0
    loss = methods.DKD()(student, teacher, labels).numpy()
    assert loss[2] == 0
    assert (np.delete(loss, 2) > 0).all()


@given(seed=SEEDS, classes=st.integers(2, 12), shift=st.floats(-30, 30), scale=st.floats(0.1, 50))
@settings(max_examples=10, deadline=None)
def test_standardized_logits_do_not_depend_on_shift_and_scale(seed, classes, shift, scale):
    student, teacher = random_pair(seed, classes)
    moved = np.float32(scale) * student + np.float32(shift)
    np.testing.assert_allclose(
        logits.standardized(tf.constant(moved)),
        logits.standardized(tf.constant(student)),
        atol=2e-3,
    )
    term = methods.StandardizedKD()
    expected = loss_of(term, student, teacher)
    assert loss_of(term, moved, teacher) == pytest.approx(expected, rel=1e-2, abs=1e-3)
    assert abs(loss_of(term, student, student)) < 1e-6


@given(seed=SEEDS, classes=st.integers(2, 12), scale=st.floats(0.1, 5), axis=st.integers(0, 1))
@settings(max_examples=10, deadline=None)
def test_relations_do_not_depend_on_affine_maps(seed, classes, scale, axis):
    student, teacher = random_pair(seed, classes, axis)
    assert abs(logits.relation_loss(student, student, axis)) < 1e-5
    shape = (len(student), 1) if axis == 1 else (1, classes)
    shifts = np.random.default_rng(seed).normal(size=shape).astype("float32")
    np.testing.assert_allclose(
        logits.relation_loss(np.float32(scale) * student + shifts, teacher, axis),
        logits.relation_loss(student, teacher, axis),
        atol=1e-3,
    )
