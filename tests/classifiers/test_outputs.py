"""Logits are found before any final softmax, and another last activation is refused."""

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from stkd_keras import FrozenTeacher, InputError


def softmax_dense(x):
    return layers.Dense(5, activation="softmax")(x)


def softmax_nested(x):
    inner_in = keras.Input((x.shape[-1],))
    return keras.Model(inner_in, layers.Softmax()(layers.Dense(5)(inner_in)))(x)


HEADS = {
    "linear": (lambda x: layers.Dense(5)(x), "logits"),
    "dense softmax": (softmax_dense, "probabilities"),
    "softmax layer": (lambda x: layers.Softmax()(layers.Dense(5)(x)), "probabilities"),
    "activation layer": (
        lambda x: layers.Activation("softmax")(layers.Dense(5)(x)),
        "probabilities",
    ),
    "softmax operation": (lambda x: keras.ops.softmax(layers.Dense(5)(x)), "probabilities"),
    "nested softmax": (softmax_nested, "probabilities"),
    "softmax, reshaped": (lambda x: layers.Reshape((5,))(softmax_dense(x)), "probabilities"),
    "linear, dropout": (lambda x: layers.Dropout(0.5)(layers.Dense(5)(x)), "logits"),
}


@pytest.mark.parametrize("name", HEADS)
def test_logits_are_found_for_every_known_last_layer(name):
    head, kind = HEADS[name]
    inputs = keras.Input((4,))
    model = keras.Model(inputs, head(layers.Dense(6, activation="relu")(inputs)))
    x, _ = networks.vectors()
    outputs = model(x, training=False).numpy()
    logits = FrozenTeacher(model)(x).numpy()
    if kind == "logits":
        np.testing.assert_allclose(logits, outputs, atol=1e-5)
    else:
        np.testing.assert_allclose(tf.nn.softmax(logits), outputs, atol=1e-6)
        # A removed softmax leaves logits that aren't normalized.
        assert np.abs(np.exp(logits).sum(axis=1) - 1).max() > 1e-3
    np.testing.assert_allclose(model(x, training=False), outputs)


def test_logits_of_a_removed_softmax_keep_what_probabilities_lose():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, activation="softmax")])
    model.layers[-1].set_weights([np.eye(2, dtype="float32"), np.zeros(2, "float32")])
    logits = FrozenTeacher(model)(np.array([[200.0, 0.0]], "float32"))
    np.testing.assert_allclose(logits, [[200.0, 0.0]])


@pytest.mark.parametrize(
    "head",
    [
        lambda x: layers.Dense(5, activation="sigmoid")(x),
        lambda x: layers.ReLU()(layers.Dense(5)(x)),
        lambda x: layers.Average()([softmax_dense(x), softmax_dense(x)]),
        lambda x: layers.Dense(5, activation="log_softmax")(x),
    ],
)
def test_another_last_activation_is_refused_unless_outputs_is_given(head):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, head(inputs))
    with pytest.raises(InputError, match='outputs="logits" or "probabilities"'):
        FrozenTeacher(model)
    x, _ = networks.vectors()
    np.testing.assert_allclose(FrozenTeacher(model, outputs="logits")(x), model(x), rtol=1e-5)


def test_a_squashed_layer_before_pooling_is_refused():
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(5, 3, activation="sigmoid")(inputs)
    with pytest.raises(InputError, match="GlobalAveragePooling2D"):
        FrozenTeacher(keras.Model(inputs, layers.GlobalAveragePooling2D()(x)))
