"""Recordings of a teacher for the digits, and students trained on them."""

import keras
import networks
import numpy as np

import stkd_keras
from stkd_keras import Mixup, SimilarityTransferDistiller, data, record_teacher

MIXING = Mixup(alpha=1.0, num_images=3)


def batches(digits, start_step=0, **changes):
    """A pipeline of the training images."""
    arguments = {"split": "train", "batch_size": 64, "data_seed": 3, **changes}
    return data.pipeline(digits, **arguments, start_step=start_step)


def record(path, digits, teacher, steps=10, mixing=MIXING, data_seed=5, **options):
    """Records a teacher for the steps of `train`."""
    return record_teacher(
        path, teacher, batches(digits), mixing, data_seed, steps, verbose=False, **options
    )


def make_distiller(teacher, mixing=MIXING, data_seed=5, **settings):
    """A compiled distiller of a small student that always has the same initial weights."""
    keras.utils.set_random_seed(1)
    distiller = SimilarityTransferDistiller(
        networks.small_convolutional_classifier(), teacher, mixing=mixing, data_seed=data_seed,
        **settings,
    )  # fmt: skip
    distiller.compile(stkd_keras.SGD(0.05, momentum=0.9), metrics=["accuracy"])
    return distiller


class _SoftLosses(keras.callbacks.Callback):
    """Keeps the soft loss of each step; Keras logs the mean over the epoch."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        self.values.append(logs["soft_loss"] * (batch + 1) - sum(self.values))


def train(teacher, dataset, steps, **settings):
    """Trains a distiller, and returns it and the soft loss of each step."""
    distiller, losses = make_distiller(teacher, **settings), _SoftLosses()
    distiller.fit(dataset, steps_per_epoch=steps, verbose=0, callbacks=[losses], shuffle=False)
    return distiller, np.array(losses.values)
