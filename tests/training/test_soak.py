"""Long trainings: neither memory nor files nor processes pile up."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import pytest

import models


def soak(folder, repository, flags, seconds, settled, epochs, every):
    """Trains for so long, and returns what was in use: (bytes, files, processes).

    It is looked at after `settled` seconds and as many `epochs`.
    """
    command = [sys.executable, repository / "train.py", *flags, "--run_dir=run"]
    samples = []
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(
            list(map(str, command)), cwd=folder, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        try:
            start = time.monotonic()
            while time.monotonic() - start < seconds:
                time.sleep(every)
                assert process.poll() is None, (folder / "output").read_text()[-2000:]
                if time.monotonic() - start > settled and epochs_of(folder) > epochs:
                    samples.append(in_use(process.pid))
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 128 + signal.SIGTERM
        finally:
            process.kill()
    assert processes_of_session(process.pid) == []
    return samples


def epochs_of(folder):
    """The epochs that are done."""
    history = folder / "run" / "history.csv"
    return len(history.read_text().splitlines()) - 1 if history.exists() else 0


def in_use(pid):
    """Resident bytes, open files, and processes of a process's session."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    resident = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return 1024 * int(resident), len(os.listdir(f"/proc/{pid}/fd")), len(processes_of_session(pid))


def processes_of_session(leader):
    """The living processes of a session."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = entry.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            found.append(int(entry.parent.name))
    return found


def assert_nothing_piles_up(samples, growth):
    """Compares the end with the beginning, each by the median of a few samples."""
    few = max(1, len(samples) // 8)

    def median_of(part, which):
        return sorted(sample[which] for sample in part)[len(part) // 2]

    first, last = samples[:few], samples[-few:]
    print(f"{median_of(first, 0):,} bytes, then {median_of(last, 0):,}")
    assert median_of(last, 0) < (1 + growth) * median_of(first, 0)
    assert median_of(last, 1) <= median_of(first, 1)
    assert {sample[2] for sample in samples} == {1}


@pytest.mark.slow
def test_a_minute_of_epochs_leaves_nothing_open(tmp_path, repository):
    models.build("resnet8", (8, 8, 1), 10).save(tmp_path / "teacher.keras")
    flags = ["--teacher=teacher.keras", "--epochs=100000"]
    samples = soak(tmp_path, repository, flags, seconds=60, settled=25, epochs=15, every=1)
    assert len(samples) > 10
    assert_nothing_piles_up(samples, growth=0.03)


@pytest.mark.slow
def test_half_an_hour_with_an_evaluation_a_minute_grows_by_less_than_2_percent(
    tmp_path, repository, shared
):
    keras.utils.set_random_seed(0)
    models.build("resnet8", (32, 32, 3), 10).save(tmp_path / "teacher.keras")
    flags = [
        "--dataset=cifar10",
        f"--data_dir={shared / 'data' / 'tfds'}",
        "--teacher=teacher.keras",
        "--student=resnet8",
        "--epochs=100000",
    ]
    samples = soak(tmp_path, repository, flags, seconds=1800, settled=300, epochs=2, every=5)
    assert epochs_of(tmp_path) > 15
    assert_nothing_piles_up(samples, growth=0.02)
