"""The cluster that several workers form, as TF_CONFIG or Slurm describes it."""

import contextlib
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf

from stkd_keras.errors import InputError, WorkerLostError, one_line

SLURM_PORT = 8888
JOBS = ("chief", "worker")
_NOT_AS_EXPECTED = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
)
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
)


class Place(NamedTuple):
    """Where this process is in a cluster.

    Attributes:
        cluster: "host:port" of every task, by job.
        job: this process's job.
        number: its number within the job.
    """

    cluster: dict[str, list[str]]
    job: str
    number: int


def make_multi_worker_strategy() -> tf.distribute.MultiWorkerMirroredStrategy:
    """Returns the strategy of this process and the others of its cluster, once all are there.

    Raises:
        InputError: where the cluster isn't described, or not rightly.
    """
    place = find_place()
    _check_addresses(place.cluster)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(place.cluster),
        task_type=place.job,
        task_id=place.number,
        rpc_layer="grpc",
    )
    size = sum(map(len, place.cluster.values()))
    print(f"waiting for all {size} workers: this is {place.job} {place.number}", flush=True)
    try:
        with _signals_kept():
            return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except tf.errors.UnknownError as error:
        if "gRPC server" not in str(error):
            raise
        address = place.cluster[place.job][place.number]
        raise InputError(
            f"{place.job} {place.number} can't listen at {address} ({one_line(error)}); choose a "
            "port that is free there"
        ) from error


def find_place() -> Place:
    """Reads where this process is: from TF_CONFIG, or without it from Slurm's environment.

    Raises:
        InputError: where neither is there, or what is there can't be right.
    """
    if os.environ.get("TF_CONFIG"):
        return _place_in_tf_config(os.environ["TF_CONFIG"])
    if "SLURM_PROCID" in os.environ:
        return _place_in_slurm()
    raise InputError(
        "several workers need to know of each other: set TF_CONFIG, or start them with Slurm's "
        "srun; README shows both"
    )


@contextlib.contextmanager
def lost_workers_named() -> Iterator[None]:
    """Gives the loss of another worker a name.

    TensorFlow's coordination service misses the heartbeats of a worker that is gone after 10
    seconds, and then breaks off what waits for it.

    Raises:
        WorkerLostError: in place of what TensorFlow says then.
    """
    try:
        yield
    except Exception as error:
        if not _tells_of_a_loss(error):
            raise
        raise WorkerLostError(
            "another worker was lost; start all of them again with the same command, which "
            "continues from the last backup"
        ) from error


def _tells_of_a_loss(error: BaseException | None) -> bool:
    """Whether an error is TensorFlow's for it, or comes of that."""
    if error is None:
        return False
    if isinstance(error, _LOST) and "collective" in str(error).lower():
        return True
    return _tells_of_a_loss(error.__cause__ or error.__context__)


def _place_in_tf_config(text: str) -> Place:
    try:
        config = json.loads(text)
        cluster = {job: _strings(addresses) for job, addresses in config["cluster"].items()}
        [job] = _strings([config["task"]["type"]])
        index = int(config["task"]["index"])
    except _NOT_AS_EXPECTED as error:
        raise InputError(
            f"TF_CONFIG is {one_line(repr(text))}, but must be as "
            '{"cluster": {"worker": ["host1:port", "host2:port"]}, '
            f'"task": {{"type": "worker", "index": 0}}}} ({type(error).__name__}: {error})'
        ) from error
    if not set(cluster) <= set(JOBS) or len(cluster.get("chief", [])) > 1:
        raise InputError(
            f"TF_CONFIG has the jobs {_sizes(cluster)}, but must have workers and at most one chief"
        )
    if not 0 <= index < len(cluster.get(job, [])):
        raise InputError(
            f"TF_CONFIG says that this is {job} {index}, but its cluster has {_sizes(cluster)}; "
            "numbers begin at 0"
        )
    return Place(cluster, job, index)


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Has the process end by Ctrl-C while it waits in TensorFlow, and by SIGTERM ever after.

    Python's own handler wouldn't have its turn, and TensorFlow takes SIGTERM for a notice, after
    which it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _place_in_slurm() -> Place:
    try:
        # Slurm gives each task its GPUs already.
        slurm = tf.distribute.cluster_resolver.SlurmClusterResolver(
            gpus_per_node=0, gpus_per_task=0, auto_set_gpu=False
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"Slurm's environment doesn't describe the workers: {error}; start them with srun"
        ) from error
    # Its `cluster_spec` sorts the hosts by name, n10 before n2, but Slurm's own order numbers them.
    addresses = [
        f"{host}:{SLURM_PORT + n}"
        for host, tasks in slurm._task_configuration.items()
        for n in range(tasks)
    ]
    if not 0 <= slurm._rank < len(addresses):
        raise InputError(
            f"SLURM_PROCID is {slurm._rank}, but Slurm's environment has {len(addresses)} tasks, "
            "whose numbers begin at 0; start them with srun"
        )
    return Place({"worker": addresses}, "worker", slurm._rank)


def _strings(values: object) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{one_line(repr(values))} isn't made of strings")
    return values


def _check_addresses(cluster: dict[str, list[str]]) -> None:
    """Refuses addresses with which the workers would wait for each other for ever."""
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
