"""Training a distiller into a run directory, and its optimizer."""

import keras
import networks
import numpy as np
import pytest

from stkd_keras import InputError, SimilarityTransferDistiller, data, experiment, methods, recipes
from stkd_keras.training.run_directory import RunDirectory


class After(keras.callbacks.Callback):
    """Calls a function on the distiller after a number of steps, once."""

    def __init__(self, steps, function):
        super().__init__()
        self.left, self.function = steps, function

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.function(self.model)


def interrupt(distiller):
    raise KeyboardInterrupt


def set_weight_to_nan(distiller):
    weight = distiller.student.weights[0]
    weight.assign(np.full(weight.shape, np.nan))


def train(folder, callbacks=(), epochs=2, validation=False, **options):
    """Trains with AdamW, five steps per epoch."""
    keras.utils.set_random_seed(0)
    distiller = SimilarityTransferDistiller(
        networks.small_convolutional_classifier(), networks.small_convolutional_classifier()
    )
    dataset = data.load("digits")
    train_split, _ = experiment.split(dataset, 0.0, images_per_class=4)
    run = RunDirectory(folder)
    run.start({"settings": {"of": "this run"}})
    experiment.train(
        distiller, dataset, train_split, dataset.test if validation else None, run, epochs=epochs,
        batch_size=8, learning_rate=0.01, weight_decay=0.05, optimizer="adamw",
        callbacks=callbacks, **options,
    )  # fmt: skip
    return distiller


@pytest.mark.process
def test_an_interrupted_run_of_adamw_resumes_within_its_epoch(tmp_path, capsys):
    settings = {"backup_steps": 2, "validation": True}
    whole = train(tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", [After(8, interrupt)], **settings)
    resumed = train(tmp_path / "broken", **settings)
    assert "resuming after epoch 1 of 2 and 2 steps of the next (step 7)" in capsys.readouterr().out
    assert int(whole.step) == int(resumed.step) == 10
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    histories = [(tmp_path / name / "history.csv").read_text() for name in ("whole", "broken")]
    assert histories[0].split()[0] == histories[1].split()[0]
    rows = [np.loadtxt(history.splitlines()[1:], delimiter=",") for history in histories]
    np.testing.assert_allclose(*rows, atol=1e-4)


@pytest.mark.process
def test_early_stopping_remembers_the_best_epoch_across_an_interruption(tmp_path):
    def stopping():
        return keras.callbacks.EarlyStopping(
            "val_loss", min_delta=100, patience=2, restore_best_weights=True
        )

    whole = stopping()
    best = train(tmp_path / "whole", [whole], epochs=5, validation=True)
    assert whole.stopped_epoch == 2
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", [stopping(), After(8, interrupt)], epochs=5, validation=True)
    resumed = stopping()
    again = train(tmp_path / "run", [resumed], epochs=5, validation=True)
    assert (resumed.stopped_epoch, resumed.best_epoch) == (2, 0)
    for a, b in zip(best.student.get_weights(), again.student.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    # A run that stopped early is complete.
    assert int(train(tmp_path / "run", [stopping()], epochs=5, validation=True).step) == 15


def test_a_loss_of_nan_stops_the_run_and_says_where(tmp_path):
    with pytest.raises(InputError) as caught:
        train(tmp_path / "run", [After(7, set_weight_to_nan)], backup_steps=3)
    message = str(caught.value)
    for part in (
        "step 8, in epoch 2 of 2", "loss nan", "soft_loss nan", "label_loss nan",
        "learning rate 0.0", "last checkpoint is of step 5", "lower learning rate",
    ):  # fmt: skip
        assert part in message
    assert len((tmp_path / "run" / "history.csv").read_text().split()) == 2
    assert not (tmp_path / "run" / "student.keras").exists()


def test_a_weight_of_nan_is_never_backed_up(tmp_path):
    with pytest.raises(InputError, match="a weight stopped being finite at step 5"):
        train(tmp_path / "run", [After(5, set_weight_to_nan)])
    for file in (tmp_path / "run" / "backup").glob("step-*"):
        for name, value in np.load(file).items():
            assert value.dtype.kind == "U" or np.isfinite(value).all(), name


def rates(optimizer, steps):
    """The learning rates at these steps."""
    optimizer.build([keras.Variable(1.0)])
    result = []
    for step in steps:
        optimizer.iterations.assign(step)
        result.append(float(optimizer.learning_rate))
    return result


@pytest.mark.parametrize("name", list(recipes.OPTIMIZERS))
def test_the_learning_rate_warms_up_and_decays_to_zero(name):
    optimizer = experiment.make_optimizer(0.5, 0.0, total_steps=200, optimizer=name)
    found = rates(optimizer, (0, 5, 10, 105, 200))
    np.testing.assert_allclose(found, [0, 0.25, 0.5, 0.25, 0], atol=1e-6)


@pytest.mark.parametrize(("rate", "during_pretraining"), [(0.1, 0.01), (0.001, 0.001)])
def test_pretraining_bounds_the_learning_rate(rate, during_pretraining):
    student, teacher = networks.convolutional_classifier(), networks.convolutional_classifier()
    distiller = SimilarityTransferDistiller(
        student,
        teacher,
        terms=[methods.FT(pretraining_steps=10)],
        student_features={"stage3": student.layers[4].name},
        teacher_features={"stage3": teacher.layers[4].name},
    )
    optimizer = experiment.make_optimizer(
        rate,
        0.0,
        100,
        "sgd",
        distiller.pretraining_steps,
        distiller.highest_pretraining_learning_rate,
    )
    expected = [during_pretraining, during_pretraining, rate]
    np.testing.assert_allclose(rates(optimizer, (0, 9, 15)), expected, rtol=1e-6)


def test_an_unknown_optimizer_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="adamw"):
        experiment.make_optimizer(0.1, 0.0, 10, "adam")
