"""Several devices: which strategy, and what Keras leaves to do under one."""

import keras
import tensorflow as tf

from stkd_keras.distribution.cluster import make_multi_worker_strategy
from stkd_keras.distribution.workers import is_multi_worker
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
