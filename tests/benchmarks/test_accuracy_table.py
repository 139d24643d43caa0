"""benchmarks/accuracy.py: runs that are made once, whatever ends it, and what they say together."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import keras
import networks
import numpy as np
import pytest
import scipy.stats
from forked_command import ForkedCommands
from waiting import wait_for

FLAGS = {
    "dataset": "digits", "student": "resnet8", "epochs": 20, "train_images_per_class": 10,
    "validation_fraction": 0.0, "batch_size": 20, "backup_steps": 3, "deterministic": True,
    "validation_freq": 20,
}  # fmt: skip
COMMAND = "benchmarks/accuracy.py"


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Runs commands in forks of one process."""
    forked = ForkedCommands(tmp_path_factory.mktemp("output"))
    yield forked
    forked.close()


@pytest.fixture(scope="module")
def undisturbed(repository, tmp_path_factory):
    """A folder with a table of two rows and two seeds that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    keras.utils.set_random_seed(0)
    networks.small_convolutional_classifier().save(folder / "teacher.keras")
    student = networks.small_convolutional_classifier()
    # What makes students of two seeds differ.
    layers = [keras.layers.Dropout(0.2), keras.layers.Dense(10)]
    keras.Sequential([*student.layers[:-1], *layers]).save(folder / "student.keras")
    rows = [{"name": method, "flags": {"method": method}} for method in ("ce", "kd")]
    files = {each: str(folder / f"{each}.keras") for each in ("teacher", "student")}
    flags = {**FLAGS, **files}
    write_table(folder, flags=flags, rows=rows, seeds=[0, 1], differences=[["kd", "ce"]])
    process = start(repository, folder, "--keep_recordings")
    assert process.wait(300) == 0, (folder / "output").read_text()
    return folder


def write_table(folder, name="table.yaml", **content):
    """Writes a table; YAML takes JSON."""
    content = {"title": "Digits", **content}
    (folder / name).write_text(json.dumps(content))


def start(repository, folder, *flags):
    """Starts the runner for a folder's table."""
    command = [sys.executable, repository / COMMAND, "--table=table.yaml", "--runs_dir=runs"]
    # The last digits depend on the number of threads, which depends on this.
    command.append("--jobs=2")
    with (folder / "output").open("a") as output:
        return subprocess.Popen(
            [*map(str, command), *flags], cwd=folder, stdout=output, stderr=subprocess.STDOUT
        )


def end_while_training(repository, folder, name, number):
    """Starts the runner, and ends it by a signal when a run has trained for some steps."""
    backup = folder / "runs" / "table" / name / "backup"
    steps_before = newest_step(backup)
    process = start(repository, folder)
    wait_for(lambda: newest_step(backup) > steps_before, process)
    process.send_signal(number)
    status = process.wait(60)
    assert newest_step(backup) < 100
    assert not (backup.parent / "metrics.json").exists()
    return status


def newest_step(backup):
    """The last step that is backed up."""
    return max([0, *(int(re.sub(r"\D", "", path.stem)) for path in backup.glob("step-*"))])


def training_processes(folder):
    """The processes of train.py that have a run in a folder, by what Linux says of them."""
    found = []
    for process in os.listdir("/proc"):
        try:
            with open(f"/proc/{process}/cmdline") as file:
                line = file.read()
        except (OSError, ValueError):
            continue
        if "train.py" in line and str(folder) in line:
            found.append(process)
    return found


def without_times(markdown):
    """A table without the line that says how long it took."""
    return [line for line in markdown.splitlines() if not line.startswith("Wall time")]


@pytest.mark.slow
def test_a_killed_and_an_interrupted_runner_go_on_to_the_same_table(
    undisturbed, repository, tmp_path
):
    folder = tmp_path / "disturbed"
    shutil.copytree(undisturbed, folder)
    for name in ("kd-d0-s0", "recordings"):
        shutil.rmtree(folder / "runs" / "table" / name)
    (folder / "output").unlink()
    runs = folder / "runs" / "table"
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*-s1/*")}
    assert end_while_training(repository, folder, "kd-d0-s0", signal.SIGKILL) == -signal.SIGKILL
    wait_for_none(folder)
    assert end_while_training(repository, folder, "kd-d0-s0", signal.SIGTERM) == 143
    assert not training_processes(folder)
    output = (folder / "output").read_text()
    assert "ended by SIGTERM after 3 of 4 runs; the same command resumes there" in output
    process = start(repository, folder)
    assert process.wait(300) == 0, (folder / "output").read_text()
    assert without_times((runs / "table.md").read_text()) == without_times(
        (undisturbed / "runs" / "table" / "table.md").read_text()
    )
    for name in ("table.csv", "plot.svg"):
        expected = (undisturbed / "runs" / "table" / name).read_bytes()
        assert (runs / name).read_bytes() == expected
    assert {path: path.stat().st_mtime_ns for path in runs.glob("*-s1/*")} == before
    log = (runs / "kd-d0-s0.log").read_text()
    assert log.count("recording the teacher's answers") == 2  # One of them the undisturbed run's.
    assert log.count("resuming after") == 2
    assert not list((runs / "recordings").iterdir())


def wait_for_none(folder):
    """Waits until the kernel has ended what belonged to a killed runner."""
    sleeper = subprocess.Popen(["sleep", "30"])
    wait_for(lambda: not training_processes(folder), sleeper, seconds=10)
    sleeper.kill()
    sleeper.wait()


def test_one_recording_serves_the_runs_that_share_the_answers(undisturbed):
    runs = undisturbed / "runs" / "table"
    assert len(list((runs / "recordings").iterdir())) == 1
    logs = [(runs / f"{name}.log").read_text() for name in ("kd-d0-s0", "kd-d0-s1", "ce-d0-s0")]
    counts = [log.count("recording the teacher's answers") for log in logs]
    assert counts == [1, 0, 0]
    for name, is_replayed in (("kd-d0-s0", True), ("kd-d0-s1", True), ("ce-d0-s1", False)):
        config = json.loads((runs / name / "config.json").read_text())
        assert config["settings"]["replay"] is is_replayed


def test_the_time_is_said_beforehand_and_behind_each_run(undisturbed):
    output = (undisturbed / "output").read_text()
    assert output.startswith("0 of 4 runs are complete\n")
    assert output.count("a few steps, for the time") == 2
    assert re.search(r"^about \d+ s left$", output, re.MULTILINE)
    assert re.search(r"^1 of 4 runs: \S+ accuracy [\d.]+ %; about \d+ s left$", output, re.M)
    assert re.search(r"^4 of 4 runs: \S+ accuracy [\d.]+ %$", output, re.MULTILINE)
    timings = json.loads((undisturbed / "runs" / "table" / "timings.json").read_text())
    assert len(timings) == 4
    assert all(timing["seconds"] > 1 for timing in timings.values())


SHARING = """
import json, pathlib
import accuracy_table
table = accuracy_table.read_table(pathlib.Path("table.yaml"))
print(json.dumps({run.name: accuracy_table.answers_key(run.flags) for run in table.runs}))
"""


def test_a_recording_is_shared_by_all_that_ask_the_same_and_no_others(repository, tmp_path):
    flags = {
        "kd": {"method": "kd"},
        "warm": {"method": "kd", "temperature": 8, "learning_rate": 0.2, "student": "resnet14"},
        "dist": {"method": "dist"},
        "stkd": {"method": "stkd"},
        "mixed by hand": {"method": "kd", "mixing": "mixup", "soft_weight": 0.5},
        "longer": {"method": "kd", "epochs": 21},
        "augmented": {"method": "kd", "augment": "cutout"},
        "another teacher": {"method": "kd", "teacher": "resnet20"},
        "three": {"method": "stkd", "num_images": 3},
        "ce": {"method": "ce"},
        "features": {"method": "crd"},
        "of clean": {"method": "stkd", "soft_target": "mixed"},
    }
    rows = [{"name": name.replace(" ", "-"), "flags": own} for name, own in flags.items()]
    write_table(tmp_path, flags=FLAGS, rows=rows, seeds=[0, 1])
    printed = subprocess.run(
        [sys.executable, "-c", SHARING], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": f"{repository}:{repository / 'benchmarks'}"},
    ).stdout  # fmt: skip
    keys = json.loads(printed.splitlines()[-1])
    shared = [
        {name.rpartition("-d0")[0] for name, key in keys.items() if key == each}
        for each in keys.values()
    ]
    assert {"kd", "warm", "dist", "of-clean"} in shared
    assert {"stkd", "mixed-by-hand"} in shared
    assert {"ce", "features"} in shared
    assert all(keys[f"{name}-d0-s0"] is None for name in ("ce", "features"))
    for name in ("longer", "augmented", "another-teacher", "three"):
        assert {name} in shared


@pytest.mark.slow
def test_killed_again_and_again_it_goes_on_to_the_same_table(undisturbed, repository, tmp_path):
    shutil.copy(undisturbed / "table.yaml", tmp_path)
    for name in ("ce-d0-s0", "ce-d0-s1", "kd-d0-s0", "kd-d0-s0", "kd-d0-s1"):
        assert end_while_training(repository, tmp_path, name, signal.SIGKILL) == -signal.SIGKILL
    assert start(repository, tmp_path).wait(300) == 0, (tmp_path / "output").read_text()
    name = "runs/table/table.csv"
    assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes()


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_go_on(undisturbed, repository, tmp_path):
    table = json.loads((undisturbed / "table.yaml").read_text())
    # Not to be seen in the dry run of its kind, which is the first row's.
    bad = {"name": "bad", "flags": {"method": "kd", "temperature": -1}}
    good = {"name": "good", "flags": {"method": "kd"}}
    write_table(tmp_path, flags=table["flags"], rows=[good, bad], differences=[["good", "bad"]])
    assert start(repository, tmp_path).wait(300) == 1
    output = (tmp_path / "output").read_text()
    assert "1 of 2 runs failed:\n  bad-d0-s0: exit status 2: train.py: error: temperature" in output
    markdown = (tmp_path / "runs" / "table" / "table.md").read_text()
    assert re.search(r"\| good \| [\d.]+ \| - \| none of one run \| 1 \|", markdown)
    assert "| bad | - | - | - | 0 of 1 |" in markdown


@pytest.mark.slow
def test_what_train_refuses_is_refused_before_anything_is_trained(commands, tmp_path):
    write_table(tmp_path, flags=FLAGS, rows=[{"name": "a", "flags": {"temperature": -1}}])
    completed = commands.run(COMMAND, "--table=table.yaml", cwd=tmp_path, limit=60)
    line = assert_refused(completed)
    assert "a-d0-s0 can't be trained: train.py: error: temperature is -1.0" in line


# What the rows of hand-written runs scored: (data seed, seed) to accuracy.
HAND_WRITTEN = {
    "a": {(d, s): 0.7 + 0.01 * d + 0.004 * s * (d + 1) for d in (0, 1, 2) for s in (0, 1)},
    "b": {(d, s): 0.69 + 0.02 * d - 0.003 * s for d in (0, 1, 2) for s in (0, 1)},
    "c": {(0, 0): 0.5},
    "d": {(0, 0): 0.62, (0, 1): 0.6, (0, 2): 0.66},
}


@pytest.fixture
def hand_written(tmp_path):
    """A folder with a table of several data seeds and runs of which there is only what counts."""
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
        for (data_seed, seed), accuracy in HAND_WRITTEN[row["name"]].items():
            run = tmp_path / "docs" / "table" / f"{row['name']}-d{data_seed}-s{seed}"
            run.mkdir(parents=True)
            own = {**FLAGS, **row["flags"], "data_seed": data_seed, "seed": seed}
            (run / "config.json").write_text(json.dumps({"flags": own, "settings": {}}))
            scores = {"accuracy": accuracy, "nll": 1 - accuracy}
            metrics = {"test": scores, "validation": {"accuracy": accuracy / 2}}
            (run / "metrics.json").write_text(json.dumps(metrics))
    return tmp_path


def report(commands, folder, *flags):
    """The rows of the CSV that a report of hand-written runs has, and the Markdown."""
    completed = commands.run(
        COMMAND, "--table=table.yaml", "--runs_dir=docs", "--report_only", *flags, cwd=folder
    )
    assert completed.returncode == 0, completed.stderr
    output = folder / "docs" / "table"
    assert {"plot.svg", "plot.png"} <= {path.name for path in output.iterdir()}
    with (output / "table.csv").open() as file:
        return {row["name"]: row for row in csv.DictReader(file)}, (output / "table.md").read_text()


def assert_estimate(row, runs, units, over):
    """Holds a line of the CSV against SciPy's interval of the means of units, in percent."""
    runs, units = 100 * np.array(runs), 100 * np.array(units)
    assert float(row["mean"]) == pytest.approx(units.mean(), rel=1e-5)
    assert float(row["standard_deviation"]) == pytest.approx(runs.std(ddof=1), rel=1e-5)
    interval = scipy.stats.ttest_1samp(units, 0).confidence_interval(0.95)
    assert float(row["interval_low"]) == pytest.approx(interval.low, rel=1e-4)
    assert float(row["interval_high"]) == pytest.approx(interval.high, rel=1e-4)
    assert (row["interval_over"], int(row["units"])) == (over, len(units))
    assert int(row["runs"]) == len(runs)


def test_complete_runs_are_not_made_again_and_others_than_the_tables_refused(
    commands, hand_written
):
    flags = ("--table=table.yaml", "--runs_dir=docs")
    completed = commands.run(COMMAND, *flags, cwd=hand_written)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.startswith("16 of 16 runs are complete\n\n# Digits")
    table = json.loads((hand_written / "table.yaml").read_text())
    table["rows"][1]["flags"]["temperature"] = 2
    # Where things are may differ.
    table["flags"]["data_dir"] = "elsewhere"
    write_table(hand_written, **table)
    for more in ([], ["--report_only"]):
        line = assert_refused(commands.run(COMMAND, *flags, *more, cwd=hand_written))
        assert "docs/table/b-d0-s0 is complete" in line
        assert "--temperature was None and the table's is 2.0" in line


def test_means_intervals_and_paired_differences_are_scipys(commands, hand_written):
    rows, markdown = report(commands, hand_written)
    a, b, d = (HAND_WRITTEN[name] for name in "abd")
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
    assert "- c: docs/table/c-d0-s0\n" in markdown
    assert "Wall time" not in markdown


def test_a_table_of_what_is_there_says_what_is_missing(commands, hand_written):
    for name in ("a-d1-s0", "b-d1-s1", "d-d0-s1", "d-d0-s2"):
        shutil.rmtree(hand_written / "docs" / "table" / name)
    rows, markdown = report(commands, hand_written)
    assert rows["a"]["runs"] == "5"
    assert re.search(r"\| a - b \|.*\(2 data seeds\).*\| 4 of 6 \|", markdown)
    assert "| d | 62.00 | - | none of one run | 1 of 3 |" in markdown
    a, b = HAND_WRITTEN["a"], HAND_WRITTEN["b"]
    means = [np.mean([a[d, s] - b[d, s] for s in (0, 1)]) for d in (0, 2)]
    assert float(rows["a - b"]["mean"]) == pytest.approx(100 * np.mean(means), rel=1e-5)


def test_other_measures_and_splits_are_as_they_stand_in_metrics_json(commands, hand_written):
    table = json.loads((hand_written / "table.yaml").read_text())
    write_table(hand_written, **table, measure="nll")
    assert report(commands, hand_written)[0]["c"]["mean"] == "0.5"
    write_table(hand_written, **table, split="validation")
    assert report(commands, hand_written)[0]["c"]["mean"] == "25"
    write_table(hand_written, **table, measure="top5_accuracy")
    completed = commands.run(
        COMMAND, "--table=table.yaml", "--runs_dir=docs", "--report_only", cwd=hand_written
    )
    assert "metrics.json has no top5_accuracy of the test split" in assert_refused(completed)


def test_pairs_have_every_row(commands, tmp_path):
    pairs = [{"name": f"from{n}", "flags": {"teacher": f"resnet{n}"}} for n in (8, 20)]
    pairs[1]["without"] = ["fsp"]
    rows = [{"name": name, "flags": {"method": name}} for name in ("kd", "stkd", "fsp")]
    write_table(tmp_path, pairs=pairs, rows=rows, differences=[["stkd", "kd"], ["stkd", "fsp"]])
    found, markdown = report(commands, tmp_path)
    assert list(found) == [
        "from8-kd", "from8-stkd", "from8-fsp", "from20-kd", "from20-stkd",
        "from8-stkd - from8-kd", "from8-stkd - from8-fsp", "from20-stkd - from20-kd",
    ]  # fmt: skip
    assert "- from8-kd: none yet" in markdown


ROWS = [{"name": "a", "flags": {"method": "kd"}}, {"name": "b"}]
BAD_TABLES = {
    "no YAML": ("title: [", "can't be read as YAML"),
    "not UTF-8": (b"title: \xff", "can't be read as YAML"),
    "a list": ([1], "the table is '[1]', expected keys and values"),
    "nothing": ("", "the table is 'None'"),
    "a key twice": ("title: a\ntitle: b\nrows: []", "'title' is there twice (line 1)"),
    "no title": ({"rows": ROWS}, "has no title"),
    "no rows": ({"title": "a"}, "has no rows"),
    "an unknown key": (
        {"title": "a", "rows": ROWS, "seed": [1]},
        "unknown key in the table 'seed'",
    ),
    "an unknown key of a row": (
        {"title": "a", "rows": [{"name": "a", "flag": {}}]},
        "unknown key in number 1 of rows 'flag'; the nearest known: flags",
    ),
    "an unknown flag": (
        {"title": "a", "rows": ROWS, "flags": {"epoch": 1}},
        "unknown key in flags 'epoch'; the nearest known: epochs",
    ),
    "a flag's bad value": (
        {"title": "a", "rows": ROWS, "flags": {"epochs": "many"}},
        "row a: flag --epochs=many",
    ),
    "an unknown method": (
        {"title": "a", "rows": [{"name": "a", "flags": {"method": "stdk"}}]},
        "flag --method=stdk",
    ),
    "settings that contradict each other": (
        {"title": "a", "rows": [{"name": "a", "flags": {"method": "ce", "method_weight": 2}}]},
        "row a: method_weight is 2.0, but ce has no term of its own",
    ),
    "a flag of the runner": (
        {"title": "a", "rows": ROWS, "flags": {"run_dir": "x"}},
        "the flag run_dir is for this command to give",
    ),
    "a list for a flag": ({"title": "a", "rows": ROWS, "flags": {"epochs": [1]}}, "one value"),
    "no rows in it": ({"title": "a", "rows": []}, "rows is '[]', expected a list"),
    "no seeds": ({"title": "a", "rows": ROWS, "seeds": []}, "seeds of a is '[]'"),
    "a seed twice": ({"title": "a", "rows": ROWS, "seeds": [1, 1]}, "different integers"),
    "a negative seed": ({"title": "a", "rows": ROWS, "seeds": [-1]}, "flag --seed=-1"),
    "a name twice": ({"title": "a", "rows": [ROWS[0], ROWS[0]]}, "two of rows are called a"),
    "a name with a slash": ({"title": "a", "rows": [{"name": "a/../b"}]}, "is to be a folder's"),
    "a name that is no text": ({"title": "a", "rows": [{"name": 1}]}, "expected a text"),
    "an unknown row": (
        {"title": "a", "rows": ROWS, "differences": [["a", "c"]]},
        "unknown row in differences 'c'",
    ),
    "a pair without an unknown row": (
        {"title": "a", "rows": ROWS, "pairs": [{"name": "p", "without": ["c"]}]},
        "unknown row in without of p 'c'; the nearest known: a, b",
    ),
    "no pairs": ({"title": "a", "rows": ROWS, "pairs": []}, "pairs is '[]', expected a list"),
    "a difference of one": (
        {"title": "a", "rows": ROWS, "differences": [["a", "a"]]},
        "isn't the names of two rows",
    ),
    "rows without common seeds": (
        {"title": "a", "rows": [ROWS[0], {"name": "b", "seeds": [1]}], "differences": [["a", "b"]]},
        "the rows a and b have no seeds in common",
    ),
    "an unknown measure": (
        {"title": "a", "rows": ROWS, "measure": "acuracy"},
        "unknown measure 'acuracy'; the nearest known: accuracy",
    ),
    "hours that are none": ({"title": "a", "rows": ROWS, "gpu_hours": "long"}, "gpu_hours is"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_refused_in_one_line(name, commands, tmp_path):
    content, message = BAD_TABLES[name]
    if not isinstance(content, bytes):
        text = content if isinstance(content, str) else json.dumps(content)
        content = text.encode()
    (tmp_path / "table.yaml").write_bytes(content)
    line = assert_refused(commands.run(COMMAND, "--table=table.yaml", cwd=tmp_path))
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["table.yaml"]


def test_a_missing_table_and_none_at_all_are_refused(commands, tmp_path):
    assert "No such file" in assert_refused(commands.run(COMMAND, "--table=none", cwd=tmp_path))
    assert "no --table given" in assert_refused(commands.run(COMMAND, cwd=tmp_path))
    refused = commands.run(COMMAND, "--epochs=1", cwd=tmp_path)
    assert "Unknown command line flag 'epochs'" in assert_refused(refused)


def assert_refused(completed):
    """The one line that a command says of what it doesn't take."""
    assert completed.returncode == 2, completed
    lines = completed.stderr.splitlines()
    assert len(lines) == 1, completed.stderr
    assert lines[0].startswith("accuracy.py: error: ")
    return lines[0]


TABLES = ("cifar10", "cifar100", "cinic10", "tiny_imagenet", "repdistiller")


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_that_are_there_can_be_read(name, commands, repository, tmp_path):
    path = repository / "benchmarks" / "tables" / f"{name}.yaml"
    completed = commands.run(
        COMMAND, f"--table={path}", "--runs_dir=runs", "--report_only", cwd=tmp_path
    )
    assert completed.returncode == 0, completed.stderr
    assert "none yet" in completed.stdout


@pytest.mark.slow
def test_the_tables_and_their_list_have_the_hours_that_were_guessed(repository, command, tmp_path):
    readme = (repository / "benchmarks" / "tables" / "README.md").read_text()
    for name in TABLES:
        path = repository / "benchmarks" / "tables" / f"{name}.yaml"
        guessed = command("benchmarks/gpu_hours.py", f"--table={path}", cwd=tmp_path).stdout.strip()
        assert f"\ngpu_hours: {guessed}\n" in path.read_text()
        assert re.search(rf"\| `{name}.yaml` \|.* {guessed} \|\n", readme)


def test_the_tables_of_the_comparison_in_pytorch_are_what_its_runs_give(repository):
    command = [sys.executable, "benchmarks/torch_accuracy.py"]
    run = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    page = (repository / "docs" / "results.md").read_text()
    rows = [line for line in run.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) > 20
    assert [row for row in rows if row not in page] == []
    with (repository / "docs" / "results" / "torch" / "runs.csv").open() as file:
        mine = [r for r in csv.DictReader(file) if (r["fraction"], r["row"]) == ("0.02", "stkd")]
    mean = np.mean([100 * float(r["test"]) for r in mine])
    assert f"| stkd | {mean:.2f} |" in run.stdout
