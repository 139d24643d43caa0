"""Trains as one of two workers, as a script because each worker is a process.

    TF_CONFIG=... python tests/support/two_workers.py results.npz

writes numbers by name, which must be equal for all workers. Without TF_CONFIG the script trains on
two logical devices of one process, which must give the same numbers.
"""

import functools
import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import keras
import networks
import numpy as np
import pytest

from stkd_keras import FrozenTeacher, InputError, Mixup, SimilarityTransferDistiller, data
from stkd_keras.distribution.strategy import make_strategy
from stkd_keras.distribution.workers import check_alike, distributed, mean_over_workers

IS_WORKER = "TF_CONFIG" in os.environ
STRATEGY = make_strategy(*(("multi_worker",) if IS_WORKER else ("mirrored", 2)))
NUM_IMAGES, BATCH_SIZE, EPOCHS = 201, 64, 5


def without_normalization(width: int) -> keras.Model:
    """Returns an image classifier without batch statistics."""
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(width, 3, activation="relu")]
    return keras.Sequential(
        [keras.Input((8, 8, 1)), *layers, keras.layers.Flatten(), keras.layers.Dense(10)]
    )


def make(build) -> SimilarityTransferDistiller:
    """Returns a distiller with mixing, always with the same initial weights."""
    keras.utils.set_random_seed(0)
    with STRATEGY.scope():
        teacher = FrozenTeacher(build(width=16))
        distiller = SimilarityTransferDistiller(build(width=6), teacher, mixing=Mixup(1.0))
        distiller.compile(keras.optimizers.SGD(0.05, momentum=0.9), metrics=["accuracy"])
    return distiller


def shares() -> functools.partial:
    """Returns a function from a share to its pipeline."""
    x, y = networks.images(NUM_IMAGES)
    x = np.uint8(x)
    dataset = data.from_arrays(x, y, x[:101], y[:101])
    return functools.partial(data.pipeline, dataset, "train", BATCH_SIZE, 0)


def twenty_steps_of_shares(build=without_normalization) -> dict:
    """Returns the losses of each step, the history, and the weights."""
    distiller, steps = make(build), []
    x, y = networks.images(101)
    history = distiller.fit(
        distributed(shares(), STRATEGY), epochs=EPOCHS, steps_per_epoch=4, shuffle=False,
        verbose=0, validation_data=(x, y), callbacks=[
            keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda batch, logs: steps.append(list(map(float, logs.values())))
            )
        ],
    )  # fmt: skip
    assert len(steps) == distiller.step.numpy() == 20
    weights = {f"weight {n}": w for n, w in enumerate(distiller.student.get_weights())}
    return {"steps": steps, **history.history, **weights}


def twenty_steps_with_batch_statistics() -> dict:
    """The same with batch normalization, whose statistics are averaged."""
    return twenty_steps_of_shares(networks.small_convolutional_classifier)


def arrays_that_tensorflow_shards() -> dict:
    """Arrays for `fit`, `evaluate` and `predict`, even if a replica gets an empty batch."""
    distiller = make(without_normalization)
    x, y = networks.images(201)
    found = dict(distiller.fit(x, y, batch_size=64, shuffle=False, verbose=0).history)
    for count in (1, 64, 101):
        x, y = networks.images(count)
        scores = distiller.evaluate(x, y, batch_size=64, verbose=0, return_dict=True)
        found |= {f"{name} of {count}": value for name, value in scores.items()}
    found["predicted"] = distiller.predict(x, batch_size=64, verbose=0)
    return found


def workers_read_only_their_share() -> dict:
    """All shares together are the whole batch."""
    share = next(iter(distributed(shares(), STRATEGY)))[1]
    labels = np.concatenate([v.numpy() for v in STRATEGY.experimental_local_results(share)])
    assert len(labels) == BATCH_SIZE // (2 if IS_WORKER else 1)
    whole = next(iter(shares()()))[1].numpy()
    here = labels.sum() if IS_WORKER else labels.sum() / 2
    assert (
        round(2 * mean_over_workers(int(here), STRATEGY) if IS_WORKER else 2 * here) == whole.sum()
    )
    return {"labels": whole}


def unsupported_setups_are_refused() -> dict:
    """Another version of Keras, and workers that don't share a file system."""
    if not IS_WORKER:
        return {}
    number = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    with pytest.raises(InputError, match="file system that all"):
        check_alike("a folder", number, STRATEGY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras, "__version__", "3.16.0")
        with pytest.raises(InputError, match=r"3\.16\.0"):
            make(without_normalization)
    return {}


PROMISES = (
    twenty_steps_of_shares,
    twenty_steps_with_batch_statistics,
    arrays_that_tensorflow_shards,
    workers_read_only_their_share,
    unsupported_setups_are_refused,
)


if __name__ == "__main__":
    results = {
        f"{promise.__name__}: {name}": np.asarray(value)
        for promise in PROMISES
        for name, value in promise().items()
    }
    np.savez(sys.argv[1], **results)
