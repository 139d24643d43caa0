"""What is saved is plain Keras, goes on as if nothing had been, and never holds the teacher."""

import subprocess
import sys

import keras
import networks
import numpy as np
import pytest
from keras import layers

import models
from stkd_keras import SGD, FrozenTeacher, Mixup, SimilarityTransferDistiller

IN_A_PROCESS_OF_ITS_OWN = """
import sys
import keras, numpy
model = keras.saving.load_model(sys.argv[1])
numpy.save(sys.argv[3], model.predict(numpy.load(sys.argv[2]), verbose=0))
assert not {"stkd_keras", "models"} & set(sys.modules), "the project was imported"
"""


def predict_elsewhere(file, x, folder):
    """What a process that imports only Keras predicts with a saved model."""
    np.save(folder / "x.npy", x)
    command = [sys.executable, "-c", IN_A_PROCESS_OF_ITS_OWN, file, "x.npy", "out.npy"]
    subprocess.run([str(part) for part in command], cwd=folder, check=True, timeout=120)
    return np.load(folder / "out.npy")


def distiller_for_images(**settings):
    keras.utils.set_random_seed(0)
    distiller = SimilarityTransferDistiller(
        models.build("resnet8", (8, 8, 1), 10, mean=0.3, std=0.4),
        networks.convolutional_classifier(softmax=True),
        **settings,
    )
    distiller.compile(SGD(0.05, l2=5e-4), metrics=["accuracy", "sparse_categorical_accuracy"])
    return distiller


def test_model_checkpoint_and_student_save_write_plain_keras_models(tmp_path):
    distiller = distiller_for_images()
    x, y = networks.images()
    checkpoint = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", monitor="val_accuracy", save_best_only=True
    )
    weights = keras.callbacks.ModelCheckpoint(tmp_path / "last.weights.h5", save_weights_only=True)
    stopping = keras.callbacks.EarlyStopping("val_sparse_categorical_accuracy", patience=5)
    callbacks = [checkpoint, weights, stopping]
    distiller.fit(x, y, validation_data=(x, y), verbose=0, callbacks=callbacks)
    expected = distiller.student.predict(x, verbose=0)
    distiller.student.save(tmp_path / "student.keras")
    for file in ("best.keras", "student.keras"):
        np.testing.assert_allclose(predict_elsewhere(file, x, tmp_path), expected, atol=1e-5)
    fresh = models.build("resnet8", (8, 8, 1), 10, mean=0.3, std=0.4)
    fresh.load_weights(tmp_path / "last.weights.h5")
    np.testing.assert_allclose(fresh.predict(x, verbose=0), expected, atol=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: SGD(0.05, l2=5e-4),
        lambda: keras.optimizers.AdamW(1e-3, use_ema=True),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05, momentum=0.9)),
    ],
)
def test_a_saved_distiller_goes_on_as_the_original_does(tmp_path, optimizer):
    distiller = distiller_for_images(mixing=Mixup(0.4, num_images=3), data_seed=3)
    distiller.compile(optimizer(), metrics=["accuracy", "sparse_categorical_accuracy"])
    x, y = networks.images(48)
    for _ in range(2):
        distiller.train_on_batch(x, y)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert int(loaded.step) == 2
    np.testing.assert_allclose(loaded.teacher(x), distiller.teacher(x), rtol=1e-5, atol=1e-5)
    for _ in range(3):
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
        distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9))
        distiller.train_on_batch(*networks.vectors(8))
        distiller.save_weights(tmp_path / "d.weights.h5")
        distiller.student.save(tmp_path / "s.keras")
        sizes.append([(tmp_path / f).stat().st_size for f in ("d.weights.h5", "s.keras")])
    np.testing.assert_allclose(sizes[0], sizes[1], rtol=0.01)


def test_weights_bring_back_student_optimizer_and_step(tmp_path):
    distiller, other = distiller_for_images(), distiller_for_images()
    x, y = networks.images(32)
    distiller.train_on_batch(x, y)
    distiller.save_weights(tmp_path / "d.weights.h5")
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "d.weights.h5")
    for d in (distiller, other):
        d.train_on_batch(x, y)
    for a, b in zip(distiller.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_subclassed_teacher_says_why_it_cannot_be_saved(tmp_path):
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
    with pytest.raises(ValueError, match="can't be saved within the distiller"):
        distiller.save(tmp_path / "d.keras")
    distiller.save_weights(tmp_path / "d.weights.h5")
