"""The steps of train.py, called as functions."""

import keras
import networks
import numpy as np
import pytest

from stkd_keras import InputError, SimilarityTransferDistiller, data, experiment
from stkd_keras.run_directory import RunDirectory


def start(folder, stop_after=None):
    """Trains for two epochs with AdamW; may be interrupted when an epoch has been backed up."""
    keras.utils.set_random_seed(0)
    distiller = SimilarityTransferDistiller(
        networks.small_convolutional_classifier(), networks.convolutional_classifier()
    )
    dataset = data.load("digits")
    train_split, _ = experiment.split(dataset, 0.0, images_per_class=20)
    run = RunDirectory(folder)
    run.start({})

    class Interrupted(experiment.Backup):
        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            if epoch + 1 == stop_after:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "Backup", Interrupted)
        experiment.train(
            distiller, dataset, train_split, None, run, epochs=2, batch_size=40,
            learning_rate=0.01, weight_decay=0.05, optimizer="adamw",
        )  # fmt: skip
    return distiller


def test_an_interrupted_run_of_adamw_goes_on_as_if_nothing_had_been(tmp_path, capsys):
    whole = start(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "broken", stop_after=1)
    resumed = start(tmp_path / "broken")
    assert "resuming after epoch 1 of 2" in capsys.readouterr().out
    assert int(whole.step) == int(resumed.step) == 10
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_each_optimizer_has_defaults_of_its_own():
    for dataset in ("cifar10", "digits"):
        sgd = experiment.recipe_for(dataset)
        assert (sgd.optimizer, sgd.learning_rate, sgd.weight_decay) == ("sgd", 0.1, 5e-4)
        adamw = experiment.recipe_for(dataset, "adamw")
        assert (adamw.optimizer, adamw.learning_rate, adamw.weight_decay) == ("adamw", 1e-3, 0.05)
        assert (adamw.student, adamw.epochs) == (sgd.student, sgd.epochs)


@pytest.mark.parametrize("optimizer", list(experiment.OPTIMIZERS))
def test_every_optimizer_warms_up_and_decays_to_nothing(optimizer):
    made = experiment.make_optimizer(0.5, 0.0, total_steps=200, optimizer=optimizer)
    rates = []
    made.build([keras.Variable(1.0)])
    for step in (0, 5, 10, 105, 200):
        made.iterations.assign(step)
        rates.append(float(made.learning_rate))
    np.testing.assert_allclose(rates, [0, 0.25, 0.5, 0.25, 0], atol=1e-6)


def test_an_unknown_optimizer_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="adamw"):
        experiment.make_optimizer(0.1, 0.0, 10, "adam")
    with pytest.raises(InputError, match="adamw"):
        experiment.recipe_for("digits", "adam")
