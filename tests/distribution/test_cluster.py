"""Tests of reading a cluster's description, and of detecting lost workers."""

import json

import pytest
import tensorflow as tf

from stkd_keras import InputError
from stkd_keras.distribution.cluster import detect_lost_workers, find_task
from stkd_keras.distribution.strategy import make_strategy
from stkd_keras.errors import WorkerLostError

TWO = {"worker": ["a:1", "b:1"]}


@pytest.fixture
def environment(monkeypatch):
    """Sets the variables that describe a cluster, and removes all others."""

    def set_variables(**variables):
        for name in ("TF_CONFIG", "SLURM_PROCID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value if isinstance(value, str) else json.dumps(value))

    return set_variables


def test_the_task_is_read_from_tf_config(environment):
    environment(TF_CONFIG={"cluster": TWO, "task": {"type": "worker", "index": 1}})
    assert find_task() == (TWO, "worker", 1)
    cluster = {"chief": ["c:1"], **TWO}
    # Kubernetes' training operator adds more keys.
    task = {"type": "chief", "index": 0}
    environment(TF_CONFIG={"cluster": cluster, "task": task, "environment": "cloud"})
    assert find_task() == (cluster, "chief", 0)


def test_the_task_is_read_from_slurm_in_the_order_of_its_hosts(environment):
    environment(
        SLURM_PROCID="2",
        SLURM_STEP_NUM_TASKS="4",
        SLURM_STEP_NODELIST="n[9-11]",
        SLURM_STEP_TASKS_PER_NODE="1,2,1",
    )
    hosts = ["n9:8888", "n10:8888", "n10:8889", "n11:8888"]
    assert find_task() == ({"worker": hosts}, "worker", 2)


WRONG = {
    "nothing": ({}, "set TF_CONFIG"),
    "no JSON": ({"TF_CONFIG": "{worker"}, "{worker"),
    "no object": ({"TF_CONFIG": [1]}, "[1]"),
    "no task": ({"TF_CONFIG": {"cluster": TWO}}, "('task')"),
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
def test_an_invalid_cluster_is_refused_in_one_line(name, environment):
    variables, named = WRONG[name]
    environment(**variables)
    with pytest.raises(InputError) as caught:
        make_strategy("multi_worker")
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_loss_of_a_worker_is_distinguished_from_other_errors():
    lost = tf.errors.UnavailableError(None, None, "Collective ops is aborted by: connection reset")
    with pytest.raises(WorkerLostError, match="the same command"), detect_lost_workers():
        raise lost
    wrapped = InputError("can't load teacher.keras")
    wrapped.__cause__ = lost
    with pytest.raises(WorkerLostError), detect_lost_workers():
        raise wrapped
    for other in (
        tf.errors.UnavailableError(None, None, "the bucket isn't reachable"),
        tf.errors.ResourceExhaustedError(None, None, "Collective ops is aborted by: no memory"),
        InputError("no"),
    ):
        with pytest.raises(type(other)), detect_lost_workers():
            raise other
