"""Chooses how a training's steps are executed: with XLA or without, and how many at once."""

import contextlib
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from stkd_keras.distribution.workers import is_multi_worker
from stkd_keras.training import checkpoints

# On a GPU, shorter trainings end before XLA has compiled their steps (docs/gpu.md).
STEPS_WORTH_XLA = 1500
# Of an execution; signals, checkpoints and the progress bar wait for its end.
SECONDS_PER_EXECUTION = 1.0
# Of the batches of an execution.
EXECUTION_BYTES = 256e6
_WARM_UP, _TIMED = 1, 3


def compile_options(
    strategy: tf.distribute.Strategy,
    steps_per_execution: int | None,
    backup_steps: int,
    epochs: int,
    steps_per_epoch: int,
    batch_bytes: int,
) -> dict[str, Any]:
    """Returns arguments for the distiller's `compile`.

    If `steps_per_execution` is None, it becomes the largest number that memory and backups allow.
    """
    if steps_per_execution is None:
        most = min(int(EXECUTION_BYTES // batch_bytes), steps_per_epoch, backup_steps)
        # Keras runs several steps at once on a single device only.
        is_single = strategy.num_replicas_in_sync == 1 and not is_multi_worker(strategy)
        steps_per_execution = max(1, most) if is_single else 1
    is_short = epochs * steps_per_epoch < STEPS_WORTH_XLA
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    return {
        "steps_per_execution": steps_per_execution,
        "jit_compile": False if is_short and on_gpu else "auto",
    }


def choose_steps_per_execution(distiller: keras.Model, batches: tf.data.Dataset) -> None:
    """Sets a compiled distiller's steps per execution so that one takes about a second.

    It must be compiled with the largest number. Trains for a few steps, which it undoes.
    """
    most = distiller.steps_per_execution
    if most == 1:
        return
    variables = checkpoints.variables(distiller)
    before = [np.asarray(variable) for variable in variables]
    distiller.make_train_function()
    distiller.steps_per_execution = 1
    iterator = iter(distiller.prepare(batches)[0])
    seconds: list[float] = []
    with contextlib.suppress(StopIteration):  # Of a recording that ends here.
        while len(seconds) < _WARM_UP + _TIMED and sum(seconds[_WARM_UP:]) < SECONDS_PER_EXECUTION:
            start = time.perf_counter()
            keras.tree.map_structure(np.asarray, distiller.train_function(iterator))
            seconds.append(time.perf_counter() - start)
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    step = min(seconds[_WARM_UP:], default=SECONDS_PER_EXECUTION)
    distiller.steps_per_execution = max(1, min(most, round(SECONDS_PER_EXECUTION / step)))
