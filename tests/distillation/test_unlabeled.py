"""Tests of unlabeled images: they count in the soft loss only."""

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from distillers import LABEL, SOFT, losses_by_hand, make

from stkd_keras import InputError, Mixup


@pytest.mark.parametrize("mixing", [Mixup(0.5, 3), Mixup(1.0, probability=0.0)])
def test_an_unlabeled_image_counts_in_the_soft_loss_only(mixing):
    keras.utils.set_random_seed(0)
    distiller = make(eager=True, mixing=mixing, data_seed=5)
    x, labels = networks.vectors(16)
    labels[::3] = -1
    soft_labels = np.eye(5)[labels] * (labels >= 0)[:, None]
    expected = losses_by_hand(distiller, x, soft_labels, np.ones(16), step=0)
    logs = distiller.train_on_batch(x, labels, return_dict=True)
    np.testing.assert_allclose(logs["label_loss"], expected[0], rtol=1e-5)
    np.testing.assert_allclose(logs["soft_loss"], expected[1], rtol=1e-5)
    np.testing.assert_allclose(logs["loss"], LABEL * expected[0] + SOFT * expected[1], rtol=1e-5)


def test_the_student_follows_the_gradient_of_this_loss():
    keras.utils.set_random_seed(0)
    distiller = make(soft_weight=0.0, mixing=Mixup(1.0))
    distiller.compile(keras.optimizers.SGD(1.0), run_eagerly=True)
    x, labels = networks.vectors(32)
    labels[::2] = -1
    soft_labels = (np.eye(5)[labels] * (labels >= 0)[:, None]).astype("float32")
    weights = np.random.default_rng(1).uniform(0, 2, (32, 1)).astype("float32")
    mixed_x, mixed_y, mixed_weights = distiller.virtual_samples(
        x, soft_labels, weights, tf.constant(0)
    )
    variables = distiller.student.trainable_variables
    with tf.GradientTape() as tape:
        log_probabilities = tf.nn.log_softmax(distiller.student(mixed_x))
        losses = -tf.reduce_sum(mixed_y * log_probabilities, axis=1)
        loss = LABEL * tf.reduce_mean(losses * mixed_weights[:, 0])
    expected = [
        variable.numpy() - gradient.numpy()
        for variable, gradient in zip(
            variables, tape.gradient(loss, [v.value for v in variables]), strict=True
        )
    ]
    distiller.fit(x, labels, sample_weight=weights, batch_size=32, shuffle=False, verbose=0)
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, atol=1e-5)


def test_metrics_ignore_unlabeled_images():
    distiller = make(mixing=None)
    distiller.compile(
        keras.optimizers.SGD(0.0),
        metrics=["accuracy", "sparse_top_k_categorical_accuracy"],
        weighted_metrics=[keras.metrics.CategoricalAccuracy(name="weighted")],
        run_eagerly=True,
    )
    x, labels = networks.vectors(64)
    correct = distiller.student(x).numpy().argmax(axis=1) == labels
    weights = np.random.default_rng(0).uniform(0.5, 2, 64)
    labels[10:30] = -1
    known = labels >= 0
    expected = {
        "accuracy": correct[known].mean(),
        "sparse_top_k_categorical_accuracy": 1.0,
        "weighted": np.average(correct[known], weights=weights[known]),
    }
    history = distiller.fit(x, labels, sample_weight=weights, batch_size=16, verbose=0).history
    scores = distiller.evaluate(x, labels, sample_weight=weights, return_dict=True, verbose=0)
    for name, value in expected.items():
        np.testing.assert_allclose(history[name], [value], rtol=1e-5)
        np.testing.assert_allclose(scores[name], value, rtol=1e-5)


def test_without_label_weight_fit_needs_no_labels():
    students = []
    x, labels = networks.vectors(32)
    for data in ((x, labels), (x,), (tf.data.Dataset.from_tensor_slices(x).batch(16),)):
        keras.utils.set_random_seed(0)
        distiller = make(eager=True, label_weight=0.0)
        batch_size = 16 if data[0] is x else None
        history = distiller.fit(*data, batch_size=batch_size, shuffle=False, verbose=0).history
        students.append(distiller.student.get_weights())
    assert set(history) == {"loss", "soft_loss", "teacher_agreement"}
    for with_labels, *without in zip(*students, strict=True):
        for weights in without:
            np.testing.assert_allclose(with_labels, weights, atol=1e-6)


def test_labels_may_come_later():
    distiller = make(label_weight=0.0)
    x, labels = networks.vectors(32)
    history = distiller.fit(x, validation_data=(x, labels), verbose=0).history
    assert {"val_loss", "val_accuracy", "loss", "soft_loss"} <= set(history)
    assert "accuracy" not in history
    history = distiller.fit(x, labels, verbose=0).history
    assert set(history) >= {"accuracy", "label_loss"}
    assert history["label_loss"][0] > 0


def test_missing_labels_are_refused_where_they_are_needed():
    x, labels = networks.vectors(32)
    with pytest.raises(InputError, match="label_weight=0"):
        make(eager=True).fit(x, verbose=0)
    with pytest.raises(InputError, match="no labels to score"):
        make(eager=True).evaluate(x, verbose=0)
    labels[3] = -2
    with pytest.raises(Exception, match="or -1 for an unlabeled image"):
        make(eager=True).fit(x, labels, verbose=0)
