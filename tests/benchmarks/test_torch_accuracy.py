"""Tests of the report of the comparison in PyTorch."""

import csv
import subprocess
import sys

import numpy as np


def test_the_results_page_has_the_tables_of_the_runs(repository):
    command = [sys.executable, "benchmarks/torch_accuracy.py"]
    run = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stderr
    page = (repository / "docs" / "results" / "pytorch.md").read_text()
    rows = [line for line in run.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) > 20
    assert [row for row in rows if row not in page] == []
    with (repository / "docs" / "results" / "torch" / "runs.csv").open() as file:
        stkd = [r for r in csv.DictReader(file) if (r["fraction"], r["row"]) == ("0.02", "stkd")]
    mean = np.mean([100 * float(r["test"]) for r in stkd])
    assert f"| stkd | {mean:.2f} |" in run.stdout
