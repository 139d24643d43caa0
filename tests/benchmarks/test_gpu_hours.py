"""Tests of the estimated GPU hours."""

import pathlib
import re

import pytest

TABLES = pathlib.Path(__file__).parents[2] / "benchmarks" / "tables"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["cifar10", "cifar100", "cinic10", "tiny_imagenet", "repdistiller"]
)
def test_the_tables_state_their_estimated_hours(name, command, tmp_path):
    path = TABLES / f"{name}.yaml"
    completed = command("benchmarks/gpu_hours.py", f"--table={path}", cwd=tmp_path, timeout=1800)
    hours = completed.stdout.strip()
    assert f"\ngpu_hours: {hours}\n" in path.read_text()
    assert re.search(rf"\| `{name}.yaml` \|.* {hours} \|\n", (TABLES / "README.md").read_text())
