"""Chooses how a training's steps are executed: with XLA or without, and how many at once."""

import time

import keras
import numpy as np
import tensorflow as tf

from stkd_keras.distribution.workers import is_multi_worker
from stkd_keras.training import checkpoints

# On a GPU, shorter trainings end before XLA has compiled their steps (docs/gpu.md).
STEPS_WORTH_XLA = 2000
# Of an execution; signals, checkpoints and the progress bar wait for its end.
SECONDS_PER_EXECUTION = 1.0
# Of the batches of an execution.
EXECUTION_BYTES = 256e6
_WARM_UP, _TIMED = 1, 3


def most_steps_at_once(
    strategy: tf.distribute.Strategy, batch_bytes: int, steps_per_epoch: int, backup_steps: int
) -> int:
    """Returns the largest number of steps per execution that memory and checkpoints allow."""
    # Keras runs several steps at once on a single device only.
    if strategy.num_replicas_in_sync > 1 or is_multi_worker(strategy):
        return 1
    return max(1, min(int(EXECUTION_BYTES // batch_bytes), steps_per_epoch, backup_steps))


def choose_steps_per_execution(distiller: keras.Model, batches: tf.data.Dataset) -> None:
    """Sets a compiled distiller's steps per execution so that one takes about a second.

    Trains for a few steps, which it undoes.

    Args:
        distiller: compiled with the largest number of steps per execution.
        batches: training batches, endless.
    """
    most = distiller.steps_per_execution
    if most == 1:
        return
    variables = checkpoints.variables(distiller)
    before = [np.asarray(variable) for variable in variables]
    distiller.make_train_function()
    distiller.steps_per_execution = 1
    iterator = iter(distiller.prepare(batches)[0])
    seconds = []
    while len(seconds) < _WARM_UP + _TIMED and sum(seconds[_WARM_UP:]) < SECONDS_PER_EXECUTION:
        start = time.perf_counter()
        keras.tree.map_structure(np.asarray, distiller.train_function(iterator))
        seconds.append(time.perf_counter() - start)
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    distiller.steps_per_execution = max(
        1, min(most, round(SECONDS_PER_EXECUTION / min(seconds[_WARM_UP:])))
    )
