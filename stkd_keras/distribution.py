"""Several devices: which strategy, and what Keras leaves to do under one."""

import keras
import tensorflow as tf

from stkd_keras.errors import InputError


def make_strategy(distribute: str, logical_devices: int = 0) -> tf.distribute.Strategy | None:
    """Returns the strategy for this machine.

    Args:
        distribute: "none"; "mirrored" for one replica a device; or "auto", which is "mirrored"
            where there are two or more GPUs.
        logical_devices: where positive, the CPU is divided into so many devices, to try several
            replicas without GPUs. It has to come before TensorFlow's first operation.

    Returns:
        A MirroredStrategy, or None for a single device.

    Raises:
        InputError: for another word, or where devices can't be divided any more.
    """
    if distribute not in ("auto", "none", "mirrored"):
        raise InputError(f"distribute is {distribute!r}, but must be auto, none or mirrored")
    if logical_devices < 0:
        raise InputError(f"logical_devices is {logical_devices}, but must be 0 or more")
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
    this, what is validated and saved would be the first replica's.
    """
    strategy = model.distribute_strategy
    if strategy.num_replicas_in_sync == 1:
        return
    for variable in model.non_trainable_variables:
        if keras.backend.is_float_dtype(variable.dtype):
            values = strategy.experimental_local_results(variable.value)
            if len(values) > 1:
                variable.assign(tf.reduce_mean(tf.stack(values), axis=0))


def call_unless_empty(function, x, num_classes: int) -> tf.Tensor:
    """Calls a classifier, but not on the empty batch that a replica is given at the end of data.

    On a CPU, TensorFlow's convolution gives an empty batch the wrong shape, and batch normalisation
    makes its statistics not a number.

    Args:
        function: a classifier.
        x: tensor (B, ...).
        num_classes: C.

    Returns:
        float32 tensor (B, C).
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1 or x.shape[0]:
        return tf.cast(function(x), tf.float32)
    return tf.cond(
        tf.shape(x)[0] > 0,
        lambda: tf.ensure_shape(tf.cast(function(x), tf.float32), (None, num_classes)),
        lambda: tf.zeros((0, num_classes)),
    )


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
    """Refuses training data whose first batch doesn't split evenly over the replicas.

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
    if isinstance(x, tf.data.Dataset):
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
        InputError: with the argument, before the first step.
    """
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
