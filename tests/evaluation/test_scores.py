"""Scores match scikit-learn, SciPy and their definitions."""

import keras
import networks
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import tensorflow as tf
from scipy.special import softmax

from stkd_keras import FrozenTeacher, InputError, data
from stkd_keras.evaluation.scores import fidelity, predict_logits, score, wilson_interval
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
