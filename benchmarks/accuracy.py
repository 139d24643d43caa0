"""A table of accuracies: many runs of train.py, their means and how sure they are.

    python benchmarks/accuracy.py --table=benchmarks/tables/cifar10.yaml

trains every run of the table that isn't complete, one process and one directory each, and writes
table.md, table.csv, plot.svg and plot.png. The same command goes on with what was interrupted,
however it ended. How to write a table is in benchmarks/tables/README.md.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# isort: off
import quiet_tensorflow  # noqa: F401

# isort: on
import ctypes
import dataclasses
import hashlib
import json
import os
import platform
import signal
import subprocess
import time
from typing import IO, Any

from absl import flags
from accuracy_report import write_report
from accuracy_table import ASIDE, Run, Table, answers_key, read_table, teacher_key

from stkd_keras import command
from stkd_keras.checks import check_folder
from stkd_keras.errors import InputError
from stkd_keras.run_directory import read_json, write_json
from stkd_keras.signals import Interrupted
from stkd_keras.whole_files import lock, remove_unfinished

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

TABLE = flags.DEFINE_string("table", None, "the table's file, YAML")
RUNS_DIR = flags.DEFINE_string("runs_dir", "benchmarks/runs", "where a folder for the table is")
OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "where the tables and the plot go (default: the table's folder)"
)
JOBS = flags.DEFINE_integer(
    "jobs", 1, "runs at once, which share the machine's cores", lower_bound=1
)
REPORT_ONLY = flags.DEFINE_bool(
    "report_only", False, "make the tables of the runs that are complete, and train nothing"
)
KEEP_RECORDINGS = flags.DEFINE_bool(
    "keep_recordings", False, "keep what was recorded of teachers, which can be large"
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


class Folder:
    """Where a table's runs are, and what they share.

    Args:
        table: the table.
        path: the folder.
    """

    def __init__(self, table: Table, path: pathlib.Path):
        self.path = path
        self._table = table
        # Of the whole table, so that it doesn't depend on what is complete.
        hashes = {run.name: _hash(answers_key(run.flags)) for run in table.runs}
        users = list(hashes.values())
        self._hashes = {name: h for name, h in hashes.items() if h and users.count(h) > 1}

    def directory(self, run: Run) -> pathlib.Path:
        """A run's directory."""
        return self.path / run.name

    def is_complete(self, run: Run) -> bool:
        """Whether a run has ended well."""
        return (self.directory(run) / "metrics.json").is_file()

    def recording(self, run: Run) -> pathlib.Path | None:
        """The recording of the teacher that a run shares with others."""
        name = self._hashes.get(run.name)
        return None if name is None else self.path / "recordings" / f"{name}.safetensors"

    def check(self) -> None:
        """Refuses complete runs that were trained with other flags than the table's.

        Raises:
            InputError: names the run, the flag, and both values.
        """
        for run in self._table.runs:
            if self.is_complete(run):
                _check_flags(run, self.directory(run))

    def remove_recordings(self) -> None:
        """Removes the recordings that no run needs any more."""
        needed = {self.recording(run) for run in self._table.runs if not self.is_complete(run)}
        for path in {self.recording(run) for run in self._table.runs} - needed:
            if path is not None:
                path.unlink(missing_ok=True)

    def add_seconds(self, run: Run, seconds: float) -> None:
        """Writes down how long a run took, on top of what it took before it was interrupted."""
        path = self.path / "timings.json"
        timings = read_json(path) if path.is_file() else {}
        before = timings.get(run.name, {}).get("seconds", 0.0)
        timings[run.name] = {"seconds": round(before + seconds, 1), "machine": machine()}
        write_json(path, timings)


@dataclasses.dataclass
class Process:
    """A run that is being trained."""

    run: Run
    popen: subprocess.Popen
    log: IO
    started: float


def train_all(table: Table, folder: Folder) -> list[str]:
    """Trains what isn't complete; a line for each run that failed."""
    folder.path.mkdir(parents=True, exist_ok=True)
    lock(folder.path / "lock", folder.path)
    remove_unfinished(folder.path)
    waiting = [run for run in table.runs if not folder.is_complete(run)]
    print(f"{len(table.runs)} runs, of which {len(table.runs) - len(waiting)} are complete")
    running: list[Process] = []
    failures: list[str] = []
    try:
        while waiting or running:
            for run in list(waiting):
                if len(running) < JOBS.value and not _must_wait(run, running, table, folder):
                    waiting.remove(run)
                    running.append(_start(run, folder))
            for process in [p for p in running if p.popen.poll() is not None]:
                running.remove(process)
                failures += _finish(process, table, folder)
            time.sleep(0.1)
    except Interrupted as error:
        for process in running:
            process.popen.terminate()
        for process in running:
            process.popen.wait()
            folder.add_seconds(process.run, time.monotonic() - process.started)
        done = sum(map(folder.is_complete, table.runs))
        raise Interrupted(error.number, f"{done} of {len(table.runs)} runs") from error
    if not KEEP_RECORDINGS.value:
        folder.remove_recordings()
    return failures


def machine() -> str:
    """The processor and how many cores of it there are."""
    name = platform.processor() or platform.machine()
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # Another system than Linux, or another processor than a PC's.
    return f"{name}, {os.cpu_count()} cores"


def _must_wait(run: Run, running: list[Process], table: Table, folder: Folder) -> bool:
    """Whether another run is just making what this one needs: two can't write one file."""
    recording = folder.recording(run)
    is_missing = recording is not None and not recording.exists()
    if is_missing and any(folder.recording(process.run) == recording for process in running):
        return True
    teacher = teacher_key(run.flags)
    others = [process.run for process in running] if teacher is not None else []
    return any(teacher_key(other.flags) == teacher for other in others) and not any(
        folder.is_complete(other) for other in table.runs if teacher_key(other.flags) == teacher
    )


def _start(run: Run, folder: Folder) -> Process:
    given = {**run.given, "run_dir": folder.directory(run).resolve()}
    recording = folder.recording(run)
    if recording is not None:
        given["replay"] = recording.resolve()
    log = folder.path / f"{run.name}.log"
    file = log.open("a")
    print(f"{run.name}: {log}", flush=True)
    return Process(run, _train(given, stdout=file, stderr=file), file, time.monotonic())


def _train(given: dict[str, Any], **streams) -> subprocess.Popen:
    """Starts train.py with its share of the cores."""
    threads = str(max(1, (os.cpu_count() or 1) // JOBS.value))
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    return subprocess.Popen(
        [sys.executable, "train.py", *(f"--{name}={value}" for name, value in given.items())],
        cwd=REPOSITORY,
        env={**os.environ, **dict.fromkeys(names, threads)},
        stdin=subprocess.DEVNULL,
        # Ctrl-C is for this process alone, which passes it on once.
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        **streams,
    )


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Has the kernel kill a child when this process is killed.

    It would go on in its directory, which the next process then couldn't have. A run that is
    killed loses nothing but the steps since its last backup.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _finish(process: Process, table: Table, folder: Folder) -> list[str]:
    """Says how a run ended; its failure, if it failed."""
    run, status = process.run, process.popen.returncode
    process.log.close()
    folder.add_seconds(run, time.monotonic() - process.started)
    if not KEEP_RECORDINGS.value:
        folder.remove_recordings()
    if status != 0 or not folder.is_complete(run):
        failure = f"{run.name}: exit status {status}: {_last_error(process.log.name)}"
        print(failure, flush=True)
        return [failure]
    done = sum(map(folder.is_complete, table.runs))
    value = read_json(folder.directory(run) / "metrics.json")[table.split][table.measure]
    shown = f"{100 * value:.1f} %" if table.measure.endswith("accuracy") else f"{value:.4f}"
    print(
        f"{done} of {len(table.runs)} runs: {run.name} {table.measure} {shown}",
        flush=True,
    )
    return []


def _last_error(log: str) -> str:
    lines = pathlib.Path(log).read_text(errors="replace").splitlines()
    lines = [line for line in lines if line.strip()]
    errors = [line for line in lines if "error: " in line]
    return (errors or lines or ["nothing was printed"])[-1].strip()


def _check_flags(run: Run, directory: pathlib.Path) -> None:
    recorded = read_json(directory / "config.json").get("flags", {})
    for name, value in run.flags.items():
        # A flag that train.py didn't have yet had no other value than its default.
        before = recorded.get(name, None if name in run.given else value)
        if name not in ASIDE and before != value:
            raise InputError(
                f"{directory} is complete, but its --{name} was {before} and the table's is "
                f"{value}; name another --runs_dir, give the row another name, or remove it"
            )


def _hash(key: dict[str, Any] | None) -> str | None:
    if key is None:
        return None
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def _command() -> str:
    """What makes the table, whatever was done before."""
    names = ["table"] + (["runs_dir"] if flags.FLAGS["runs_dir"].present else [])
    given = " ".join(f"--{name}={flags.FLAGS[name].value}" for name in names)
    return f"python benchmarks/accuracy.py {given}"


if __name__ == "__main__":
    command.run(main, __doc__)
