"""A worker finds its place in a cluster, or says in one line what is wrong with its description."""

import json

import pytest
import tensorflow as tf

from stkd_keras import InputError
from stkd_keras.distribution.cluster import find_place, lost_workers_named
from stkd_keras.distribution.strategy import make_strategy
from stkd_keras.distribution.workers import _of_worker
from stkd_keras.errors import WorkerLostError

TWO = {"worker": ["a:1", "b:1"]}


@pytest.fixture
def environment(monkeypatch):
    """Sets the variables that are given, and no others that matter."""

    def set_variables(**variables):
        for name in ("TF_CONFIG", "SLURM_PROCID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value if isinstance(value, str) else json.dumps(value))

    return set_variables


def test_tf_config_says_where_a_worker_is(environment):
    environment(TF_CONFIG={"cluster": TWO, "task": {"type": "worker", "index": 1}})
    assert find_place() == (TWO, "worker", 1)
    cluster = {"chief": ["c:1"], **TWO}
    # Kubernetes' training operator adds what isn't needed.
    task = {"type": "chief", "index": 0}
    environment(TF_CONFIG={"cluster": cluster, "task": task, "environment": "cloud"})
    assert find_place() == (cluster, "chief", 0)


def test_slurm_numbers_tasks_in_the_order_of_its_hosts(environment):
    environment(
        SLURM_PROCID="2",
        SLURM_STEP_NUM_TASKS="4",
        SLURM_STEP_NODELIST="n[9-11]",
        SLURM_STEP_TASKS_PER_NODE="1,2,1",
    )
    hosts = ["n9:8888", "n10:8888", "n10:8889", "n11:8888"]
    assert find_place() == ({"worker": hosts}, "worker", 2)


WRONG = {
    "nothing": ({}, "set TF_CONFIG"),
    "no JSON": ({"TF_CONFIG": "{worker"}, "{worker"),
    "no object": ({"TF_CONFIG": [1]}, "[1]"),
    "no task": ({"TF_CONFIG": {"cluster": TWO}}, "KeyError: 'task'"),
    "index": (
        {"TF_CONFIG": {"cluster": TWO, "task": {"type": "worker", "index": 2}}},
        "worker 2, but its cluster has 2 worker",
    ),
    "job": (
        {"TF_CONFIG": {"cluster": TWO, "task": {"type": "chief", "index": 0}}},
        "chief 0, but its cluster has 2 worker",
    ),
    "parameter server": (
        {"TF_CONFIG": {"cluster": {"ps": ["a:1"], **TWO}, "task": {"type": "ps", "index": 0}}},
        "the jobs 1 ps, 2 worker",
    ),
    "no Slurm step": ({"SLURM_PROCID": "0"}, "start them with srun"),
    "Slurm's hosts": (
        {
            "SLURM_PROCID": "0",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_STEP_NODELIST": "n[a-b]",
            "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        },
        "n[a-b]",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_cluster_that_cannot_be_is_refused_in_one_line(name, environment):
    variables, named = WRONG[name]
    environment(**variables)
    with pytest.raises(InputError) as caught:
        make_strategy("multi_worker")
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_loss_of_a_worker_is_told_from_other_errors():
    lost = tf.errors.UnavailableError(None, None, "Collective ops is aborted by: connection reset")
    with pytest.raises(WorkerLostError, match="the same command"), lost_workers_named():
        raise lost
    wrapped = InputError("can't load teacher.keras")
    wrapped.__cause__ = lost
    with pytest.raises(WorkerLostError), lost_workers_named():
        raise wrapped
    for other in (
        tf.errors.UnavailableError(None, None, "the bucket isn't reachable"),
        tf.errors.ResourceExhaustedError(None, None, "Collective ops is aborted by: no memory"),
        InputError("no"),
    ):
        with pytest.raises(type(other)), lost_workers_named():
            raise other


def test_a_worker_with_several_gpus_reads_their_shares_one_after_another():
    def share_of(shard_index, num_shards):
        return tf.data.Dataset.from_tensors((shard_index, num_shards)).repeat()

    context = tf.distribute.InputContext(
        num_input_pipelines=2, input_pipeline_id=1, num_replicas_in_sync=6
    )
    shares = list(_of_worker(share_of, context).take(5).as_numpy_iterator())
    assert shares == [(3, 6), (4, 6), (5, 6), (3, 6), (4, 6)]
