"""A long training: neither memory nor files nor processes pile up."""

import os
import pathlib
import signal
import subprocess
import sys

import networks
import pytest
from waiting import wait_for


def in_use(pid):
    """Resident bytes, open files, and child processes of a process."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    resident = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return 1024 * int(resident), len(os.listdir(f"/proc/{pid}/fd")), len(children)


@pytest.mark.slow
def test_memory_files_and_processes_stay_constant_over_forty_epochs(tmp_path, repository):
    networks.small_convolutional_classifier().save(tmp_path / "teacher.keras")
    command = [
        sys.executable, repository / "train.py", "--teacher=teacher.keras",
        "--student=teacher.keras", "--epochs=100000", "--train_images_per_class=20",
        "--batch_size=100", "--run_dir=run",
    ]  # fmt: skip
    history = tmp_path / "run" / "history.csv"

    def epochs():
        return len(history.read_text().splitlines()) - 1 if history.exists() else 0

    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output)
    samples = {}
    try:
        for epoch in (10, 12, 14, 36, 38, 40):
            wait_for(lambda epoch=epoch: epochs() >= epoch, process)
            samples[epoch] = in_use(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=600) == 128 + signal.SIGTERM
    finally:
        process.kill()
    first, last = (sorted(samples[n] for n in part)[1] for part in ((10, 12, 14), (36, 38, 40)))
    assert last[0] < 1.03 * first[0]
    assert last[1] <= first[1]
    assert {sample[2] for sample in samples.values()} == {0}
