"""The steps of train.py, called as functions."""

import keras
import networks
import numpy as np
import pytest

from stkd_keras import InputError, SimilarityTransferDistiller, data, experiment, methods, recipes
from stkd_keras.training.run_directory import RunDirectory


class After(keras.callbacks.Callback):
    """Does something to the distiller after a number of steps, once."""

    def __init__(self, steps, do):
        super().__init__()
        self.left, self.do = steps, do

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.do(self.model)


def interrupt(distiller):
    raise KeyboardInterrupt


def spoil(distiller):
    """Makes the numbers of a weight none."""
    weight = distiller.student.weights[0]
    weight.assign(np.full(weight.shape, np.nan))


def start(folder, callbacks=(), epochs=2, validation=False, **options):
    """Trains with AdamW, five steps an epoch."""
    keras.utils.set_random_seed(0)
    distiller = SimilarityTransferDistiller(
        networks.small_convolutional_classifier(), networks.convolutional_classifier()
    )
    dataset = data.load("digits")
    train_split, _ = experiment.split(dataset, 0.0, images_per_class=20)
    run = RunDirectory(folder)
    run.start({"settings": {"of": "this run"}})
    experiment.train(
        distiller, dataset, train_split, dataset.test if validation else None, run, epochs=epochs,
        batch_size=40, learning_rate=0.01, weight_decay=0.05, optimizer="adamw",
        callbacks=callbacks, **options,
    )  # fmt: skip
    return distiller


def test_an_interrupted_run_of_adamw_goes_on_within_its_epoch(tmp_path, capsys):
    settings = {"backup_steps": 2, "validation": True}
    whole = start(tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "broken", [After(8, interrupt)], **settings)
    resumed = start(tmp_path / "broken", **settings)
    assert "resuming after epoch 1 of 2 and 2 steps of the next (step 7)" in capsys.readouterr().out
    assert int(whole.step) == int(resumed.step) == 10
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    histories = [(tmp_path / name / "history.csv").read_text() for name in ("whole", "broken")]
    assert histories[0].split()[0] == histories[1].split()[0]
    rows = [np.loadtxt(h.splitlines()[1:], delimiter=",") for h in histories]
    np.testing.assert_allclose(*rows, atol=1e-4)


def test_early_stopping_remembers_across_an_interruption_what_was_best(tmp_path):
    def stopping():
        return keras.callbacks.EarlyStopping(
            "val_loss", min_delta=100, patience=3, restore_best_weights=True
        )

    whole = stopping()
    best = start(tmp_path / "whole", [whole], epochs=9, validation=True)
    assert whole.stopped_epoch == 3
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "run", [stopping(), After(13, interrupt)], epochs=9, validation=True)
    resumed = stopping()
    again = start(tmp_path / "run", [resumed], epochs=9, validation=True)
    assert (resumed.stopped_epoch, resumed.best_epoch) == (3, 0)
    for a, b in zip(best.student.get_weights(), again.student.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    # It had stopped: the same call trains no further.
    assert int(start(tmp_path / "run", [stopping()], epochs=9, validation=True).step) == 20


def test_a_loss_of_nan_stops_with_step_terms_rate_and_backup_and_leaves_no_row(tmp_path):
    with pytest.raises(InputError) as caught:
        start(tmp_path / "run", [After(7, spoil)], backup_steps=3)
    message = str(caught.value)
    for part in (
        "step 8, in epoch 2 of 2", "loss nan", "soft_loss nan", "label_loss nan",
        "learning rate 0.0", "backup/step-0000000005", "lower learning rate",
    ):  # fmt: skip
        assert part in message
    assert len((tmp_path / "run" / "history.csv").read_text().split()) == 2
    assert not (tmp_path / "run" / "student.keras").exists()


def test_a_weight_of_nan_is_never_backed_up(tmp_path):
    with pytest.raises(InputError, match="a weight stopped being finite at step 5"):
        start(tmp_path / "run", [After(5, spoil)])
    for file in (tmp_path / "run" / "backup").glob("step-*"):
        for name, value in np.load(file).items():
            assert value.dtype.kind == "U" or np.isfinite(value).all(), name


def test_each_optimizer_has_defaults_of_its_own():
    for dataset in ("cifar10", "digits"):
        sgd = recipes.recipe_for(dataset)
        assert (sgd.optimizer, sgd.learning_rate, sgd.weight_decay) == ("sgd", 0.1, 5e-4)
        adamw = recipes.recipe_for(dataset, "adamw")
        assert (adamw.optimizer, adamw.learning_rate, adamw.weight_decay) == ("adamw", 1e-3, 0.05)
        assert (adamw.student, adamw.epochs) == (sgd.student, sgd.epochs)


@pytest.mark.parametrize("optimizer", list(recipes.OPTIMIZERS))
def test_every_optimizer_warms_up_and_decays_to_nothing(optimizer):
    made = experiment.make_optimizer(0.5, 0.0, total_steps=200, optimizer=optimizer)
    rates = []
    made.build([keras.Variable(1.0)])
    for step in (0, 5, 10, 105, 200):
        made.iterations.assign(step)
        rates.append(float(made.learning_rate))
    np.testing.assert_allclose(rates, [0, 0.25, 0.5, 0.25, 0], atol=1e-6)


def test_a_pretraining_has_its_own_rate_where_the_trainings_is_too_high_for_it():
    student, teacher = networks.convolutional_classifier(), networks.convolutional_classifier()
    names = {"stage3": student.layers[4].name}
    distiller = SimilarityTransferDistiller(
        student, teacher, terms=[methods.FT(pretraining_steps=10)],
        student_features=names, teacher_features={"stage3": teacher.layers[4].name},
    )  # fmt: skip
    for rate, expected in ((0.1, 0.01), (0.001, 0.001)):
        made = experiment.make_optimizer(
            rate, 0.0, 100, "sgd", distiller.pretraining_steps,
            distiller.highest_pretraining_learning_rate,
        )  # fmt: skip
        made.build([keras.Variable(1.0)])
        rates = []
        for step in (0, 9, 15):
            made.iterations.assign(step)
            rates.append(float(made.learning_rate))
        np.testing.assert_allclose(rates, [expected, expected, rate], rtol=1e-6)


def test_an_unknown_optimizer_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="adamw"):
        experiment.make_optimizer(0.1, 0.0, 10, "adam")
    with pytest.raises(InputError, match="adamw"):
        recipes.recipe_for("digits", "adam")


def test_a_methods_settings_become_what_the_distiller_is_made_of():
    few, _ = experiment.split(data.load("digits"), 0.0, images_per_class=20)
    settings = recipes.method_settings("ab", mixing_epochs=3, pretraining_epochs=2, num_images=3)
    arguments = recipes.distiller_arguments("ab", settings, few, steps=5, data_seed=7)
    assert (arguments["mixing_steps"], arguments["mixing"].num_images) == (25, 3)
    assert [(term.name, term.pretraining_steps) for term in arguments["terms"]] == [("ab", 10)]

    settings = recipes.method_settings("kd_standardized", soft_weight=0.5, method_weight=2.0)
    distiller = SimilarityTransferDistiller(
        networks.small_convolutional_classifier(),
        networks.small_convolutional_classifier(),
        **recipes.distiller_arguments("kd_standardized", settings, few, steps=5, data_seed=7),
    )
    (term,) = distiller.terms
    assert (term.weight, term.temperature, distiller.temperature) == (2.0, 2.0, 2.0)
    assert (distiller.mixing, distiller.mixing_steps, distiller.data_seed) == (None, None, 7)
