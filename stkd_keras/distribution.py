"""Several devices: which strategy, and what Keras leaves to do under one."""

import functools
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from stkd_keras.cluster import make_multi_worker_strategy
from stkd_keras.errors import InputError, unknown_name

# The version of Keras that `reducible` and `first_local_batch` were tried with.
TRIED_WITH_WORKERS = "3.15"
MOST_LOGICAL_DEVICES = 64
STRATEGIES = ("auto", "none", "mirrored", "multi_worker")


def make_strategy(distribute: str, logical_devices: int = 0) -> tf.distribute.Strategy | None:
    """Returns the strategy for this machine.

    Args:
        distribute: "none"; "mirrored" for one replica a device; "auto", which is "mirrored"
            where there are two or more GPUs; or "multi_worker" for the processes of a cluster,
            which TF_CONFIG or Slurm's environment describes. All of them have to call it.
        logical_devices: where positive, the CPU is divided into so many devices, to try several
            replicas without GPUs. It has to come before TensorFlow's first operation.

    Returns:
        A MirroredStrategy or MultiWorkerMirroredStrategy, or None for a single device.

    Raises:
        InputError: for another word, where devices can't be divided any more, or where the
            cluster isn't described, or not rightly.
    """
    if distribute not in STRATEGIES:
        raise unknown_name("way to distribute", distribute, STRATEGIES)
    if not 0 <= logical_devices <= MOST_LOGICAL_DEVICES:
        raise InputError(
            f"logical_devices is {logical_devices}, but must be from 0 to {MOST_LOGICAL_DEVICES}"
        )
    if distribute == "multi_worker":
        if logical_devices:
            raise InputError(
                f"logical_devices is {logical_devices}, but a worker of several has one replica a "
                "GPU, or one on its CPU; leave it out"
            )
        return make_multi_worker_strategy()
    if logical_devices:
        cpu = tf.config.list_physical_devices("CPU")[0]
        parts = [tf.config.LogicalDeviceConfiguration()] * logical_devices
        try:
            tf.config.set_logical_device_configuration(cpu, parts)
        except RuntimeError as error:
            raise InputError(f"the CPU can't be divided any more: {error}") from error
    gpus = tf.config.list_logical_devices("GPU")
    if distribute == "none" or (distribute == "auto" and len(gpus) < 2):
        return None
    devices = gpus if gpus and not logical_devices else tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def largest_batch(
    batch_size: int, num_images: int, strategy: tf.distribute.Strategy | None = None
) -> int:
    """Returns a batch size, or all the images where there are fewer.

    Args:
        batch_size: images a step, over all replicas.
        num_images: how many there are; what is returned splits evenly over the replicas.
        strategy: the strategy, None for the current one.
    """
    replicas = (strategy or tf.distribute.get_strategy()).num_replicas_in_sync
    return min(batch_size, max(replicas, num_images // replicas * replicas))


def check_batch_size(
    what: str, batch_size: int, strategy: tf.distribute.Strategy | None = None
) -> None:
    """Refuses a batch that doesn't split evenly over the replicas.

    Args:
        what: whose size it is, for the error.
        batch_size: images a step, over all replicas.
        strategy: the strategy, None for the current one.

    Raises:
        InputError: likewise.
    """
    replicas = (strategy or tf.distribute.get_strategy()).num_replicas_in_sync
    if batch_size % replicas:
        raise InputError(
            f"{what} is {batch_size}, which doesn't split evenly over {replicas} replicas; choose "
            "a multiple, or --distribute=none"
        )


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


def check_not_empty(x) -> None:
    """Refuses data that are known to be empty.

    Args:
        x: what was passed to `fit` or `evaluate`: an array, a tf.data.Dataset, or anything else.

    Raises:
        InputError: where there is no example.
    """
    if isinstance(x, tf.data.Dataset):
        is_empty = int(x.cardinality()) == 0
    else:
        is_empty = hasattr(x, "shape") and len(x.shape) > 0 and x.shape[0] == 0
    if is_empty:
        raise InputError("the data are empty; give at least one batch")


def check_first_batch(
    x, batch_size: int | None, validation_split: float, strategy: tf.distribute.Strategy
) -> None:
    """Refuses training data whose full batches don't split evenly over the replicas.

    Args:
        x: what was passed to `fit`: an array, a tf.data.Dataset, or anything else.
        batch_size: what was passed to `fit`.
        validation_split: what was passed to `fit`.
        strategy: the strategy of the model.

    Raises:
        InputError: with the numbers, and what to change.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return
    # What `stkd_keras.data` cuts can begin with one of an epoch's last two batches.
    given = getattr(x, "batch_size", None) or getattr(
        getattr(x, "source", None), "batch_size", None
    )
    if given:
        size = given
    elif isinstance(x, tf.data.Dataset):
        first = next(iter(x.take(1)), None)
        size = keras.tree.flatten(first)[0].shape[0] if first is not None else None
    elif hasattr(x, "shape") and len(x.shape) > 0:
        size = min(batch_size or 32, int(x.shape[0] * (1 - validation_split)))
    else:
        size = None
    if size is not None and size % replicas:
        raise InputError(
            f"the first batch has {size} examples, which don't split evenly over {replicas} "
            f"replicas; choose a batch size that is a multiple of {replicas}"
        )


def refuse_what_keras_cannot_do(
    strategy: tf.distribute.Strategy, optimizer, steps_per_execution: int, jit_compile
) -> None:
    """Refuses arguments of `compile` under which Keras 3.15 fails on several replicas.

    Raises:
        InputError: with the argument, before the first step; with several workers also for a
            version of Keras with which its remedies weren't tried.
    """
    if is_multi_worker(strategy) and not keras.__version__.startswith(f"{TRIED_WITH_WORKERS}."):
        raise InputError(
            f"keras is {keras.__version__}, but several workers were tried with "
            f"{TRIED_WITH_WORKERS} only, where `fit` needs two remedies: pip install "
            f'"keras=={TRIED_WITH_WORKERS}.*", or train on one machine'
        )
    if strategy.num_replicas_in_sync == 1:
        return
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    given = {
        "gradient_accumulation_steps": getattr(inner, "gradient_accumulation_steps", None),
        "ema_overwrite_frequency": getattr(inner, "ema_overwrite_frequency", None),
        "steps_per_execution": steps_per_execution if steps_per_execution != 1 else None,
        "jit_compile": jit_compile if jit_compile != "auto" else None,
    }
    for option, value in given.items():
        if value:
            raise InputError(
                f"{option} is {value}, which Keras can't do on several replicas; leave it out, or "
                "train on one device"
            )


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


def _is_float(variable: keras.Variable) -> bool:
    return keras.backend.is_float_dtype(variable.dtype)


def _means_over_workers(
    tensors: list[tf.Tensor], strategy: tf.distribute.Strategy
) -> list[tf.Tensor]:
    """The means of what each worker has, by one message."""
    if not tensors or not is_multi_worker(strategy):
        return tensors
    flat = tf.concat([tf.reshape(tf.cast(t, tf.float32), [-1]) for t in tensors], axis=0)
    means = tf.split(strategy.reduce("MEAN", flat, axis=None), [tf.size(t) for t in tensors])
    return [tf.reshape(mean, t.shape) for mean, t in zip(means, tensors, strict=True)]


def _no_rows(shape: tf.TensorShape) -> tf.Tensor:
    return tf.zeros([0, *(size or 0 for size in shape[1:])])
