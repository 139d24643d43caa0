"""Coordinates several workers."""

import functools
from collections.abc import Callable

import tensorflow as tf

from stkd_keras.errors import InputError


def is_multi_worker(strategy: tf.distribute.Strategy) -> bool:
    """Whether other processes train the same model."""
    # What Keras asks before it reduces metrics, too: a cluster may have a single worker.
    return (
        isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        and strategy.extended._in_multi_worker_mode()
    )


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes what all have made."""
    return strategy.extended.should_checkpoint


def wait_for_all(strategy: tf.distribute.Strategy) -> None:
    """Waits until all workers are here."""
    mean_over_workers(0.0, strategy)


def mean_over_workers(number: float, strategy: tf.distribute.Strategy) -> float:
    """Returns the mean of a number of each worker; all have to take part."""
    return float(_means_over_workers([tf.constant(float(number))], strategy)[0])


def check_alike(what: str, number: int, strategy: tf.distribute.Strategy) -> None:
    """Refuses to go on where the workers don't see the same.

    Args:
        what: where each of them looked, for the error.
        number: what this worker sees there.
        strategy: what they share.

    Raises:
        InputError: likewise.
    """
    if abs(mean_over_workers(number, strategy) - number) > 1e-3:
        raise InputError(
            f"the workers don't see the same in {what}; it has to be on a file system that all "
            "of them share"
        )


def distributed(
    share_of: Callable[..., tf.data.Dataset], strategy: tf.distribute.Strategy
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Returns training batches as `fit` takes them, of which each worker reads its share only.

    TensorFlow would have each worker read all the data and throw the others' away.

    Args:
        share_of: as `stkd_keras.data.pipeline` with `shard_index` and `num_shards` yet to be
            given; without them it returns the whole batches.
        strategy: that of `fit`.
    """
    if not is_multi_worker(strategy):
        return share_of()
    return strategy.distribute_datasets_from_function(functools.partial(_of_worker, share_of))


def distributed_by_example(
    batches: tf.data.Dataset, strategy: tf.distribute.Strategy
) -> tf.data.Dataset:
    """Returns batches to evaluate, which TensorFlow is to divide by example and not by file.

    There may be fewer files than workers.
    """
    if not is_multi_worker(strategy):
        return batches
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return batches.with_options(options)


def _of_worker(
    share_of: Callable[..., tf.data.Dataset], context: tf.distribute.InputContext
) -> tf.data.Dataset:
    """What a worker reads: TensorFlow gives its replicas one element after another."""
    replicas = context.num_replicas_in_sync
    here = replicas // context.num_input_pipelines
    first = context.input_pipeline_id * here
    shares = [share_of(shard_index=first + n, num_shards=replicas) for n in range(here)]
    if here == 1:
        return shares[0]
    return tf.data.Dataset.choose_from_datasets(shares, tf.data.Dataset.range(here).repeat())


def _means_over_workers(
    tensors: list[tf.Tensor], strategy: tf.distribute.Strategy
) -> list[tf.Tensor]:
    """The means of what each worker has, by one message."""
    if not tensors or not is_multi_worker(strategy):
        return tensors
    flat = tf.concat([tf.reshape(tf.cast(t, tf.float32), [-1]) for t in tensors], axis=0)
    means = tf.split(strategy.reduce("MEAN", flat, axis=None), [tf.size(t) for t in tensors])
    return [tf.reshape(mean, t.shape) for mean, t in zip(means, tensors, strict=True)]
