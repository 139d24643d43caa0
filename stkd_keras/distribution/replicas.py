"""Workarounds for training Keras models on several replicas."""

import threading
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from stkd_keras.distribution.workers import is_multi_worker, means_over_workers

_traced = threading.local()


def average_batch_statistics(model: keras.Model) -> None:
    """Averages the moving statistics of batch normalization over all replicas and workers.

    Keras keeps them per replica, and validates with and saves those of the first one.
    """
    strategy = model.distribute_strategy
    if strategy.num_replicas_in_sync == 1:
        return
    is_float = keras.backend.is_float_dtype
    variables = [v for v in model.non_trainable_variables if is_float(v.dtype)]
    means = [
        tf.reduce_mean(tf.stack(strategy.experimental_local_results(v.value)), axis=0)
        for v in variables
    ]
    for variable, mean in zip(variables, means_over_workers(means, strategy), strict=True):
        variable.assign(mean)


def reducible(logs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Adds an axis to a replica's logs, because Keras averages over it with several workers.

    It fails on scalars (github.com/keras-team/keras/issues/20585 and issues/20329).
    """
    if not is_multi_worker(tf.distribute.get_strategy()):
        return logs
    return {name: tf.expand_dims(value, 0) for name, value in logs.items()}


def first_local_batch(iterator, batch, strategy: tf.distribute.Strategy):
    """Returns the batch of this worker's first replica, with which Keras builds the model.

    Keras itself averages the replicas' batches, which fails if their sizes differ, and always with
    several workers (github.com/keras-team/keras/issues/20585 and issues/20329).
    """
    for _, _, batches in iterator or ():
        batch = next(batches)
        break
    else:
        return batch
    return keras.tree.map_structure(lambda v: strategy.experimental_local_results(v)[0], batch)


def may_be_empty(x: tf.Tensor) -> bool:
    """Whether a batch can be a replica's empty one, as at the end of data that don't divide."""
    is_several = tf.distribute.get_strategy().num_replicas_in_sync > 1
    return is_several and not x.shape[0] and not getattr(_traced, "is_filled", False)


def compiled_on_replica(function: Callable, when_empty: Callable) -> Callable:
    """Compiles a function of (data, ...) with XLA; calls `when_empty` for an empty batch.

    XLA can't compile a choice between results of different sizes.
    """

    def filled(*args):
        _traced.is_filled = True
        try:
            return function(*args)
        finally:
            _traced.is_filled = False

    compiled = tf.function(filled, jit_compile=True, autograph=False)

    def call(data, *args):
        x = tf.nest.flatten(data)[0]
        if not may_be_empty(x):
            return compiled(data, *args)
        return tf.cond(tf.shape(x)[0] > 0, lambda: compiled(data, *args), when_empty)

    return call


def skip_empty_batch(function, x, outputs):
    """Calls a model, unless a replica's batch is empty, as it may be at the end of the data.

    On the CPU, TensorFlow's convolution returns a wrong shape for an empty batch, and batch
    normalization returns NaN statistics. Returns float32 tensors of the shapes `outputs`.
    """

    def call():
        return tf.nest.map_structure(lambda tensor: tf.cast(tensor, tf.float32), function(x))

    if not may_be_empty(x):
        return call()
    return tf.cond(
        tf.shape(x)[0] > 0,
        lambda: tf.nest.map_structure(tf.ensure_shape, call(), outputs),
        lambda: tf.nest.map_structure(_empty, outputs),
    )


def assign(variables: Sequence[keras.Variable], values: Sequence[tf.Tensor]) -> None:
    """Assigns each replica's values to its variables. Works inside a training step."""
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return

    def update(strategy, *all_values):
        for variable, value in zip(variables, all_values, strict=True):
            strategy.extended.update(variable.value, lambda v, x: v.assign(x), args=(value,))

    tf.distribute.get_replica_context().merge_call(update, args=tuple(values))


def _empty(shape: tf.TensorShape) -> tf.Tensor:
    return tf.zeros([0, *(size or 0 for size in shape[1:])])
