"""Creates distribution strategies and checks their limits."""

import keras
import tensorflow as tf

from stkd_keras.distribution.cluster import make_multi_worker_strategy
from stkd_keras.distribution.workers import is_multi_worker
from stkd_keras.errors import InputError, explain_errors, unknown_name

# Multi-worker training relies on private Keras API, tested with this version only.
TESTED_WITH_WORKERS = "3.15"
MOST_LOGICAL_DEVICES = 64
STRATEGIES = ("auto", "none", "mirrored", "multi_worker")


def make_strategy(distribute: str, logical_devices: int = 0) -> tf.distribute.Strategy | None:
    """Returns a distribution strategy for this machine, or for a cluster.

    Args:
        distribute: "none"; "mirrored" for one replica per device; "auto" for "mirrored" if there
            are at least two GPUs, else "none"; or "multi_worker" for the processes of a cluster,
            which must all call this function. TF_CONFIG or Slurm's environment variables describe
            the cluster. Multi-worker training is experimental: it relies on private Keras API.
        logical_devices: if positive, splits the CPU into that many devices, to test several
            replicas without GPUs. Call it before TensorFlow runs any operation.

    Returns:
        A MirroredStrategy, a MultiWorkerMirroredStrategy, or None for a single device.

    Raises:
        InputError: if `distribute` is unknown, the CPU can't be split anymore, or the environment
            doesn't describe a valid cluster.
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
                f"logical_devices is {logical_devices}, but each worker has one replica per GPU, "
                "or one on its CPU; leave it out"
            )
        return make_multi_worker_strategy()
    if logical_devices:
        cpu = tf.config.list_physical_devices("CPU")[0]
        parts = [tf.config.LogicalDeviceConfiguration()] * logical_devices
        with explain_errors("the CPU can't be split anymore", "call make_strategy first"):
            tf.config.set_logical_device_configuration(cpu, parts)
    gpus = tf.config.list_logical_devices("GPU")
    if distribute == "none" or (distribute == "auto" and len(gpus) < 2):
        return None
    devices = gpus if gpus and not logical_devices else tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def largest_batch(
    batch_size: int, num_images: int, strategy: tf.distribute.Strategy | None = None
) -> int:
    """Returns `batch_size`, lowered if there are fewer images.

    Args:
        batch_size: images per step, over all replicas.
        num_images: the number of images. If there are fewer than `batch_size`, the result is
            rounded down to a multiple of the number of replicas.
        strategy: the strategy, or None for the current one.
    """
    replicas = (strategy or tf.distribute.get_strategy()).num_replicas_in_sync
    return min(batch_size, max(replicas, num_images // replicas * replicas))


def check_batch_size(
    what: str, batch_size: int, strategy: tf.distribute.Strategy | None = None
) -> None:
    """Rejects a batch size that doesn't split evenly over the replicas."""
    replicas = (strategy or tf.distribute.get_strategy()).num_replicas_in_sync
    if batch_size % replicas:
        raise InputError(
            f"{what} is {batch_size}, which doesn't split evenly over {replicas} replicas; choose "
            "a multiple, or train on one device"
        )


def check_compile_options(
    strategy: tf.distribute.Strategy, optimizer, steps_per_execution: int
) -> None:
    """Rejects arguments of `compile` that Keras doesn't support on several replicas."""
    if is_multi_worker(strategy) and not keras.__version__.startswith(f"{TESTED_WITH_WORKERS}."):
        raise InputError(
            f"keras is {keras.__version__}, but multi-worker training relies on internals of "
            f'Keras {TESTED_WITH_WORKERS}: pip install "keras=={TESTED_WITH_WORKERS}.*", or train '
            "on one machine"
        )
    if strategy.num_replicas_in_sync == 1:
        return
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    given = {
        "gradient_accumulation_steps": getattr(inner, "gradient_accumulation_steps", None),
        "ema_overwrite_frequency": getattr(inner, "ema_overwrite_frequency", None),
        "steps_per_execution": steps_per_execution if steps_per_execution != 1 else None,
    }
    for option, value in given.items():
        if value:
            raise InputError(
                f"{option} is {value}, which Keras doesn't support on several replicas; leave it "
                "out, or train on one device"
            )
