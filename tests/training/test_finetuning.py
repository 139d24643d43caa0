"""Fine-tuning: the backbone's rate, frozen batch normalization, and averaged weights."""

import os
import signal

import keras
import networks
import numpy as np
import pytest

from stkd_keras import (
    InputError,
    SimilarityTransferDistiller,
    data,
    experiment,
    fuse_batch_normalization,
)
from stkd_keras.training.checkpoints import newest_backup
from stkd_keras.training.finetuning import count_backbone_variables
from stkd_keras.training.run_directory import RunDirectory
from stkd_keras.training.signals import Interrupted

STEPS = 5


def train(folder, callbacks=(), student=None, validation=True, **options):
    """Trains for two epochs of five steps."""
    keras.utils.set_random_seed(0)
    student = student or fuse_batch_normalization(networks.small_convolutional_classifier())
    distiller = SimilarityTransferDistiller(student, soft_weight=0.0, label_weight=1.0)
    dataset = data.load("digits")
    train_split, validation_split = experiment.split(dataset, 0.5, images_per_class=4)
    run = RunDirectory(folder)
    run.start({"settings": {"of": "this run"}})
    defaults = {"epochs": 2, "batch_size": 8, "learning_rate": 0.01, "weight_decay": 0.05}
    experiment.train(
        distiller, dataset, train_split, validation_split if validation else None, run,
        optimizer="adamw", callbacks=callbacks, **(defaults | options),
    )  # fmt: skip
    return distiller


class Weights(keras.callbacks.Callback):
    """Records the student's weights after every step."""

    def __init__(self):
        super().__init__()
        self.after_steps = []

    def on_train_batch_end(self, batch, logs=None):
        self.after_steps.append(self.model.student.get_weights())


def nested_classifier():
    """A backbone as a layer, a head, and layers without weights after it."""
    backbone = networks.small_convolutional_classifier()
    backbone = keras.Model(backbone.input, backbone.layers[-2].output)
    head = keras.Sequential([keras.layers.Dropout(0.2), keras.layers.Dense(10, name="logits")])
    return keras.Sequential([backbone, head, keras.layers.Softmax()])


@pytest.mark.parametrize("build", [networks.small_convolutional_classifier, nested_classifier])
def test_the_head_is_the_last_layer_with_weights(build):
    student = build()
    distiller = SimilarityTransferDistiller(student, soft_weight=0.0)
    count = count_backbone_variables(student)
    shapes = [tuple(v.shape) for v in distiller.trainable_variables]
    assert shapes[count:] == [(36, 10), (10,)]
    assert len(shapes) == count + 2 == 5


@pytest.mark.parametrize("fuse", [fuse_batch_normalization, lambda model: model])
def test_frozen_batch_normalization_keeps_its_statistics_and_parameters(fuse, tmp_path):
    student = fuse(networks.trained_looking(networks.small_convolutional_classifier()))
    (layer,) = [x for x in student.layers if isinstance(x, keras.layers.BatchNormalization)]
    before, images = layer.get_weights(), networks.images(8)[0]
    normalized = keras.Model(student.input, layer.output)
    train(tmp_path / "run", student=student, freeze_batch_norm=True, validation=False)
    assert layer.trainable
    for a, b in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    saved = keras.saving.load_model(tmp_path / "run" / "student.keras")
    assert all(x.trainable for x in saved.layers)
    np.testing.assert_allclose(saved(images), student(images), atol=1e-5)
    # Both are in inference mode by default.
    assert np.isfinite(normalized(images)).all()


def test_only_the_head_trains_while_the_backbone_is_frozen(tmp_path):
    recorded = Weights()
    train(tmp_path / "run", [recorded], freeze_epochs=1, freeze_batch_norm=True, validation=False)
    kernels = [weights[0] for weights in recorded.after_steps]
    heads = [weights[-2] for weights in recorded.after_steps]
    np.testing.assert_array_equal(kernels[0], kernels[STEPS - 1])
    assert (kernels[STEPS - 1] != kernels[STEPS]).any()
    assert (heads[1] != heads[2]).any()


def test_the_average_of_the_weights_is_validated_and_saved(tmp_path):
    recorded, run = Weights(), tmp_path / "run"
    distiller = train(run, [recorded], ema=0.9, epochs=8, batch_size=20, freeze_batch_norm=True)
    # 16 steps: the average spans at most a tenth of them.
    momentum = min(0.9, 1 - 10 / 16)
    average = recorded.after_steps[0]
    for weights in recorded.after_steps[1:]:
        pairs = zip(average, weights, strict=True)
        average = [momentum * a + (1 - momentum) * w for a, w in pairs]
    saved = keras.saving.load_model(run / "student.keras")
    for a, b in zip(average, saved.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    history = np.genfromtxt(run / "history.csv", delimiter=",", names=True)
    validation_split = experiment.split(data.load("digits"), 0.5, images_per_class=4)[1]
    batches = data.evaluation_pipeline(validation_split, 64)
    scores = distiller.evaluate(batches, verbose=0, return_dict=True)
    np.testing.assert_allclose(history["val_loss"][-1], scores["loss"], rtol=1e-4)


class Signal(keras.callbacks.Callback):
    """Sends this process a signal, once."""

    def __init__(self, moment):
        super().__init__()
        setattr(self, moment, self.send)
        self.calls = 0

    def send(self, *_, logs=None):
        self.calls += 1
        if self.calls == 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.process
@pytest.mark.parametrize("moment", ["on_test_begin", "on_train_batch_end"])
def test_a_run_with_averages_and_a_frozen_backbone_resumes_exactly(moment, tmp_path):
    options = {"ema": 0.5, "freeze_epochs": 1, "backbone_learning_rate": 1e-3, "epochs": 5}
    whole, resumed = Weights(), Weights()
    train(tmp_path / "whole", [whole], **options)
    with pytest.raises(Interrupted):
        train(tmp_path / "broken", [Signal(moment)], **options)
    backup = newest_backup(tmp_path / "broken" / "backup", {"of": "this run"})
    train(tmp_path / "broken", [resumed], **options)
    for a, b in zip(whole.after_steps[-1], resumed.after_steps[-1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    saved = [
        keras.saving.load_model(tmp_path / name / "student.keras").get_weights()
        for name in ("whole", "broken")
    ]
    for a, b in zip(*saved, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    # An unfinished run's student has the averages, too. After one step they are the weights.
    if backup.step == 1:
        student = networks.small_convolutional_classifier()
        backup.restore_student(student)
        for a, b in zip(whole.after_steps[0], student.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_freezing_for_more_epochs_than_there_are_is_refused(tmp_path):
    with pytest.raises(InputError, match="freeze_epochs is 3"):
        train(tmp_path / "run", freeze_epochs=3)
