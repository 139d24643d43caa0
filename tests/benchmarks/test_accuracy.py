"""Tests of the command that trains a table of runs."""

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
import pytest
from waiting import wait_for

FLAGS = {
    "dataset": "digits", "epochs": 20, "train_images_per_class": 10, "validation_fraction": 0.0,
    "batch_size": 20, "backup_steps": 3, "deterministic": True, "validation_freq": 20,
}  # fmt: skip
STEPS = 100
COMMAND = "benchmarks/accuracy.py"
# Only guards against hangs, since a busy machine may be many times slower.
LIMIT_S = 1800


@pytest.fixture(scope="module")
def undisturbed(repository, tmp_path_factory):
    """A folder with a table of one row and two seeds that was trained without interruption."""
    folder = tmp_path_factory.mktemp("undisturbed")
    keras.utils.set_random_seed(0)
    networks.small_convolutional_classifier().save(folder / "teacher.keras")
    student = networks.small_convolutional_classifier()
    # Makes students of two seeds differ.
    layers = [keras.layers.Dropout(0.2), keras.layers.Dense(10)]
    keras.Sequential([*student.layers[:-1], *layers]).save(folder / "student.keras")
    files = {each: str(folder / f"{each}.keras") for each in ("teacher", "student")}
    rows = [{"name": "kd", "flags": {"method": "kd"}}]
    write_table(folder, flags={**FLAGS, **files}, rows=rows, seeds=[0, 1])
    process = start(repository, folder, "--keep_recordings")
    assert process.wait(LIMIT_S) == 0, (folder / "output").read_text()
    return folder


def write_table(folder, **content):
    """Writes a table. JSON is valid YAML."""
    (folder / "table.yaml").write_text(json.dumps({"title": "Digits", **content}))


def start(repository, folder, *flags):
    """Starts the command for a folder's table."""
    command = [sys.executable, repository / COMMAND, "--table=table.yaml", "--runs_dir=runs"]
    # Sets the number of threads, on which the last digits depend.
    command.append("--jobs=2")
    with (folder / "output").open("a") as output:
        return subprocess.Popen(
            [*map(str, command), *flags], cwd=folder, stdout=output, stderr=subprocess.STDOUT
        )


def end_while_training(repository, folder, name, number):
    """Starts the command, and ends it with a signal once a run has trained for some steps."""
    backup = folder / "runs" / "table" / name / "backup"
    steps_before = newest_step(backup)
    process = start(repository, folder)
    wait_for(lambda: newest_step(backup) > steps_before, process, LIMIT_S)
    process.send_signal(number)
    status = process.wait(LIMIT_S)
    assert newest_step(backup) < STEPS
    assert not (backup.parent / "metrics.json").exists()
    return status


def newest_step(backup):
    """Returns the step of the last backup."""
    return max([0, *(int(re.sub(r"\D", "", path.stem)) for path in backup.glob("step-*"))])


def training_processes(folder):
    """Returns the numbers of the processes of train.py with a run in a folder (Linux only)."""
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


def wait_for_none(folder):
    """Waits until the kernel has ended the children of a killed command."""
    sleeper = subprocess.Popen(["sleep", str(LIMIT_S)])
    wait_for(lambda: not training_processes(folder), sleeper, LIMIT_S)
    sleeper.kill()
    sleeper.wait()


def without_times(markdown):
    return [line for line in markdown.splitlines() if not line.startswith("Wall time")]


def test_runs_share_one_recording_and_are_timed(undisturbed):
    runs = undisturbed / "runs" / "table"
    assert len(list((runs / "recordings").iterdir())) == 1
    logs = [(runs / f"kd-d0-s{seed}.log").read_text() for seed in (0, 1)]
    assert [log.count("recording the teacher's") for log in logs] == [1, 0]
    for seed in (0, 1):
        config = json.loads((runs / f"kd-d0-s{seed}" / "config.json").read_text())
        assert config["settings"]["replay"] is True
    with (runs / "table.csv").open() as file:
        assert [(row["name"], row["runs"]) for row in csv.DictReader(file)] == [("kd", "2")]
    output = (undisturbed / "output").read_text()
    assert output.startswith("0 of 2 runs are complete\n")
    assert output.count("timing a few steps") == 1
    assert re.search(r"^about \d+ \S+ left$", output, re.MULTILINE)
    assert re.search(r"^1 of 2 runs: \S+ accuracy [\d.]+ %; about \d+ \S+ left$", output, re.M)
    assert re.search(r"^2 of 2 runs: \S+ accuracy [\d.]+ %$", output, re.MULTILINE)
    timings = json.loads((runs / "timings.json").read_text())
    assert len(timings) == 2
    assert all(timing["seconds"] > 1 for timing in timings.values())


def test_complete_runs_are_not_trained_again(undisturbed, repository, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(undisturbed, folder)
    (folder / "output").unlink()
    runs = folder / "runs" / "table"
    before = {path: path.stat().st_mtime_ns for path in runs.glob("kd-*/*")}
    assert start(repository, folder).wait(LIMIT_S) == 0
    assert (folder / "output").read_text().startswith("2 of 2 runs are complete\n\n# Digits")
    assert {path: path.stat().st_mtime_ns for path in runs.glob("kd-*/*")} == before


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--table=none", "No such file"), ("--epochs=1", "Unknown command line flag 'epochs'")],
)
def test_bad_flags_are_refused_in_one_line(flag, message, command, tmp_path):
    completed = command(COMMAND, flag, cwd=tmp_path, timeout=LIMIT_S)
    assert completed.returncode == 2
    assert len(completed.stderr.splitlines()) == 1
    assert completed.stderr.startswith("accuracy.py: error: ")
    assert message in completed.stderr


@pytest.mark.slow
def test_a_killed_and_an_interrupted_command_resume_to_the_same_table(
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
    assert "stopped by SIGTERM after 1 of 2 runs" in output
    process = start(repository, folder)
    assert process.wait(LIMIT_S) == 0, (folder / "output").read_text()
    assert without_times((runs / "table.md").read_text()) == without_times(
        (undisturbed / "runs" / "table" / "table.md").read_text()
    )
    for name in ("table.csv", "plot.svg"):
        expected = (undisturbed / "runs" / "table" / name).read_bytes()
        assert (runs / name).read_bytes() == expected
    assert {path: path.stat().st_mtime_ns for path in runs.glob("*-s1/*")} == before
    log = (runs / "kd-d0-s0.log").read_text()
    assert log.count("recording the teacher's") == 2  # The first time in the undisturbed run.
    assert log.count("resuming after") == 2
    assert not list((runs / "recordings").iterdir())


@pytest.mark.slow
def test_a_failed_run_is_reported_and_the_others_continue(undisturbed, repository, tmp_path):
    table = json.loads((undisturbed / "table.yaml").read_text())
    # The dry run, which is that of the first row, doesn't find this error.
    bad = {"name": "bad", "flags": {"method": "kd", "temperature": -1}}
    good = {"name": "good", "flags": {"method": "kd"}}
    write_table(tmp_path, flags=table["flags"], rows=[good, bad], differences=[["good", "bad"]])
    assert start(repository, tmp_path).wait(LIMIT_S) == 1
    output = (tmp_path / "output").read_text()
    assert "1 of 2 runs failed:\n  bad-d0-s0: exit status 2: train.py: error: " in output
    assert "temperature" in output
    markdown = (tmp_path / "runs" / "table" / "table.md").read_text()
    assert re.search(r"\| good \| [\d.]+ \| - \| none of one run \| 1 \|", markdown)
    assert "| bad | - | - | - | 0 of 1 |" in markdown


@pytest.mark.slow
def test_settings_that_train_refuses_are_refused_before_training(repository, tmp_path):
    write_table(tmp_path, flags=FLAGS, rows=[{"name": "a", "flags": {"temperature": -1}}])
    assert start(repository, tmp_path).wait(LIMIT_S) == 2
    line = (tmp_path / "output").read_text().splitlines()[-1]
    assert line.startswith("accuracy.py: error: a-d0-s0 can't be trained: train.py: error: ")
    assert "temperature" in line
