"""Steps that run on every replica."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from stkd_keras.distribution.workers import _means_over_workers, is_multi_worker


def average_batch_statistics(model: keras.Model) -> None:
    """Gives every replica the mean of the replicas' batch statistics.

    Keras keeps the moving mean and variance of batch normalisation for each replica. Without
    this, what is validated and saved would be the first replica's. All workers have to take part.
    """
    strategy = model.distribute_strategy
    if strategy.num_replicas_in_sync == 1:
        return
    variables = [v for v in model.non_trainable_variables if _is_float(v)]
    means = [
        tf.reduce_mean(tf.stack(strategy.experimental_local_results(v.value)), axis=0)
        for v in variables
    ]
    for variable, mean in zip(variables, _means_over_workers(means, strategy), strict=True):
        variable.assign(mean)


def reducible(logs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns a step's metrics in the shape of which Keras can take the mean over workers.

    With several workers Keras takes the mean over axis 0, which a scalar hasn't
    (github.com/keras-team/keras/issues/20585, keras-team/keras/issues/20329).

    Args:
        logs: what `train_step` or `test_step` returned in a replica.
    """
    if not is_multi_worker(tf.distribute.get_strategy()):
        return logs
    return {name: tf.expand_dims(value, 0) for name, value in logs.items()}


def first_local_batch(batch, strategy: tf.distribute.Strategy):
    """Returns the batch of this worker's first replica.

    Keras builds the model from the mean of the replicas' first batches, which fails where they
    differ in size, as in a validation set of an odd number of examples, and with several workers
    always (github.com/keras-team/keras/issues/20585, keras-team/keras/issues/20329).
    """
    return keras.tree.map_structure(lambda v: strategy.experimental_local_results(v)[0], batch)


def call_unless_empty(function, x, outputs):
    """Calls a model, but not on the empty batch that a replica is given at the end of data.

    On a CPU, TensorFlow's convolution gives an empty batch the wrong shape, and batch normalisation
    makes its statistics not a number.

    Args:
        function: a model.
        x: tensor (B, ...).
        outputs: the shapes of what it gives, (None, ...): a `tf.TensorShape`, or a dict of them.

    Returns:
        What the model gives, as float32.
    """

    def call():
        return tf.nest.map_structure(lambda tensor: tf.cast(tensor, tf.float32), function(x))

    if tf.distribute.get_strategy().num_replicas_in_sync == 1 or x.shape[0]:
        return call()
    return tf.cond(
        tf.shape(x)[0] > 0,
        lambda: tf.nest.map_structure(tf.ensure_shape, call(), outputs),
        lambda: tf.nest.map_structure(_no_rows, outputs),
    )


def assign(variables: Sequence[keras.Variable], values: Sequence[tf.Tensor]) -> None:
    """Gives variables values within a training step, each replica its own."""
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return

    def update(strategy, *all_values):
        for variable, value in zip(variables, all_values, strict=True):
            strategy.extended.update(variable.value, lambda v, x: v.assign(x), args=(value,))

    tf.distribute.get_replica_context().merge_call(update, args=tuple(values))


def _is_float(variable: keras.Variable) -> bool:
    return keras.backend.is_float_dtype(variable.dtype)


def _no_rows(shape: tf.TensorShape) -> tf.Tensor:
    return tf.zeros([0, *(size or 0 for size in shape[1:])])
