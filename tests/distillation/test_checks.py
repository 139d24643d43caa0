"""The distiller refuses wrong arguments and data in one line, before the first step."""

import warnings

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from distillers import make
from image_folders import write_images
from keras import layers

from stkd_keras import InputError, Mixup, SimilarityTransferDistiller
from stkd_keras.distillation.checks import check_training_data

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
    "fewer images than a batch": (
        lambda: make(eager=True).fit(
            tf.data.Dataset.from_tensor_slices(networks.vectors(5)).batch(8, drop_remainder=True)
        ),
        "drop_remainder=True",
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
        "in a linear layer or a softmax",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_refused_in_one_line_before_the_first_step(name):
    use, named = WRONG[name]
    with pytest.raises(InputError, match=named) as caught:
        use()
    assert "\n" not in str(caught.value)


class Batches(keras.utils.PyDataset):
    """Images in batches."""

    def __init__(self, images, size):
        super().__init__()
        self._images, self._size = images, size

    def __len__(self):
        return -(-len(self._images) // self._size)

    def __getitem__(self, index):
        images = self._images[index * self._size :][: self._size]
        return images, np.zeros(len(images), "int64")


def of_folder(count, size, folder):
    write_images(folder / "cat", count, size=(8, 8))
    options = {"batch_size": size, "image_size": (8, 8), "class_names": ["cat"], "verbose": False}
    return keras.utils.image_dataset_from_directory(folder, **options)


def of_slices(count, size, _):
    return tf.data.Dataset.from_tensor_slices(networks.images(count)).batch(size)


LAST_BATCHES = {
    "of 4 in a folder": (lambda *a: of_folder(36, 32, *a), 4),
    "of 3 of a folder, mapped": (lambda *a: of_folder(19, 16, *a).map(lambda x, y: (x, y)), 3),
    "of 1 of a PyDataset": (lambda _: Batches(networks.images(33)[0], 32), 1),
    "of 2 of repeated batches": (lambda *a: of_slices(34, 32, *a).repeat().prefetch(1), 2),
    "of 16 of a PyDataset": (lambda _: Batches(networks.images(48)[0], 32), 0),
    "that is full": (lambda *a: of_slices(64, 32, *a), 0),
    "that is dropped": (lambda _: of_slices(34, 32, _).unbatch().batch(32, drop_remainder=True), 0),
    "that isn't taken": (lambda *a: of_slices(34, 32, *a).take(1), 0),
    "that may be filtered": (lambda *a: of_slices(34, 32, *a).filter(lambda x, y: True), 0),
    "of an unknown number": (lambda *a: of_slices(34, 32, *a).unbatch().batch(32), 0),
    "of 2 of zipped batches": (lambda *a: tf.data.Dataset.zip(*2 * [of_slices(34, 32, *a)]), 2),
    "of concatenated batches": (
        lambda *a: of_slices(34, 32, *a).concatenate(of_slices(4, 4, *a)),
        0,
    ),
    "that never comes": (lambda *a: of_slices(34, 34, *a).unbatch().repeat().batch(32), 0),
}


@pytest.mark.parametrize("name", LAST_BATCHES)
def test_a_small_last_batch_of_data_sets_is_warned_of(name, tmp_path):
    make_data, left = LAST_BATCHES[name]
    student, strategy = networks.small_convolutional_classifier(), tf.distribute.get_strategy()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_training_data(make_data(tmp_path), None, student, strategy)
    messages = [str(each.message) for each in caught]
    assert len(messages) == bool(left), messages
    assert not left or f"a last batch of {left}, too few" in messages[0]
