"""Tests of saving: the student is a plain Keras model, and the distiller resumes training."""

import subprocess
import sys

import keras
import networks
import numpy as np
import pytest
from keras import layers

from stkd_keras import (
    SGD,
    FrozenTeacher,
    Mixup,
    SimilarityTransferDistiller,
    fuse_batch_normalization,
)
from stkd_keras.optimizers import AdamW

WITH_KERAS_ONLY = """
import sys
import keras, numpy
images = numpy.load("x.npy")
for file in sys.argv[1:]:
    numpy.save(file + ".npy", keras.saving.load_model(file)(images))
assert not {"stkd_keras", "models"} & set(sys.modules), "the project was imported"
"""


def distiller_for_images(optimizer=None, eager=True, **settings):
    keras.utils.set_random_seed(0)
    distiller = SimilarityTransferDistiller(
        fuse_batch_normalization(networks.small_convolutional_classifier()),
        networks.small_convolutional_classifier(),
        **settings,
    )
    distiller.compile(
        optimizer or SGD(0.05, l2=5e-4),
        metrics=["accuracy", "sparse_categorical_accuracy"],
        run_eagerly=eager,
    )
    return distiller


def test_model_checkpoint_and_student_save_write_plain_keras_models(tmp_path):
    distiller = distiller_for_images(eager=False)
    x, y = networks.images()
    checkpoint = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", monitor="val_accuracy", save_best_only=True
    )
    weights = keras.callbacks.ModelCheckpoint(tmp_path / "last.weights.h5", save_weights_only=True)
    stopping = keras.callbacks.EarlyStopping("val_sparse_categorical_accuracy", patience=5)
    callbacks = [checkpoint, weights, stopping]
    distiller.fit(x, y, validation_data=(x, y), verbose=0, callbacks=callbacks)
    expected = distiller.student(x).numpy()
    distiller.student.save(tmp_path / "student.keras")
    np.save(tmp_path / "x.npy", x)
    files = "best.keras", "student.keras"
    subprocess.run([sys.executable, "-c", WITH_KERAS_ONLY, *files], cwd=tmp_path, check=True)
    for file in files:
        np.testing.assert_allclose(np.load(tmp_path / f"{file}.npy"), expected, atol=1e-5)
    fresh = networks.small_convolutional_classifier()
    fresh.load_weights(tmp_path / "last.weights.h5")
    np.testing.assert_allclose(fresh(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: SGD(0.05, l2=5e-4),
        lambda: keras.optimizers.AdamW(1e-3, use_ema=True),
        lambda: AdamW(
            0.01, backbone_variables=3, backbone_rate=0.1, frozen_steps=3, global_clipnorm=0.1
        ),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05, momentum=0.9)),
    ],
)
def test_a_loaded_distiller_trains_like_the_original(tmp_path, optimizer):
    settings = {"mixing": Mixup(0.4, num_images=3), "data_seed": 3, "label_smoothing": 0.3}
    distiller = distiller_for_images(optimizer(), **settings)
    x, y = networks.images(48)
    for _ in range(2):
        distiller.train_on_batch(x, y)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert int(loaded.step) == 2
    np.testing.assert_allclose(loaded.teacher(x), distiller.teacher(x), rtol=1e-5, atol=1e-5)
    for _ in range(2):
        first = distiller.train_on_batch(x, y, return_dict=True)
        second = loaded.train_on_batch(x, y, return_dict=True)
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-5, err_msg=name)
    for a, b in zip(distiller.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_saved_distiller_keeps_several_teachers(tmp_path):
    one, other = networks.dense_classifier(), networks.dense_classifier(softmax=True)
    distiller = SimilarityTransferDistiller(
        networks.dense_classifier(width=3),
        [
            one,
            FrozenTeacher(other, outputs="probabilities"),
            FrozenTeacher(networks.dense_classifier(7), class_indices=[6, 0, 5, 3, 1]),
        ],
    )
    distiller.compile("sgd")
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    x, _ = networks.vectors()
    np.testing.assert_allclose(loaded.teacher(x), distiller.teacher(x), rtol=1e-5, atol=1e-6)


def test_weights_and_checkpoints_never_hold_the_teacher(tmp_path):
    sizes = []
    for width in (200, 2000):
        teacher = networks.dense_classifier(width=width)
        distiller = SimilarityTransferDistiller(networks.dense_classifier(width=50), teacher)
        distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), run_eagerly=True)
        distiller.train_on_batch(*networks.vectors(8))
        distiller.save_weights(tmp_path / "d.weights.h5")
        distiller.student.save(tmp_path / "s.keras")
        sizes.append([(tmp_path / f).stat().st_size for f in ("d.weights.h5", "s.keras")])
    np.testing.assert_allclose(sizes[0], sizes[1], rtol=0.01)


def test_weights_restore_student_optimizer_and_step(tmp_path):
    distiller, other = distiller_for_images(), distiller_for_images()
    x, y = networks.images(32)
    distiller.train_on_batch(x, y)
    distiller.save_weights(tmp_path / "d.weights.h5")
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "d.weights.h5")
    for d in (distiller, other):
        d.train_on_batch(x, y)
    for a, b in zip(distiller.get_weights(), other.get_weights(), strict=True):
        # On a GPU, two runs of the same step differ in the last digits.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_subclassed_teacher_cannot_be_saved(tmp_path):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(5)

        def call(self, x):
            return self.dense(x)

    teacher = Own()
    teacher(networks.vectors()[0])
    distiller = SimilarityTransferDistiller(
        networks.dense_classifier(), FrozenTeacher(teacher, outputs="logits")
    )
    distiller.compile("sgd")
    with pytest.raises(ValueError, match="can't be saved with the distiller"):
        distiller.save(tmp_path / "d.keras")
    distiller.save_weights(tmp_path / "d.weights.h5")
