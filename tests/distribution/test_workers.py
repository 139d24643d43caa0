"""Tests of the workers of a cluster, which train like the devices of one process.

Processes on this machine stand in for machines.
"""

import contextlib
import functools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import warnings

import networks
import numpy as np
import pytest
import tensorflow as tf
from waiting import wait_for

from stkd_keras import data
from stkd_keras.distribution.workers import _worker_share

TWO_WORKERS = pathlib.Path(__file__).parents[1] / "support" / "two_workers.py"
QUIET = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONFAULTHANDLER": "1"}
# Only guards against hangs, since a busy machine may be many times slower.
LIMIT_S = 1800


def test_the_batches_of_the_replicas_are_the_pieces_of_the_whole_batch():
    digits = data.load("digits")
    make_share = functools.partial(data.pipeline, digits, "train", 60, 0)
    pieces = []
    for worker in range(2):
        context = tf.distribute.InputContext(
            num_input_pipelines=2, input_pipeline_id=worker, num_replicas_in_sync=6
        )
        share = _worker_share(make_share, context)
        assert share.element_spec[1].shape == (10,)
        pieces.append([labels for _, labels in share.take(90).as_numpy_iterator()])
    for step, (_, labels) in enumerate(make_share().take(30).as_numpy_iterator()):
        of_step = slice(3 * step, 3 * step + 3)
        np.testing.assert_array_equal(
            np.concatenate(pieces[0][of_step] + pieces[1][of_step]), labels
        )


def free_ports(count):
    """Returns ports that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def two_workers(arguments, folder):
    """Starts the two processes of a cluster, and ends them when the context exits.

    Args:
        arguments: the arguments of Python for each process.
        folder: their working directory, which receives out0, err0, out1 and err1.
    """
    cluster = {"worker": [f"localhost:{port}" for port in free_ports(2)]}
    processes = []
    with contextlib.ExitStack() as stack:
        for index, own in enumerate(arguments):
            config = {"cluster": cluster, "task": {"type": "worker", "index": index}}
            processes.append(
                subprocess.Popen(
                    [sys.executable, *map(str, own)],
                    cwd=folder,
                    env={**QUIET, "TF_CONFIG": json.dumps(config)},
                    stdout=stack.enter_context((folder / f"out{index}").open("w")),
                    stderr=stack.enter_context((folder / f"err{index}").open("w")),
                )
            )
            stack.callback(processes[-1].wait)
            stack.callback(processes[-1].kill)
        yield processes


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """Returns the results of each of two workers, and of one process with two logical devices."""
    folder = tmp_path_factory.mktemp("two_workers")
    files = [folder / f"{name}.npz" for name in ("worker 0", "worker 1", "one process")]
    statuses, errors = statuses_of_workers(files[:2], folder)
    if -signal.SIGSEGV in statuses:
        # A rare crash within TensorFlow, once in dozens of runs.
        warnings.warn("a worker crashed; trying again:\n" + errors, stacklevel=1)
        statuses, errors = statuses_of_workers(files[:2], folder)
    assert statuses == [0, 0], errors
    alone = subprocess.run(
        [sys.executable, TWO_WORKERS, files[2]],
        env=QUIET,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert alone.returncode == 0, alone.stderr[-3000:]
    return [dict(np.load(file)) for file in files]


def statuses_of_workers(files, folder):
    """Returns the exit statuses of the two workers, and their errors."""
    with two_workers([(TWO_WORKERS, file) for file in files], folder) as processes:
        statuses = [process.wait(timeout=LIMIT_S) for process in processes]
    errors = [(folder / f"err{n}").read_text()[-8000:] for n in range(2)]
    return statuses, "\n".join(errors)


@pytest.mark.slow
def test_two_workers_log_and_train_alike(numbers):
    one, other, _ = numbers
    assert set(one) == set(other)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.mark.slow
def test_two_workers_train_like_two_devices_of_one_process(numbers):
    workers, _, devices = numbers
    assert set(workers) == set(devices)
    for name, value in workers.items():
        np.testing.assert_allclose(value, devices[name], atol=1e-4, rtol=1e-4, err_msg=name)


def worker_command(repository, folder, *flags):
    """Returns a worker's command, after saving a teacher in the folder."""
    networks.small_convolutional_classifier().save(folder / "teacher.keras")
    fixed = ("--distribute=multi_worker", "--teacher=teacher.keras", "--run_dir=run")
    return [repository / "train.py", *fixed, *flags]


@pytest.mark.slow
def test_the_same_command_resumes_after_a_worker_is_lost(repository, tmp_path):
    command = worker_command(repository, tmp_path, "--method=kd", "--epochs=12")

    with two_workers([command, command], tmp_path) as (chief, lost):
        wait_for(lambda: list((tmp_path / "run" / "backup").glob("step-*[1-9]*")), chief)
        lost.send_signal(signal.SIGKILL)
        assert chief.wait(timeout=LIMIT_S) == 138
    lines = (tmp_path / "err0").read_text().splitlines()
    assert len(lines) == 1
    assert "another worker was lost" in lines[0]
    assert "same command" in lines[0]
    assert not (tmp_path / "run" / "metrics.json").exists()

    with two_workers([command, command], tmp_path) as processes:
        assert [process.wait(timeout=LIMIT_S) for process in processes] == [0, 0]
    assert re.search(r"resuming after epoch \d+ of 12", (tmp_path / "out0").read_text())
    assert (tmp_path / "out1").read_text() == "waiting for all 2 workers: this is worker 1\n"
    assert (tmp_path / "err1").read_text() == ""
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "config.json", "history.csv", "tensorboard", "backup", "student.keras", "metrics.json",
        "model_card.md",
    }  # fmt: skip
    epochs = [row.split(",")[0] for row in (tmp_path / "run" / "history.csv").read_text().split()]
    assert epochs == ["epoch", *map(str, range(12))]


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_all_after_the_same_step(repository, tmp_path):
    command = worker_command(repository, tmp_path, "--epochs=300")
    with two_workers([command, command], tmp_path) as (chief, other):
        wait_for(lambda: list((tmp_path / "run" / "backup").glob("step-*[1-9]*")), chief)
        other.send_signal(signal.SIGTERM)
        assert [process.wait(timeout=LIMIT_S) for process in (chief, other)] == [143, 143]
    lines = [(tmp_path / f"err{n}").read_text().splitlines() for n in range(2)]
    assert [len(each) for each in lines] == [1, 1], lines
    steps = [re.search(r"\(step (\d+)\)", each[0])[1] for each in lines]
    newest = max((tmp_path / "run" / "backup").glob("step-*"))
    assert int(steps[0]) == int(steps[1]) == int(newest.stem.split("-")[1])


@pytest.mark.slow
def test_a_single_worker_under_slurm_trains_like_one_device(repository, tmp_path):
    slurm = {
        "SLURM_PROCID": "0",
        "SLURM_STEP_NUM_TASKS": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": "1",
    }
    histories = []
    for environment, flags in ((slurm, ["--distribute=multi_worker"]), ({}, [])):
        run_dir = tmp_path / f"run{len(histories)}"
        completed = subprocess.run(
            [sys.executable, repository / "train.py", "--method=ce", "--epochs=1", *flags,
             f"--run_dir={run_dir}"],
            env={**QUIET, **environment},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )  # fmt: skip
        assert completed.returncode == 0, completed.stderr[-3000:]
        rows = (run_dir / "history.csv").read_text().split()
        histories.append([float(value) for value in rows[1].split(",")])
    np.testing.assert_allclose(*histories, rtol=1e-3)
