"""A student or teacher with a single sigmoid unit is one of two classes."""

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from distillers import LABEL, SOFT, T, log_softmax, make
from keras import layers

import models
from stkd_keras import InputError, SimilarityTransferDistiller, methods
from stkd_keras.export.converters import serving_model


def sigmoid_classifier(width=6, seed=0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,))
    x = layers.Dense(width, activation="tanh", name="hidden")(inputs)
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))


def logits_by_hand(model, x):
    kernel, bias, head, offset = (np.float64(w) for w in model.get_weights())
    z = np.tanh(x @ kernel + bias) @ head + offset
    return np.concatenate([np.zeros_like(z), z], axis=1)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_it_trains_and_scores_as_two_classes_and_is_saved_as_it_was(jit_compile, tmp_path):
    student, teacher = sigmoid_classifier(), sigmoid_classifier(16, seed=1)
    x, y = networks.vectors(32, classes=2)
    s, t = logits_by_hand(student, x), logits_by_hand(teacher, x)
    p, q = log_softmax(t / T), log_softmax(s / T)
    soft = T**2 * (np.exp(p) * (p - q)).sum(axis=1).mean()
    label = -log_softmax(s)[np.arange(32), y].mean()
    agreement = ((t[:, 1] > 0) == (s[:, 1] > 0)).mean()
    accuracy = ((s[:, 1] > 0) == y).mean()
    distiller = make(student, teacher, mixing=None)
    distiller.compile("sgd", metrics=["accuracy", "auc"], jit_compile=jit_compile)
    # As image_dataset_from_directory gives them for label_mode "binary", "int" and "categorical".
    for labels in (np.float32(y[:, None]), y, np.float32(np.eye(2)[y])):
        distiller.optimizer.learning_rate = 0.0
        logs = distiller.fit(x, labels, batch_size=32, validation_data=(x, labels), verbose=0)
        logs = {name: values[0] for name, values in logs.history.items()}
        np.testing.assert_allclose(logs["soft_loss"], soft, rtol=1e-4)
        np.testing.assert_allclose(logs["label_loss"], label, rtol=1e-4)
        np.testing.assert_allclose(logs["loss"], SOFT * soft + LABEL * label, rtol=1e-4)
        np.testing.assert_allclose(logs["val_loss"], label, rtol=1e-4)
        np.testing.assert_allclose(logs["teacher_agreement"], agreement, rtol=1e-6)
        np.testing.assert_allclose(
            [logs["accuracy"], logs["val_accuracy"]], [accuracy] * 2, rtol=1e-6
        )
        assert 0 < logs["val_auc"] < 1
    np.testing.assert_allclose(distiller.predict(x, verbose=0).sum(axis=1), np.ones(32), rtol=1e-5)
    student.save(tmp_path / "student.keras")
    loaded = models.load(tmp_path / "student.keras", input_shape=(4,), num_classes=2)
    assert loaded.output_shape == (None, 1)
    np.testing.assert_allclose(loaded(x), 1 / (1 + np.exp(-s[:, 1:])), rtol=1e-5)
    with pytest.raises(InputError, match="has 2 classes; expected 3"):
        models.load(tmp_path / "student.keras", input_shape=(4,), num_classes=3)


def test_a_student_that_is_sure_and_wrong_still_learns():
    student, teacher = sigmoid_classifier(), sigmoid_classifier(seed=1)
    student.layers[-1].bias.assign([40.0])  # In float32, its probability is 1.
    x, _ = networks.vectors(32, classes=2)
    distiller = make(student, teacher, mixing=None)
    distiller.fit(x, np.zeros(32), batch_size=32, verbose=0)
    assert float(student.layers[-1].bias.numpy()[0]) < 40 - 0.1 * LABEL * 0.9


def test_features_two_class_students_and_exports_go_with_it():
    x, y = networks.vectors(32, classes=2)
    unit, two = sigmoid_classifier(), networks.dense_classifier(classes=2)
    distiller = SimilarityTransferDistiller(two, unit, terms=[methods.DIST(beta=0.0)], mixing=None)
    distiller.compile("sgd")
    assert np.isfinite(distiller.fit(x, y, verbose=0).history["loss"][0])
    again = SimilarityTransferDistiller(
        unit, two, terms=[methods.PKT(features=("hidden",))], mixing=None,
        teacher_features={"hidden": two.layers[-2].name},
    )  # fmt: skip
    again.compile("sgd")
    assert np.isfinite(again.fit(x, y, verbose=0).history["pkt"][0])
    with serving_model(unit, (4,), "float32") as served:
        probabilities = served(tf.constant(x))["probabilities"]
    np.testing.assert_allclose(
        probabilities, np.exp(log_softmax(logits_by_hand(unit, x))), rtol=1e-4
    )
