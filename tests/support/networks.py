"""Small models for tests."""

import keras
import numpy as np
from keras import layers


def trained_looking(model: keras.Model, seed: int = 0) -> keras.Model:
    """Gives batch normalization random statistics and parameters, as after training."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return model


def dense_classifier(classes=5, features=4, width=8, softmax=False) -> keras.Model:
    """A functional model without batch normalization."""
    inputs = keras.Input((features,))
    x = layers.Dense(width, activation="relu")(inputs)
    return keras.Model(inputs, layers.Dense(classes, "softmax" if softmax else None)(x))


def convolutional_classifier(classes=10, shape=(8, 8, 1), width=8, softmax=False) -> keras.Model:
    """A functional model with every kind of layer that batch normalization is folded into."""
    inputs = keras.Input(shape)
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.SeparableConv2D(width, 3)(x)
    x = layers.ReLU()(layers.BatchNormalization(scale=False)(x))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2)(x)
    x = layers.ReLU()(layers.BatchNormalization(center=False)(x))
    x = layers.Dense(12)(layers.Flatten()(x))
    x = layers.BatchNormalization()(x)
    outputs = layers.Dense(classes, "softmax" if softmax else None)(x)
    return trained_looking(keras.Model(inputs, outputs))


def small_convolutional_classifier(classes=10, shape=(8, 8, 1), width=4) -> keras.Model:
    """A small model with one convolution and batch normalization, fast to compile."""
    inputs = keras.Input(shape)
    x = layers.Conv2D(width, 3, strides=2, use_bias=False)(layers.Rescaling(1 / 255)(inputs))
    x = layers.Flatten()(layers.ReLU()(layers.BatchNormalization()(x)))
    return keras.Model(inputs, layers.Dense(classes)(x))


def vectors(count=64, classes=5, features=4, seed=0):
    """Inputs (count, features) and integer labels."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, features)).astype("float32"), rng.integers(0, classes, count)


def images(count=64, classes=10, shape=(8, 8, 1), seed=0):
    """Pixels in [0, 255] and integer labels."""
    rng = np.random.default_rng(seed)
    return (
        rng.uniform(0, 255, (count, *shape)).astype("float32"),
        rng.integers(0, classes, count),
    )


def staged_classifier(width=4, classes=10, shape=(8, 8, 1), seed=0) -> keras.Model:
    """A tiny network whose layers have the feature names of the zoo; a seed fixes the weights."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(shape)
    x = layers.Conv2D(width, 3, padding="same", name="stem")(layers.Rescaling(1 / 255)(inputs))
    for stage in (1, 2, 3):
        x = layers.Conv2D(width * stage, 3, strides=min(stage, 2), padding="same")(x)
        x = layers.BatchNormalization(name=f"stage{stage}_preactivation")(x)
        x = layers.ReLU(name=f"stage{stage}")(x)
    x = layers.GlobalAveragePooling2D(name="embedding")(x)
    return trained_looking(keras.Model(inputs, layers.Dense(classes)(x)))
