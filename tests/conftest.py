"""Fixtures for all tests."""

import os
import pathlib
import subprocess
import sys

import pytest
from forked_command import ForkedCommands, force_xla

# As `full_precision`, in the processes that tests start.
os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers that each use all cores slow each other down.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    parser.addoption(
        "--as_on_gpu",
        action="store_true",
        help="make Keras compile with XLA on the CPU wherever it does on a GPU",
    )


def pytest_configure(config):
    if config.getoption("as_on_gpu"):
        os.environ["STKD_AS_ON_GPU"] = "1"  # For the commands that tests start.
        force_xla()


def pytest_collection_modifyitems(items):
    """Marks the tests that start processes; they run the commands of the repository."""
    for item in items:
        if "repository" in item.fixturenames:
            item.add_marker(pytest.mark.process)


@pytest.fixture(scope="session", autouse=True)
def full_precision():
    """Keeps GPUs from rounding float32 products to the 10 bits of mantissa of TensorFloat-32."""
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    """The folder of train.py."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder with real data and trained weights; STKD_SHARED names another one."""
    folder = pathlib.Path(os.environ.get("STKD_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no {folder}: it holds the data and weights this test needs (STKD_SHARED)")
    return folder


@pytest.fixture(scope="session")
def commands(repository, tmp_path_factory):
    """Runs commands as forks of one process that has imported TensorFlow."""
    forked = ForkedCommands(tmp_path_factory.mktemp("commands"))
    yield forked
    forked.close()


@pytest.fixture(scope="session")
def command(repository):
    """Runs a command in a new process."""

    def run(script, *flags, cwd, timeout=600):
        return subprocess.run(
            [sys.executable, str(repository / script), *map(str, flags)],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
