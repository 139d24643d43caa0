"""Tests of how a training's steps are compiled and executed."""

import collections
from typing import ClassVar

import networks
import numpy as np
import pytest
from forked_command import force_xla
from keras.src.trainers import trainer

from stkd_keras import SimilarityTransferDistiller, data, experiment
from stkd_keras.training.run_directory import RunDirectory


@pytest.fixture
def as_on_gpu():
    """Makes Keras compile with XLA."""
    before = trainer.Trainer._resolve_auto_jit_compile
    force_xla()
    yield
    trainer.Trainer._resolve_auto_jit_compile = before


class Counted(SimilarityTransferDistiller):
    """Counts how often its steps are traced."""

    traces: ClassVar = collections.Counter()

    def train_step(self, batch):
        self.traces["training"] += 1
        return super().train_step(batch)

    def test_step(self, batch):
        self.traces["evaluation"] += 1
        return super().test_step(batch)


def random_dataset(count):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (count, 8, 8, 1), np.uint8), rng.integers(0, 10, count)
    labels[:10] = range(10)
    return data.from_arrays(images, labels, images[:50], labels[:50])


def test_a_run_compiles_one_training_and_one_evaluation_program(as_on_gpu, tmp_path, capfd):
    dataset = random_dataset(1000)
    train, validation = experiment.split(dataset, 0.1)
    assert (len(train), len(validation)) == (900, 100)
    distiller = Counted(
        networks.small_convolutional_classifier(), networks.small_convolutional_classifier()
    )
    run = RunDirectory(tmp_path / "run")
    experiment.start(run, {"settings": {}}, distiller.distribute_strategy)
    experiment.train(
        distiller, dataset, train, validation, run, epochs=3, batch_size=64,
        learning_rate=0.1, weight_decay=0.0, steps_per_execution=None,
    )  # fmt: skip
    assert distiller.jit_compile
    assert Counted.traces == {"training": 1, "evaluation": 1}
    assert int(distiller.step) == 3 * 14
    printed = capfd.readouterr()
    assert "compiling the training step with XLA" in printed.out
    assert not [x for x in printed.err.splitlines() if "0000 00:" not in x]
