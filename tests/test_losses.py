"""The soft loss matches its formula and PyTorch's implementation."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stkd_keras import SoftTargetLoss
from stkd_keras.classifiers.outputs import logits_of_probabilities

LOGITS = hnp.arrays(np.float32, (3, 5), elements=st.floats(-30, 30, width=32))


def softmax(z):
    e = np.exp(np.float64(z) - np.max(z, axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_no_test_is_computed_in_tensorfloat_32():
    assert not tf.config.experimental.tensor_float_32_execution_enabled()


@given(teacher=LOGITS, student=LOGITS, temperature=st.sampled_from([0.5, 1.0, 4.0, 20.0]))
@settings(max_examples=50, deadline=None)
def test_each_sample_has_t_squared_times_the_kl_of_the_softened_softmaxes(
    teacher, student, temperature
):
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    expected = temperature**2 * np.where(p > 0, p * (np.log(p) - np.log(q)), 0).sum(axis=-1)
    loss = SoftTargetLoss(temperature)
    np.testing.assert_allclose(loss.call(teacher, student), expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(loss(teacher, student), expected.mean(), rtol=1e-4, atol=1e-3)
    assert (loss.call(teacher, student).numpy() >= -1e-3).all()


@pytest.mark.parametrize("temperature", [1, 4])
def test_it_equals_the_original_pytorch_loss(shared, temperature):
    reference = np.load(shared / "reference" / "losses.npz")
    loss = SoftTargetLoss(float(temperature))(
        reference["teacher_logits"], reference["student_logits"]
    )
    np.testing.assert_allclose(loss, reference[f"expected_kd_T{temperature}"], rtol=1e-5)


def test_half_precision_logits_are_compared_in_float32():
    teacher = np.array([[20.0, -20.0, 0.0]], "float16")
    loss = SoftTargetLoss(1.0)(teacher, teacher[:, ::-1])
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    np.testing.assert_allclose(loss, 20.0, rtol=1e-5)


def test_sample_weights_scale_the_losses_of_samples():
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 4, 3)).astype("float32")
    weights = np.array([0.0, 1.0, 2.0, 0.5], "float32")
    loss = SoftTargetLoss(2.0)
    expected = (weights * loss.call(teacher, student).numpy()).mean()
    np.testing.assert_allclose(loss(teacher, student, sample_weight=weights), expected, rtol=1e-6)


def test_logits_of_probabilities_are_their_logarithms_and_finite():
    p = np.array([[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]], "float32")
    logits = logits_of_probabilities(p).numpy()
    np.testing.assert_allclose(softmax(logits), p, atol=1e-7)
    assert logits[0, 0] == np.float32(np.log(np.finfo(np.float32).tiny))
