"""What every test may ask for."""

import os
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items):
    """Marks the tests that start processes, which need the repository for that."""
    for item in items:
        if "repository" in item.fixturenames:
            item.add_marker(pytest.mark.process)


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
def command(repository):
    """Runs one of the commands in a folder."""

    def run(script, *flags, cwd, timeout=170):
        return subprocess.run(
            [sys.executable, str(repository / script), *map(str, flags)],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
