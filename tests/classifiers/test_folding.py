"""Folding batch normalization keeps the logits, and happens only where it is exact."""

import keras
import networks
import numpy as np
import pytest
from keras import layers

from stkd_keras import FrozenTeacher
from stkd_keras.classifiers.folding import fold_batch_normalization


def functional(middle, head=None, shape=(8, 8, 4)):
    """A model made by `middle` from a (8, 8, 4) tensor, with a dense head."""
    inputs = keras.Input(shape)
    x = middle(inputs)
    if len(x.shape) == 4:
        x = layers.GlobalAveragePooling2D()(x)
    return networks.trained_looking(keras.Model(inputs, (head or layers.Dense(5))(x)))


def normalized(x):
    return layers.BatchNormalization()(x)


def shared_convolution(x):
    convolution = layers.Conv2D(4, 3, padding="same")
    return layers.Add()(
        [layers.BatchNormalization()(convolution(x)), convolution(layers.ReLU()(x))]
    )


def convolution_with_two_readers(x):
    y = layers.Conv2D(4, 3, padding="same")(x)
    return layers.Add()([layers.BatchNormalization()(y), y])


def normalization_used_twice(x):
    normalization = layers.BatchNormalization()
    y = normalization(layers.Conv2D(4, 3, padding="same")(x))
    return layers.Add()([y, normalization(layers.Conv2D(4, 3, padding="same")(x))])


def nested(x):
    inner_in = keras.Input((8, 8, 4))
    y = layers.BatchNormalization()(layers.Conv2D(6, 3, use_bias=False)(inner_in))
    inner = keras.Model(inner_in, layers.ReLU()(y))
    sequential = keras.Sequential(
        [keras.Input((6, 6, 6)), layers.DepthwiseConv2D(3), layers.BatchNormalization()]
    )
    return sequential(inner(x))


def nested_used_twice(x):
    inner_in = keras.Input((8, 8, 4))
    y = layers.Conv2D(4, 3, padding="same")(inner_in)
    inner = keras.Model(inner_in, layers.BatchNormalization()(y))
    return inner(inner(x))


# The layers before the head, and the number of folded normalizations.
GRAPHS = {
    "conv with bias": (lambda x: normalized(layers.Conv2D(6, 3)(x)), 1),
    "conv, groups": (lambda x: normalized(layers.Conv2D(6, 3, groups=2, use_bias=False)(x)), 1),
    "depthwise, multiplier": (
        lambda x: layers.BatchNormalization(scale=False)(
            layers.DepthwiseConv2D(3, depth_multiplier=3, use_bias=False)(x)
        ),
        1,
    ),
    "separable": (
        lambda x: layers.BatchNormalization(center=False)(layers.SeparableConv2D(6, 3)(x)),
        1,
    ),
    "dense": (lambda x: normalized(layers.Dense(6)(layers.Flatten()(x))), 1),
    "dense on images": (lambda x: normalized(layers.Dense(6)(x)), 1),
    "nested": (nested, 2),
    "nested, used twice": (nested_used_twice, 1),
    "activation between": (lambda x: normalized(layers.Conv2D(6, 3, activation="relu")(x)), 0),
    "shared convolution": (shared_convolution, 0),
    "two readers": (convolution_with_two_readers, 0),
    "normalization used twice": (normalization_used_twice, 0),
    "another axis": (lambda x: layers.BatchNormalization(axis=1)(layers.Conv2D(6, 3)(x)), 0),
    "renorm": (lambda x: layers.BatchNormalization(renorm=True)(layers.Conv2D(6, 3)(x)), 0),
    "before the convolution": (lambda x: layers.Conv2D(6, 3)(layers.ReLU()(normalized(x))), 0),
    "transposed": (lambda x: normalized(layers.Conv2DTranspose(6, 3)(x)), 0),
    "output of the model": (lambda x: normalized(layers.Dense(5)(layers.Flatten()(x))), 1),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_folding_keeps_the_logits(name):
    middle, folded = GRAPHS[name]
    keras.utils.set_random_seed(1)
    head = layers.Identity() if name == "output of the model" else None
    model = functional(middle, head)
    x = np.random.default_rng(0).normal(size=(32, 8, 8, 4)).astype("float32")
    expected = model(x, training=False).numpy()
    logits = FrozenTeacher(model)(x).numpy()
    assert np.abs(logits - expected).max() <= 1e-4 * expected.std(axis=0).max()
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    assert fold_batch_normalization(copy) == folded
    np.testing.assert_allclose(copy(x, training=False), expected, atol=1e-4 * expected.std())


def test_a_folded_model_saved_and_loaded_by_keras_gives_the_same_logits(tmp_path):
    model = networks.convolutional_classifier()
    x, _ = networks.images()
    expected = model(x, training=False).numpy()
    fold_batch_normalization(model)
    model.save(tmp_path / "folded.keras")
    loaded = keras.saving.load_model(tmp_path / "folded.keras")
    np.testing.assert_allclose(loaded(x), expected, atol=1e-4 * expected.std())


def test_a_mobilenet_of_keras_applications_is_folded_and_exact():
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=10)
    x, _ = networks.images(32, shape=(32, 32, 3))
    x /= 255
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0
    model(x, training=True)  # With random statistics, all images would give the same logits.
    for weight in model.trainable_weights:
        if weight.name in ("gamma", "beta"):
            weight.assign(weight + np.random.default_rng(0).uniform(-0.3, 0.3, weight.shape))
    head = keras.Model(model.input, model.layers[-2].output)
    expected = model.layers[-1].kernel.numpy().T @ head(x, training=False).numpy().T
    logits = FrozenTeacher(model)(x).numpy() - model.layers[-1].bias.numpy()
    assert np.abs(logits - expected.T).max() <= 1e-4 * expected.std(axis=1).max()
    copy = keras.models.clone_model(model)
    assert fold_batch_normalization(copy) == 52
