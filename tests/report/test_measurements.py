"""The report's numbers equal those of scikit-learn, SciPy and NumPy."""

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics
import tensorflow as tf
from reports import TEMPERATURE, dataset_of, models_of

import stkd_keras.data
from stkd_keras import FrozenTeacher, Mixup
from stkd_keras.evaluation import cost
from stkd_keras.randomness import MIXING, step_seed
from stkd_keras.report.measurements import fetch_test_images, measure, similarity_correlation

CLASSES = [f"class {n}" for n in range(12)]
MIXED = Mixup(alpha=0.7)


@pytest.fixture(scope="module")
def measured():
    """What `measure` returns for a student, its teacher and another student, and their logits."""
    dataset = dataset_of(CLASSES)
    models = models_of(dataset, 3)
    compared = {"small": models[0], "big": FrozenTeacher(models[1]), "other": models[2]}
    entries, test, virtual = measure(compared, dataset, MIXED, 5, TEMPERATURE, [None] * 3)
    logits = [
        np.float64(model.predict(np.float32(dataset.test.images), verbose=0)) for model in models
    ]
    return dataset, models, entries, test, virtual, logits


def close(one, other):
    np.testing.assert_allclose(np.float64(one), np.float64(other), atol=1e-6, rtol=0)


def kl_by_hand(teacher, student):
    teacher, student = (scipy.special.softmax(logits, axis=1) for logits in (teacher, student))
    return scipy.stats.entropy(teacher, student, axis=1)


def wilson(successes, trials):
    return scipy.stats.binomtest(int(successes), int(trials)).proportion_ci(method="wilson")


def test_accuracies_and_intervals_match_scikit_learn_and_scipy(measured):
    dataset, _, entries, _, _, all_logits = measured
    labels = dataset.test.labels
    for entry, logits in zip(entries, all_logits, strict=True):
        right = logits.argmax(axis=1) == labels
        close(entry["accuracy"], sklearn.metrics.accuracy_score(labels, logits.argmax(axis=1)))
        assert entry["correct"] == right.sum()
        close(entry["accuracy_interval"], wilson(right.sum(), len(right)))
        for number, row in enumerate(entry["per_class"]):
            of_class = right[labels == number]
            assert row["images"] == len(of_class)
            close(row["accuracy"], of_class.mean())
            close(row["interval"], wilson(of_class.sum(), len(of_class)))


def test_confusion_likelihood_and_top_5_match_scikit_learn(measured):
    dataset, _, entries, _, _, all_logits = measured
    labels, classes = dataset.test.labels, np.arange(len(CLASSES))
    for entry, logits in zip(entries, all_logits, strict=True):
        expected = sklearn.metrics.confusion_matrix(labels, logits.argmax(axis=1), labels=classes)
        np.testing.assert_array_equal(entry["confusion"], expected)
        probabilities = scipy.special.softmax(logits, axis=1)
        close(entry["nll"], sklearn.metrics.log_loss(labels, probabilities, labels=classes))
        top5 = sklearn.metrics.top_k_accuracy_score(labels, logits, k=5, labels=classes)
        close(entry["top5_accuracy"], top5)


def test_the_calibration_error_is_the_weighted_gap_of_the_bins(measured):
    dataset, _, entries, _, _, all_logits = measured
    for entry, logits in zip(entries, all_logits, strict=True):
        confidence = scipy.special.softmax(logits, axis=1).max(axis=1)
        right = logits.argmax(axis=1) == dataset.test.labels
        error = 0.0
        for row in entry["reliability"]:
            inside = (confidence > row["lower"]) & (confidence <= row["upper"])
            assert row["images"] == inside.sum()
            if inside.any():
                close(row["accuracy"], right[inside].mean())
                close(row["confidence"], confidence[inside].mean())
                error += inside.mean() * abs(row["accuracy"] - row["confidence"])
        close(entry["ece"], error)


def test_agreement_and_kl_match_numpy_and_scipy(measured):
    _, _, entries, _, _, (student, teacher, other) = measured
    assert [entry["role"] for entry in entries] == ["student", "teacher", "other"]
    for entry, logits in ((entries[0], student), (entries[2], other)):
        found = entry["fidelity"]["test"]
        close(found["agreement"], (logits.argmax(1) == teacher.argmax(1)).mean())
        close(found["kl"], kl_by_hand(teacher, logits).mean())
    assert "fidelity" not in entries[1]


def test_virtual_samples_are_test_images_mixed_as_in_training(measured):
    dataset, models, entries, _, virtual, _ = measured
    count = len(dataset.test)
    batches = stkd_keras.data.pipeline(dataset, dataset.test, count, 5, "none")
    images, labels = next(iter(batches))
    mixed, mixed_labels, _ = MIXED(
        images, tf.one_hot(labels, len(CLASSES)), seed=step_seed(5, MIXING, 0)
    )
    student, teacher = (model.predict(mixed, verbose=0) for model in models[:2])
    found = entries[0]["fidelity"]["virtual"]
    close(found["agreement"], (student.argmax(1) == teacher.argmax(1)).mean())
    close(found["kl"], kl_by_hand(teacher, student).mean())
    assert found["images"] == count
    np.testing.assert_allclose(virtual.images, mixed[:8], atol=1e-3)
    np.testing.assert_allclose(virtual.labels, mixed_labels, atol=1e-6)


def test_class_similarity_is_the_mean_soft_output_and_correlation_pearsons(measured):
    dataset, _, entries, _, _, all_logits = measured
    matrices = []
    for entry, logits in zip(entries, all_logits, strict=True):
        soft = scipy.special.softmax(logits / TEMPERATURE, axis=1)
        expected = [soft[dataset.test.labels == c].mean(axis=0) for c in range(len(CLASSES))]
        close(entry["similarity"], expected)
        matrices.append(np.array(expected))
    others = ~np.eye(len(CLASSES), dtype=bool)
    expected = scipy.stats.pearsonr(matrices[0][others], matrices[1][others]).statistic
    close(entries[0]["similarity_correlation"], expected)
    assert similarity_correlation(np.eye(2), np.eye(2)) is None


def test_the_images_fetched_are_those_asked_for(measured):
    dataset = measured[0]
    np.testing.assert_array_equal(fetch_test_images(dataset, [7, 3]), dataset.test.images[[7, 3]])


def test_costs_are_counted(measured):
    costs = measured[2][0]["cost"]
    # A convolution of 3x3 with stride 2 on 8x8, four channels; then a dense layer.
    assert costs["multiply_adds"] == 9 * 9 * 4 + 36 * 12
    assert costs["parameters"] == 9 * 4 + 2 * 4 + 36 * 12 + 12
    assert costs["images_per_second_128"] > 0
    assert costs["latency_ms"] == pytest.approx(1e3 / costs["images_per_second_1"])


def test_multiply_adds_of_other_layers_match_a_count_by_hand():
    inputs = keras.Input((8, 8, 4))
    x = keras.layers.Conv2D(8, 3, groups=2)(inputs)
    x = keras.layers.Conv2DTranspose(3, 2, strides=2)(x)
    x = keras.layers.SeparableConv2D(5, 3)(x)
    x = keras.layers.Reshape((-1, 5))(x)
    x = keras.layers.MultiHeadAttention(2, 3)(x, x)
    model = keras.Sequential([keras.Input((8, 8, 4)), keras.Model(inputs, x)])
    convolutions = 36 * 9 * 2 * 8 + 36 * 4 * 8 * 3 + 100 * (9 * 3 + 3 * 5)
    attention = 4 * 100 * 5 * 6 + 2 * 100 * 100 * 6
    assert cost.multiply_adds(model, (8, 8, 4)) == convolutions + attention
