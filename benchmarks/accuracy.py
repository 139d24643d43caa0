"""Trains a table of runs and reports means, confidence intervals and differences.

    python benchmarks/accuracy.py --table=benchmarks/tables/cifar10.yaml

trains every run of the table that isn't complete, each in its own process and directory, and
writes table.md, table.csv, plot.svg and plot.png. After any interruption, the same command
continues. benchmarks/tables/README.md explains the tables.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# isort: off
import quiet_tensorflow  # noqa: F401

# isort: on
import dataclasses
import subprocess
import time
from typing import IO

from absl import flags
from accuracy_report import score_of, write_report
from accuracy_runs import Estimates, Folder, last_error, start_train
from accuracy_table import Run, Table, hide_flags_of_train, read_table, teacher_key

from stkd_keras.cli import app
from stkd_keras.errors import InputError
from stkd_keras.files.atomic import remove_unfinished
from stkd_keras.files.locks import lock
from stkd_keras.files.write_errors import check_folder
from stkd_keras.training.signals import Interrupted
from stkd_keras.training.timing import in_words

hide_flags_of_train()

TABLE = flags.DEFINE_string("table", None, "the table's file, YAML")
RUNS_DIR = flags.DEFINE_string(
    "runs_dir", "benchmarks/runs", "parent of the folder with the table's runs"
)
OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "folder for the tables and the plot (default: the table's folder)"
)
JOBS = flags.DEFINE_integer(
    "jobs", 1, "runs at the same time, which share the cores", lower_bound=1
)
REPORT_ONLY = flags.DEFINE_bool("report_only", False, "only report the runs that are complete")
KEEP_RECORDINGS = flags.DEFINE_bool(
    "keep_recordings", False, "keep the recordings of teachers, which can be large"
)


def main() -> None:
    """Runs the command."""
    if TABLE.value is None:
        raise InputError("no --table given; expected a file such as benchmarks/tables/cifar10.yaml")
    table = read_table(pathlib.Path(TABLE.value))
    folder = Folder(table, pathlib.Path(RUNS_DIR.value) / table.path.stem)
    folder.check()
    output = pathlib.Path(OUTPUT_DIR.value or folder.path)
    check_folder(f"--output_dir={output}", output)
    failures = [] if REPORT_ONLY.value else train_all(table, folder)
    write_report(table, folder.path, output, _command())
    if failures:
        print(f"{len(failures)} of {len(table.runs)} runs failed:", *failures, sep="\n  ")
        sys.exit(1)


def train_all(table: Table, folder: Folder) -> list[str]:
    """Trains the runs that aren't complete, and returns a line for each failure."""
    folder.check_trainable()
    folder.path.mkdir(parents=True, exist_ok=True)
    lock(folder.path / "lock", folder.path)
    remove_unfinished(folder.path)
    failures = Trainer(table, folder, JOBS.value).train()
    if not KEEP_RECORDINGS.value:
        # Also removes the recordings of runs that were already complete.
        folder.remove_recordings()
    return failures


@dataclasses.dataclass
class Process:
    """A run that is being trained.

    Attributes:
        run: the run.
        popen: its process.
        log: its log file.
        started: its start time, from `time.monotonic()`.
        expected: its estimated duration in seconds, 0 if unknown, None if it resumed.
    """

    run: Run
    popen: subprocess.Popen
    log: IO
    started: float
    expected: float | None

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started


class Trainer:
    """Trains the runs of a table that aren't complete, `jobs` at a time."""

    def __init__(self, table: Table, folder: Folder, jobs: int):
        self._table, self._folder, self._jobs = table, folder, jobs
        self._waiting = [run for run in table.runs if not folder.is_complete(run)]
        self._running: list[Process] = []
        self._estimates = Estimates(folder, jobs)

    def train(self) -> list[str]:
        """Trains the runs, and returns a line for each failure.

        Raises:
            InputError: if train.py refuses a kind of run.
            Interrupted: after SIGTERM or SIGINT, once all runs have written a backup and ended.
        """
        print(f"{self._done()} are complete", flush=True)
        failures: list[str] = []
        try:
            self._estimates.measure(self._waiting)
            if self._waiting:
                print(self._left(), flush=True)
            while self._waiting or self._running:
                for run in list(self._waiting):
                    if len(self._running) < self._jobs and not self._must_wait(run):
                        self._start(run)
                for process in [p for p in self._running if p.popen.poll() is not None]:
                    failures += self._finish(process)
                time.sleep(0.1)
        except Interrupted as error:
            self._stop()
            raise Interrupted(error.number, self._done()) from error
        except (InputError, OSError):
            self._stop()
            raise
        return failures

    def _must_wait(self, run: Run) -> bool:
        """Whether another run is writing the recording or the teacher that this one needs."""
        others = [process.run for process in self._running]
        recording = self._folder.recording(run)
        is_missing = recording is not None and not recording.exists()
        if is_missing and recording in map(self._folder.recording, others):
            return True
        teacher = teacher_key(run.flags)
        if teacher is None or teacher not in [teacher_key(other.flags) for other in others]:
            return False
        users = [other for other in self._table.runs if teacher_key(other.flags) == teacher]
        return not any(map(self._folder.is_complete, users))

    def _start(self, run: Run) -> None:
        # A resumed run doesn't show how long a whole run takes.
        expected = None if self._folder.is_begun(run) else self._estimates.seconds([run])[0]
        print(f"{run.name}: {self._folder.log(run)}", flush=True)
        log = self._folder.log(run).open("a")
        popen = start_train(self._folder.flags(run), self._jobs, stdout=log, stderr=log)
        self._running.append(Process(run, popen, log, time.monotonic(), expected))
        self._waiting.remove(run)

    def _finish(self, process: Process) -> list[str]:
        """Reports the end of a run, and returns its failure, if any."""
        self._close(process)
        run, status = process.run, process.popen.returncode
        if status != 0 or not self._folder.is_complete(run):
            error = last_error(self._folder.log(run).read_text(errors="replace"))
            failure = f"{run.name}: exit status {status}: {error}"
            print(failure, flush=True)
            return [failure]
        if process.expected is not None:
            self._estimates.add(run, process.expected, process.elapsed)
        if not KEEP_RECORDINGS.value:
            self._folder.remove_recordings()
        value = score_of(self._table, self._folder.directory(run) / "metrics.json")
        shown = f"{100 * value:.1f} %" if self._table.is_in_percent else f"{value:.4f}"
        line = f"{self._done()}: {run.name} {self._table.measure} {shown}"
        print(f"{line}; {self._left()}" if self._running or self._waiting else line, flush=True)
        return []

    def _stop(self) -> None:
        """Ends all running processes, which write a backup first."""
        for process in self._running:
            process.popen.terminate()
        for process in list(self._running):
            process.popen.wait()
            self._close(process)

    def _close(self, process: Process) -> None:
        self._running.remove(process)
        process.log.close()
        self._folder.add_seconds(process.run, process.elapsed)

    def _done(self) -> str:
        running = [process.run for process in self._running]
        ended = [run for run in self._table.runs if run not in running]
        done = sum(map(self._folder.is_complete, ended))
        return f"{done} of {len(self._table.runs)} runs"

    def _left(self) -> str:
        """Returns the estimated remaining time."""
        running = [process.run for process in self._running]
        seconds, unknown = self._estimates.seconds([*running, *self._waiting])
        seconds -= sum(process.elapsed for process in self._running)
        left = f"about {in_words(max(0.0, seconds) / self._jobs)} left"
        if unknown:
            left += f" without {len(unknown)} that train their teacher first"
        return left


def _command() -> str:
    """Returns the command that makes the table."""
    names = ["table"] + (["runs_dir"] if flags.FLAGS["runs_dir"].present else [])
    given = " ".join(f"--{name}={flags.FLAGS[name].value}" for name in names)
    return f"python benchmarks/accuracy.py {given}"


if __name__ == "__main__":
    app.run(main, __doc__)
