"""Images without labels count in the soft loss and in nothing that a label is needed for."""

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from distillers import LABEL, SOFT, losses_by_hand, make

from stkd_keras import InputError, Mixup


@pytest.mark.parametrize("mixing", [Mixup(0.5, 3), Mixup(1.0, probability=0.0)])
def test_the_losses_are_those_of_numpy_by_hand(mixing):
    keras.utils.set_random_seed(0)
    distiller = make(mixing=mixing, data_seed=5)
    x, labels = networks.vectors(16)
    labels[::3] = -1
    rows = np.eye(5)[labels] * (labels >= 0)[:, None]
    expected = losses_by_hand(distiller, x, rows, np.ones(16), step=0)
    logs = distiller.train_on_batch(x, labels, return_dict=True)
    np.testing.assert_allclose(logs["label_loss"], expected[0], rtol=1e-5)
    np.testing.assert_allclose(logs["soft_loss"], expected[1], rtol=1e-5)
    np.testing.assert_allclose(logs["loss"], LABEL * expected[0] + SOFT * expected[1], rtol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_students_step_follows_the_gradient_of_these_losses(weighted):
    keras.utils.set_random_seed(0)
    distiller = make(soft_weight=0.0, mixing=Mixup(1.0), compiled=False)
    distiller.compile(keras.optimizers.SGD(1.0))
    x, labels = networks.vectors(32)
    labels[::2] = -1
    rows = (np.eye(5)[labels] * (labels >= 0)[:, None]).astype("float32")
    weights = np.random.default_rng(1).uniform(0, 2, (32, 1)).astype("float32")
    weights = weights if weighted else None
    mixed_x, mixed_y, mixed_weights = distiller.virtual_samples(x, rows, weights, tf.constant(0))
    variables = distiller.student.trainable_variables
    with tf.GradientTape() as tape:
        log_probabilities = tf.nn.log_softmax(distiller.student(mixed_x))
        losses = -tf.reduce_sum(mixed_y * log_probabilities, axis=1)
        if weighted:
            losses *= mixed_weights[:, 0]
        loss = LABEL * tf.reduce_mean(losses)
    expected = [
        variable.numpy() - gradient.numpy()
        for variable, gradient in zip(
            variables, tape.gradient(loss, [v.value for v in variables]), strict=True
        )
    ]
    distiller.fit(x, labels, sample_weight=weights, batch_size=32, shuffle=False, verbose=0)
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, atol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_metrics_are_of_the_images_with_labels(jit_compile):
    distiller = make(mixing=None, compiled=False)
    distiller.compile(
        keras.optimizers.SGD(0.0),
        metrics=["accuracy", "sparse_top_k_categorical_accuracy"],
        weighted_metrics=[keras.metrics.CategoricalAccuracy(name="weighted")],
        jit_compile=jit_compile,
    )
    x, labels = networks.vectors(64)
    correct = distiller.student.predict(x, verbose=0).argmax(axis=1) == labels
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


@pytest.mark.parametrize("as_dataset", [False, True])
def test_without_label_weight_fit_needs_no_labels(as_dataset):
    students = []
    x, labels = networks.vectors(64)
    for labelled in (True, False):
        keras.utils.set_random_seed(0)
        distiller = make(label_weight=0.0)
        data = (x, labels) if labelled else (x,)
        if as_dataset:
            batches = tf.data.Dataset.from_tensor_slices(data if labelled else x).batch(16)
            history = distiller.fit(batches, epochs=2, verbose=0).history
        else:
            options = {"batch_size": 16, "shuffle": False}
            history = distiller.fit(*data, epochs=2, verbose=0, **options).history
        students.append(distiller.student.get_weights())
    # No label loss and no accuracy: there is nothing they could be of.
    assert set(history) == {"loss", "soft_loss", "teacher_agreement"}
    for with_labels, without in zip(*students, strict=True):
        np.testing.assert_allclose(with_labels, without, atol=1e-6)


def test_a_student_trained_without_labels_is_validated_with_them():
    distiller = make(label_weight=0.0)
    x, labels = networks.vectors(64)
    history = distiller.fit(x, validation_data=(x, labels), verbose=0).history
    assert {"val_loss", "val_accuracy", "loss", "soft_loss"} <= set(history)
    assert "accuracy" not in history
    assert set(distiller.fit(x, labels, verbose=0).history) >= {"accuracy", "label_loss"}


def test_labels_may_come_later():
    for train in ("fit", "train_on_batch"):
        distiller = make(label_weight=0.0)
        x, labels = networks.vectors(32)
        getattr(distiller, train)(x)
        getattr(distiller, train)(x, labels)
        logged = distiller.get_metrics_result()
        assert {"label_loss", "accuracy", "soft_loss"} <= set(logged)
        assert logged["label_loss"] > 0


def test_missing_labels_are_refused_where_they_count():
    x, labels = networks.vectors(32)
    with pytest.raises(InputError, match="label_weight=0"):
        make().fit(x, verbose=0)
    with pytest.raises(InputError, match="no labels to score"):
        make().evaluate(x, verbose=0)
    labels[3] = -2
    with pytest.raises(Exception, match="or -1 for none"):
        make().fit(x, labels, verbose=0)
