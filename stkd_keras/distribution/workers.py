"""Coordination of several workers (experimental)."""

import functools
from collections.abc import Callable

import tensorflow as tf

from stkd_keras.errors import InputError


def is_multi_worker(strategy: tf.distribute.Strategy) -> bool:
    """Whether a strategy is for a cluster, even one with a single worker."""
    # The same check as in Keras, before it reduces metrics.
    return (
        isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        and strategy.extended._in_multi_worker_mode()
    )


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the results of a training; a single process always does."""
    return strategy.extended.should_checkpoint


def wait_for_all(strategy: tf.distribute.Strategy) -> None:
    """Blocks until all workers of a training have called this function (experimental)."""
    mean_over_workers(0.0, strategy)


def mean_over_workers(number: float, strategy: tf.distribute.Strategy) -> float:
    """Returns the mean of a number over all workers, which must all call this function."""
    return float(means_over_workers([tf.constant(float(number))], strategy)[0])


def means_over_workers(
    tensors: list[tf.Tensor], strategy: tf.distribute.Strategy
) -> list[tf.Tensor]:
    """Returns the means of tensors over all workers, in a single all-reduce."""
    if not tensors or not is_multi_worker(strategy):
        return tensors
    flat = tf.concat([tf.reshape(tf.cast(t, tf.float32), [-1]) for t in tensors], axis=0)
    means = tf.split(strategy.reduce("MEAN", flat, axis=None), [tf.size(t) for t in tensors])
    return [tf.reshape(mean, t.shape) for mean, t in zip(means, tensors, strict=True)]


def check_alike(what: str, number: int, strategy: tf.distribute.Strategy) -> None:
    """Checks that all workers read the same number from the shared folder `what`."""
    if abs(mean_over_workers(number, strategy) - number) > 1e-3:
        raise InputError(
            f"the workers see different contents of {what}; put it on a file system that all of "
            "them share"
        )


def distributed(
    make_share: Callable[..., tf.data.Dataset], strategy: tf.distribute.Strategy
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Returns training batches for `fit`, such that each worker only makes its share.

    `make_share(shard_index=..., num_shards=...)` makes a worker's share of the batches, and
    `make_share()` whole batches.
    """
    # By default, each worker would read all data and drop the shares of the others.
    if not is_multi_worker(strategy):
        return make_share()
    return strategy.distribute_datasets_from_function(functools.partial(_worker_share, make_share))


def distributed_by_example(
    batches: tf.data.Dataset, strategy: tf.distribute.Strategy
) -> tf.data.Dataset:
    """Shards evaluation batches by example, because there may be fewer files than workers."""
    if not is_multi_worker(strategy):
        return batches
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return batches.with_options(options)


def _worker_share(
    make_share: Callable[..., tf.data.Dataset], context: tf.distribute.InputContext
) -> tf.data.Dataset:
    """Returns a worker's share, cut into batches for its replicas, which take turns reading."""
    share = make_share(
        shard_index=context.input_pipeline_id, num_shards=context.num_input_pipelines
    )
    replicas = context.num_replicas_in_sync // context.num_input_pipelines
    size = tf.nest.flatten(share.element_spec)[0].shape[0] // replicas
    return share.rebatch(size, drop_remainder=True)
