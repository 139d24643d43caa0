"""Tests of the labels and weights that `fit` and `evaluate` take."""

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from distillers import make

from stkd_keras import InputError


def of_unknown_shape(x, labels, shape):
    return tf.data.Dataset.from_generator(
        lambda: iter([(x, labels)]),
        output_signature=(tf.TensorSpec((16, 4)), tf.TensorSpec(shape, labels.dtype)),
    )


def test_labels_of_all_kinds_train_alike_in_one_process_with_xla():
    x, y = networks.vectors(16)
    rows = np.eye(5)[y]
    kinds = [
        (x, y), (x, y[:, None]), (x, rows), (x, y.astype("float64")),
        (of_unknown_shape(x, y, None),), (of_unknown_shape(x, rows, None),),
        (of_unknown_shape(x, y[:, None], (None, None)),),
        (of_unknown_shape(x, rows, (None, None)),),
    ]  # fmt: skip
    distiller = make(mixing=None)
    distiller.compile("sgd", metrics=["accuracy"], jit_compile=True)
    distiller.optimizer.learning_rate = 0.0
    losses = [
        distiller.fit(*data, batch_size=16 if len(data) == 2 else None, verbose=0).history
        for data in kinds
    ]
    for loss in losses[1:]:
        np.testing.assert_allclose(loss["label_loss"], losses[0]["label_loss"], rtol=1e-6)
        np.testing.assert_allclose(loss["accuracy"], losses[0]["accuracy"], rtol=1e-6)


@pytest.mark.parametrize("label", [5, -2, 1.5])
def test_a_bad_label_is_named_in_one_line(label):
    x, y = networks.vectors(16)
    y = y.astype("float32")
    y[3] = label
    for data in ((x, y), (tf.data.Dataset.from_tensors((x, y)),)):
        with pytest.raises(InputError) as caught:
            make().fit(*data, verbose=0)
        assert f"the labels have a {label}" in str(caught.value)
        assert "from 0 to 4" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_padding_of_weight_0_changes_no_score(jit_compile):
    x, y = networks.vectors(20)
    padded_x = np.concatenate([x, np.ones((12, 4), "float32")])
    padded_y = np.concatenate([y, np.full(12, -1)])
    weights = np.float32([1] * 20 + [0] * 12)
    distiller = make()
    distiller.compile(
        "sgd", metrics=["accuracy"], weighted_metrics=["accuracy"], jit_compile=jit_compile
    )
    batches = tf.data.Dataset.from_tensor_slices((padded_x, padded_y, weights)).batch(16)
    padded = distiller.evaluate(batches, verbose=0, return_dict=True)
    plain = distiller.evaluate(x, y, verbose=0, return_dict=True)
    assert set(padded) == set(plain)
    for name, value in plain.items():
        np.testing.assert_allclose(padded[name], value, rtol=1e-5, err_msg=name)


def test_class_weights_are_sample_weights_and_leave_unlabeled_images_alone():
    x, y = networks.vectors(16)
    y[:4] = -1
    by_class = {0: 2.0, 1: 0.5, 3: 0.0}
    weights = np.float32([by_class.get(label, 1.0) for label in y])
    dataset = tf.data.Dataset.from_tensors((x, y))
    results = []
    for arguments in (
        {"x": x, "y": y, "sample_weight": weights},
        {"x": x, "y": y, "class_weight": by_class},
        {"x": dataset, "class_weight": by_class},
    ):
        keras.utils.set_random_seed(0)
        history = make(mixing=None).fit(**arguments, shuffle=False, verbose=0).history
        results.append(history["label_loss"] + history["soft_loss"])
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=1e-6)
