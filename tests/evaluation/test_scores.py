"""Scores match scikit-learn, SciPy and their definitions."""

import keras
import networks
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import sklearn.metrics
import tensorflow as tf
from scipy.special import log_softmax, softmax

from stkd_keras import FrozenTeacher, InputError, data
from stkd_keras.evaluation.scores import (
    fidelity,
    fit_temperature,
    predict_logits,
    score,
    wilson_interval,
)
from stkd_keras.recipes import method_settings


@pytest.fixture
def logits_and_labels():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 20, 500)
    logits = rng.normal(size=(500, 20)) + 2 * np.eye(20)[labels]
    return logits, labels


def test_accuracy_and_likelihood_match_scikit_learn(logits_and_labels):
    logits, labels = logits_and_labels
    scores, p = score(logits, labels), softmax(logits, axis=1)
    classes = np.arange(20)
    assert scores["accuracy"] == sklearn.metrics.accuracy_score(labels, p.argmax(axis=1))
    top5 = sklearn.metrics.top_k_accuracy_score(labels, p, k=5, labels=classes)
    assert scores["top5_accuracy"] == pytest.approx(top5)
    assert scores["nll"] == pytest.approx(sklearn.metrics.log_loss(labels, p, labels=classes))


def test_the_calibration_error_has_fifteen_equal_bins(logits_and_labels):
    logits, labels = logits_and_labels
    p = softmax(logits, axis=1)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == labels
    expected = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            expected += abs(correct[inside].sum() - confidence[inside].sum()) / len(labels)
    assert score(logits, labels)["ece"] == pytest.approx(expected)


def test_an_overconfident_classifier_has_a_calibration_error():
    labels = np.array([0] * 75 + [1] * 25)
    calibrated = np.tile(np.log([0.75, 0.25]), (100, 1))
    assert score(calibrated, labels)["ece"] == pytest.approx(0, abs=1e-9)
    assert score(np.tile([50.0, 0.0], (100, 1)), labels)["ece"] == pytest.approx(0.25)


def test_ten_classes_have_no_top5_accuracy():
    assert "top5_accuracy" not in score(np.eye(10), np.arange(10))


def test_fidelity_is_agreement_and_kl():
    student = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    teacher = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    p, q = softmax(teacher, axis=1), softmax(student, axis=1)
    result = fidelity(student, teacher)
    assert result["agreement"] == pytest.approx(2 / 3)
    assert result["kl"] == pytest.approx((p * np.log(p / q)).sum(axis=1).mean())


def test_huge_logits_give_finite_scores():
    scores = score(np.array([[1e4, 0.0], [0.0, 1e4]]), np.array([0, 0]))
    assert scores["nll"] == pytest.approx(5e3)


def test_logits_are_predicted_for_every_sample_in_order():
    model = networks.dense_classifier()
    x, y = networks.vectors(50)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    logits, labels = predict_logits(FrozenTeacher(model), batches, verbose=False)
    np.testing.assert_allclose(logits, model(x), atol=1e-6)
    np.testing.assert_array_equal(labels, y)


def test_padding_is_not_predicted():
    split = data.load("digits").test
    model = keras.Sequential([keras.Input(split.image_shape), keras.layers.Flatten()])
    batches = data.evaluation_pipeline(split, 100)
    assert int(batches.cardinality()) * 100 > len(split)
    logits, labels = predict_logits(model, batches, verbose=False)
    np.testing.assert_array_equal(logits, split.images.reshape(len(split), -1))
    np.testing.assert_array_equal(labels, split.labels)


@pytest.mark.parametrize(("right", "of"), [(0, 1), (1, 1), (50, 50), (9_000, 10_000)])
def test_wilson_intervals_match_scipy(right, of):
    expected = scipy.stats.binomtest(right, of).proportion_ci(method="wilson")
    np.testing.assert_allclose(wilson_interval(right, of), expected, atol=1e-6)


def test_a_method_sets_defaults_and_an_explicit_flag_wins():
    assert method_settings("kd")["mixing"] == "none"
    assert method_settings("kd", mixup_alpha=0.5)["mixing"] == "mixup"
    assert method_settings("kd", mixing="cutmix", mixup_alpha=0.5)["mixing"] == "cutmix"
    assert method_settings("stkd", soft_weight=0.5)["soft_weight"] == 0.5
    assert method_settings("stkd", mixup_probability=0.0)["mixing"] == "none"
    assert method_settings("stkd", mixing="none") == method_settings("kd")
    assert method_settings("kd", mixing="mixup") == method_settings("stkd")
    settings = method_settings("stkd", mixup_alpha=0.5, mixup_probability=0.3)
    assert settings == {
        **method_settings("stkd"),
        "mixup_alpha": 0.5,
        "mixup_probability": 0.3,
    }
    with pytest.raises(InputError, match="'stdk'; the nearest known: stkd"):
        method_settings("stdk")


def problem(seed, classes=20):
    """Overconfident logits of a random scale, and labels that they predict in part."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, 1000)
    logits = rng.normal(size=(1000, classes)) + 2 * np.eye(classes)[labels]
    return 10 ** rng.uniform(-4, 4) * logits.astype(np.float32), labels


@pytest.mark.parametrize("seed", range(10))
def test_the_temperature_is_scipys_minimum(seed):
    logits, labels = problem(seed, classes=200 if seed == 9 else 20)

    def nll(log_temperature):
        log_p = log_softmax(np.float64(logits) / np.exp(log_temperature), axis=1)
        return -log_p[np.arange(len(labels)), labels].mean()

    best = scipy.optimize.minimize_scalar(nll, bounds=(-12, 12), options={"xatol": 1e-10})
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(np.exp(best.x), rel=1e-4)
    scores = score(logits, labels, temperature)
    assert scores["calibrated_nll"] == pytest.approx(best.fun)
    assert scores["calibrated_ece"] == score(logits / temperature, labels)["ece"]


@pytest.mark.parametrize(
    ("logits", "labels", "why"),
    [
        (np.eye(2), [1, 1], "all 2 labels are class 1"),
        (np.zeros((4, 1)), [0] * 4, "all 4 labels are class 0"),
        (np.zeros((4, 200)), [0, 1, 2, 3], "don't help to predict the 4 labels"),
        (-np.eye(3), [0, 1, 2], "don't help to predict the 3 labels"),
        (np.eye(3), [0, 1, 2], "all 3 predictions are correct"),
        (1e30 * np.eye(3), [0, 1, 2], "all 3 predictions are correct"),
    ],
)
def test_a_temperature_without_a_best_value_stays_one(logits, labels, why):
    with pytest.warns(UserWarning, match=f"no temperature is best, so it stays 1: .*{why}"):
        assert fit_temperature(logits, labels) == 1.0


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[np.nan, 0.0]], [0], "logits have NaN or infinite"),
        ([[np.inf, 0.0]], [0], "logits have NaN or infinite"),
        (np.zeros((0, 3)), [], r"logits have shape \(0, 3\) and labels \(0,\)"),
        (np.zeros((2, 3)), [0], r"logits have shape \(2, 3\) and labels \(1,\)"),
        (np.zeros((2, 3)), [0, 3], "labels are int64 from 0 to 3, but must be integers"),
        (np.zeros((2, 3)), [0.5, 1], "labels are float64"),
    ],
)  # fmt: skip
def test_a_temperature_needs_finite_logits_and_their_labels(logits, labels, message):
    with pytest.raises(InputError, match=message):
        fit_temperature(logits, labels)
