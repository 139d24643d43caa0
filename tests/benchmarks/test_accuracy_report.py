"""Tests of the statistics and files of a report, for runs whose scores are written by hand."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import scipy.stats
from accuracy_report import write_report
from accuracy_runs import Folder
from accuracy_table import read_table

from stkd_keras import InputError

FLAGS = {"dataset": "digits", "student": "resnet8", "epochs": 20}
# Accuracies of the runs of each row, by (data seed, seed).
SCORES = {
    "a": {(d, s): 0.7 + 0.01 * d + 0.004 * s * (d + 1) for d in (0, 1, 2) for s in (0, 1)},
    "b": {(d, s): 0.69 + 0.02 * d - 0.003 * s for d in (0, 1, 2) for s in (0, 1)},
    "c": {(0, 0): 0.5},
    "d": {(0, 0): 0.62, (0, 1): 0.6, (0, 2): 0.66},
}


@pytest.fixture
def folder(tmp_path):
    """A folder with a table of several data seeds, and the run files that a report reads."""
    rows = [
        {"name": "a", "flags": {}},
        {"name": "b", "flags": {"method": "kd"}},
        {"name": "c", "flags": {"method": "ce"}, "seeds": [0], "data_seeds": [0]},
        {"name": "d", "flags": {"method": "mixup"}, "seeds": [0, 1, 2], "data_seeds": [0]},
    ]
    write_table(
        tmp_path, flags=FLAGS, rows=rows, data_seeds=[0, 1, 2], seeds=[0, 1],
        differences=[["a", "b"], ["d", "a"], ["a", "c"]],
    )  # fmt: skip
    for row in rows:
        for (data_seed, seed), accuracy in SCORES[row["name"]].items():
            run = tmp_path / "runs" / f"{row['name']}-d{data_seed}-s{seed}"
            run.mkdir(parents=True)
            own = {**FLAGS, **row["flags"], "data_seed": data_seed, "seed": seed}
            (run / "config.json").write_text(json.dumps({"flags": own, "settings": {}}))
            scores = {"accuracy": accuracy, "nll": 1 - accuracy}
            metrics = {"test": scores, "validation": {"accuracy": accuracy / 2}}
            (run / "metrics.json").write_text(json.dumps(metrics))
    return tmp_path


def write_table(folder, **changes):
    """Writes a table, or changes the existing one. JSON is valid YAML."""
    path = folder / "table.yaml"
    before = json.loads(path.read_text()) if path.exists() else {"title": "Digits"}
    path.write_text(json.dumps(before | changes))


def report(folder):
    """Writes a report, and returns the rows of the CSV by name, and the Markdown."""
    table, runs, output = read_table(folder / "table.yaml"), folder / "runs", folder / "output"
    write_report(table, runs, output, "the command")
    assert {"plot.svg", "plot.png"} <= {path.name for path in output.iterdir()}
    with (output / "table.csv").open() as file:
        return {row["name"]: row for row in csv.DictReader(file)}, (output / "table.md").read_text()


def assert_estimate(row, runs, units, over):
    """Compares a line of the CSV with SciPy's interval of the means of units, in percent."""
    runs, units = 100 * np.array(runs), 100 * np.array(units)
    assert float(row["mean"]) == pytest.approx(units.mean(), rel=1e-5)
    assert float(row["standard_deviation"]) == pytest.approx(runs.std(ddof=1), rel=1e-5)
    interval = scipy.stats.ttest_1samp(units, 0).confidence_interval(0.95)
    assert float(row["interval_low"]) == pytest.approx(interval.low, rel=1e-4)
    assert float(row["interval_high"]) == pytest.approx(interval.high, rel=1e-4)
    assert (row["interval_over"], int(row["units"])) == (over, len(units))
    assert int(row["runs"]) == len(runs)


def test_means_intervals_and_paired_differences_equal_scipys(folder):
    rows, markdown = report(folder)
    a, b, d = (SCORES[name] for name in "abd")
    for name, values in (("a", a), ("b", b)):
        means = [(values[n, 0] + values[n, 1]) / 2 for n in range(3)]
        assert_estimate(rows[name], list(values.values()), means, "data seeds")
    assert_estimate(rows["d"], list(d.values()), list(d.values()), "seeds")
    assert rows["c"]["mean"] == "50"
    assert rows["c"]["interval_low"] == rows["c"]["standard_deviation"] == ""
    assert "| c | 50.00 | - | none of one run | 1 |" in markdown
    pairs = [a[pair] - b[pair] for pair in a]
    means_a, means_b = ([(v[n, 0] + v[n, 1]) / 2 for n in range(3)] for v in (a, b))
    means = np.subtract(means_a, means_b)
    assert_estimate(rows["a - b"], pairs, means, "data seeds")
    expected = scipy.stats.ttest_rel(means_a, means_b)
    assert float(rows["a - b"]["p"]) == pytest.approx(expected.pvalue, rel=1e-4)
    pairs = [d[0, seed] - a[0, seed] for seed in (0, 1)]
    assert_estimate(rows["d - a"], pairs, pairs, "seeds")
    assert "Student's, over seeds or, where several data seeds are planned, over the means" in (
        markdown
    )
    assert f"- c: {folder}/runs/c-d0-s0\n" in markdown
    assert "Wall time" not in markdown


def test_missing_runs_are_counted(folder):
    for name in ("a-d1-s0", "b-d1-s1", "d-d0-s1", "d-d0-s2"):
        shutil.rmtree(folder / "runs" / name)
    rows, markdown = report(folder)
    assert rows["a"]["runs"] == "5"
    assert re.search(r"\| a - b \|.*\(2 data seeds\).*\| 4 of 6 \|", markdown)
    assert "| d | 62.00 | - | none of one run | 1 of 3 |" in markdown
    a, b = SCORES["a"], SCORES["b"]
    means = [np.mean([a[d, s] - b[d, s] for s in (0, 1)]) for d in (0, 2)]
    assert float(rows["a - b"]["mean"]) == pytest.approx(100 * np.mean(means), rel=1e-5)


def test_other_measures_and_splits(folder):
    write_table(folder, measure="nll")
    assert report(folder)[0]["c"]["mean"] == "0.5"
    write_table(folder, measure="accuracy", split="validation")
    assert report(folder)[0]["c"]["mean"] == "25"
    write_table(folder, measure="top5_accuracy", split="test")
    with pytest.raises(InputError, match=r"metrics\.json has no top5_accuracy of the test split"):
        report(folder)


def test_a_table_without_runs(folder):
    shutil.rmtree(folder / "runs")
    _, markdown = report(folder)
    assert "| a | - | - | - | 0 of 6 |" in markdown
    assert "- a: none yet" in markdown


def test_complete_runs_with_other_flags_are_refused(folder):
    table = json.loads((folder / "table.yaml").read_text())
    # Locations may differ.
    write_table(folder, flags={**FLAGS, "data_dir": "elsewhere"})
    Folder(read_table(folder / "table.yaml"), folder / "runs").check()
    table["rows"][1]["flags"]["temperature"] = 2
    write_table(folder, rows=table["rows"])
    with pytest.raises(
        InputError, match=r"--temperature was None and the table's is 2\.0"
    ) as error:
        Folder(read_table(folder / "table.yaml"), folder / "runs").check()
    assert "b-d0-s0 is complete" in str(error.value)


def test_an_image_size_recorded_as_a_number_is_the_same_flag(folder):
    for path in (folder / "runs").glob("*/config.json"):
        config = json.loads(path.read_text())
        config["flags"]["image_size"] = 32
        path.write_text(json.dumps(config))
    write_table(folder, flags={**FLAGS, "image_size": 32})
    Folder(read_table(folder / "table.yaml"), folder / "runs").check()
    write_table(folder, flags={**FLAGS, "image_size": 64})
    with pytest.raises(InputError, match="--image_size was 32 and the table's is 64"):
        Folder(read_table(folder / "table.yaml"), folder / "runs").check()


def test_a_row_with_a_removed_flag_can_be_reported_but_not_trained(folder):
    row = {"name": "e", "flags": {"clean_soft_weight": 0.9}, "seeds": [0], "data_seeds": [0]}
    write_table(folder, rows=[row], differences=[["e", "a"]])
    write_table(folder, rows=[row, {"name": "a"}])
    runs = Folder(read_table(folder / "table.yaml"), folder / "runs")
    with pytest.raises(InputError, match=r"e-d0-s0 needs --clean_soft_weight.*commit 1f4727a"):
        runs.check_trainable()
    run = folder / "runs" / "e-d0-s0"
    shutil.copytree(folder / "runs" / "a-d0-s0", run)
    with pytest.raises(InputError, match=r"--clean_soft_weight was None and the table's is 0\.9"):
        runs.check()
    config = json.loads((run / "config.json").read_text())
    config["flags"]["clean_soft_weight"] = 0.9
    (run / "config.json").write_text(json.dumps(config))
    runs.check()
    runs.check_trainable()
    assert report(folder)[0]["e"]["mean"] == "70"
