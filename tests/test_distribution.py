"""Two replicas train as one device does, and say so in what they log."""

import ast
import json
import os
import subprocess
import sys

import pytest

SCRIPT = os.path.join(os.path.dirname(__file__), "two_replicas.py")


def promises():
    """The public functions of the script, which can't be imported: it divides the CPU."""
    with open(SCRIPT) as file:
        tree = ast.parse(file.read())
    names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
    return [name for name in names if name != "make" and not name.startswith("_")]


pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the script found."""
    output = tmp_path_factory.mktemp("two_replicas") / "results.json"
    completed = subprocess.run(
        [sys.executable, SCRIPT, str(output)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    return json.loads(output.read_text())


@pytest.mark.parametrize("promise", promises())
def test_on_two_replicas(promise, results):
    assert results[promise] is None, results[promise]
