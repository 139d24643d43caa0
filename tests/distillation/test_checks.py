"""The distiller refuses wrong arguments and data in one line, before the first step."""

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from distillers import make
from keras import layers

from stkd_keras import InputError, Mixup, SimilarityTransferDistiller

WRONG = {
    "classes differ": (lambda: make(networks.dense_classifier(6)), "6 classes and the teacher 5"),
    "shapes don't fit": (lambda: make(networks.dense_classifier(features=3)), r"\(3,\)"),
    "temperature 0": (lambda: make(temperature=0), "temperature is 0"),
    "alpha -1": (lambda: make(mixing=Mixup(-1)), "alpha is -1"),
    "both weights 0": (lambda: make(soft_weight=0, label_weight=0), "both 0"),
    "temperature as text": (lambda: make(temperature="4"), "temperature is '4'"),
    "alpha None": (lambda: make(mixing=Mixup(None)), "alpha is None"),
    "mixing is a class": (lambda: make(mixing=Mixup), "mixing is <class"),
    "loss weights": (lambda: make().compile("sgd", loss_weights=[1.0]), "leave it out"),
    "negative weight": (lambda: make(soft_weight=-1), "soft_weight is -1"),
    "no teacher": (
        lambda: SimilarityTransferDistiller(networks.dense_classifier()),
        "there is no teacher",
    ),
    "a loss": (
        lambda: make().compile("sgd", loss="sparse_categorical_crossentropy"),
        "leave it out",
    ),
    "a loss by position": (lambda: make().compile("sgd", "mse"), "leave it out"),
    "empty arrays": (
        lambda: make(eager=True).fit(np.zeros((0, 4), "float32"), np.zeros(0, "int32")),
        "are empty",
    ),
    "an empty data set": (
        lambda: make(eager=True).fit(
            tf.data.Dataset.from_tensor_slices(networks.vectors(0)).batch(2)
        ),
        "are empty",
    ),
    "data of another shape": (
        lambda: make(eager=True).fit(*networks.vectors(features=3), verbose=0),
        "the student takes",
    ),
    "soft labels of another width": (
        lambda: make(eager=True).fit(
            networks.vectors()[0], np.eye(7)[networks.vectors()[1]], verbose=0
        ),
        "the labels have shape",
    ),
    "no labels": (lambda: make(eager=True).fit(networks.vectors()[0], verbose=0), "no labels"),
    "unknown outputs": (lambda: make(student_outputs="softmax"), "'softmax'"),
    "sigmoid student": (
        lambda: make(keras.Sequential([keras.Input((4,)), layers.Dense(5, "sigmoid")])),
        "student_outputs=",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_refused_in_one_line_before_the_first_step(name):
    use, named = WRONG[name]
    with pytest.raises(InputError, match=named) as caught:
        use()
    assert "\n" not in str(caught.value)
