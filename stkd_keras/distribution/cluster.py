"""The cluster of a multi-worker training (experimental), from TF_CONFIG or Slurm."""

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf

from stkd_keras.errors import InputError, WorkerLostError, explain_errors, one_line
from stkd_keras.training.signals import kept_handlers

SLURM_PORT = 8888
JOBS = ("chief", "worker")
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
)


class Task(NamedTuple):
    """This process's task in a cluster; `cluster` has the "host:port" of all tasks by job."""

    cluster: dict[str, list[str]]
    job: str
    task_index: int


def make_multi_worker_strategy() -> tf.distribute.MultiWorkerMirroredStrategy:
    """Waits for the other workers of the cluster and returns their common strategy."""
    task = find_task()
    _check_addresses(task.cluster)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(task.cluster),
        task_type=task.job,
        task_id=task.task_index,
        rpc_layer="grpc",
    )
    size = sum(map(len, task.cluster.values()))
    print(f"waiting for all {size} workers: this is {task.job} {task.task_index}", flush=True)
    try:
        with kept_handlers() as in_main_thread:
            # While TensorFlow waits, a Python handler wouldn't run. It also replaces SIGTERM's.
            if in_main_thread:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
            return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except tf.errors.UnknownError as error:
        if "gRPC server" not in str(error):
            raise
        address = task.cluster[task.job][task.task_index]
        raise InputError(
            f"{task.job} {task.task_index} can't listen at {address} ({one_line(error)}); choose a "
            "port that is free there"
        ) from error


def find_task() -> Task:
    """Returns this process's task from TF_CONFIG or, if it isn't set, from Slurm's variables."""
    if os.environ.get("TF_CONFIG"):
        return _task_from_tf_config(os.environ["TF_CONFIG"])
    if "SLURM_PROCID" in os.environ:
        return _task_from_slurm()
    raise InputError(
        "multi-worker training needs a description of the cluster: set TF_CONFIG, or start the "
        "workers with Slurm's srun; docs/devices.md shows both"
    )


@contextlib.contextmanager
def detect_lost_workers() -> Iterator[None]:
    """Turns TensorFlow's various errors for a lost worker into WorkerLostError."""
    try:
        yield
    except Exception as error:
        if not _is_worker_loss(error):
            raise
        raise WorkerLostError(
            "another worker was lost; start all of them again with the same command to resume "
            "from the last checkpoint"
        ) from error


def _is_worker_loss(error: BaseException | None) -> bool:
    """Whether a lost worker caused an error, directly or indirectly."""
    while error is not None:
        if isinstance(error, _LOST) and "collective" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def _task_from_tf_config(text: str) -> Task:
    advice = (
        'expected {"cluster": {"worker": ["host1:port", "host2:port"]}, '
        '"task": {"type": "worker", "index": 0}}'
    )
    with explain_errors(f"TF_CONFIG is {one_line(repr(text))}", advice):
        config = json.loads(text)
        cluster = tf.train.ClusterSpec(config["cluster"]).as_dict()
        job, index = str(config["task"]["type"]), int(config["task"]["index"])
    if not set(cluster) <= set(JOBS) or len(cluster.get("chief", [])) > 1:
        raise InputError(
            f"TF_CONFIG has the jobs {_sizes(cluster)}, but must have workers and at most one chief"
        )
    if not 0 <= index < len(cluster.get(job, [])):
        raise InputError(
            f"TF_CONFIG says that this is {job} {index}, but its cluster has {_sizes(cluster)}; "
            "the index starts at 0"
        )
    return Task(cluster, job, index)


def _task_from_slurm() -> Task:
    with explain_errors("Slurm's environment doesn't describe the workers", "start them with srun"):
        # Slurm has already assigned GPUs to each task.
        slurm = tf.distribute.cluster_resolver.SlurmClusterResolver(
            gpus_per_node=0, gpus_per_task=0, auto_set_gpu=False
        )
    # The resolver's `cluster_spec` sorts hosts by name (n10 before n2), but Slurm's ranks don't.
    addresses = [
        f"{host}:{SLURM_PORT + n}"
        for host, tasks in slurm._task_configuration.items()
        for n in range(tasks)
    ]
    if not 0 <= slurm._rank < len(addresses):
        raise InputError(
            f"SLURM_PROCID is {slurm._rank}, but Slurm's environment has {len(addresses)} tasks, "
            "numbered from 0; start them with srun"
        )
    return Task({"worker": addresses}, "worker", slurm._rank)


def _check_addresses(cluster: dict[str, list[str]]) -> None:
    """Rejects addresses that would make the workers wait for each other forever."""
    addresses = [address for job in cluster.values() for address in job]
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
            raise InputError(
                f"the cluster has the address {address!r}, but each must be HOST:PORT, with a port "
                "from 1 to 65535"
            )
        if addresses.count(address) > 1:
            raise InputError(
                f"the cluster has the address {address!r} more than once; give each worker its own"
            )


def _sizes(cluster: dict[str, list[str]]) -> str:
    return ", ".join(f"{len(tasks)} {job}" for job, tasks in cluster.items()) or "nobody"
