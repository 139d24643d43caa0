"""Tests of training on two replicas, which a separate process checks (support/two_replicas.py)."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / "support" / "two_replicas.py"
# Only guards against hangs, since a busy machine may be many times slower.
LIMIT_S = 1800

pytestmark = pytest.mark.process


def promises():
    """Returns the names of the script's tests. It can't be imported, since it splits the CPU."""
    functions = [
        node for node in ast.parse(SCRIPT.read_text()).body if isinstance(node, ast.FunctionDef)
    ]
    return [function.name for function in functions if function.name.startswith("check_")]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Runs the script, and returns null or a traceback by name."""
    output = tmp_path_factory.mktemp("two_replicas") / "results.json"
    completed = subprocess.run(
        [sys.executable, SCRIPT, output],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONFAULTHANDLER": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    return json.loads(output.read_text())


@pytest.mark.parametrize("promise", promises())
def test_two_replicas(promise, results):
    assert results[promise] is None, results[promise]
