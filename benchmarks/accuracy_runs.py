"""The runs of a table: their files, their shared recordings, and how long they take."""

import ctypes
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from accuracy_table import ASIDE, COMMIT_WITH_REMOVED_FLAGS, Run, Table, cost_key, recording_key

from stkd_keras.errors import InputError
from stkd_keras.evaluation.cost import machine
from stkd_keras.files.json_files import read_json, write_json
from stkd_keras.training.timing import training_seconds

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


class Folder:
    """The folder of a table's runs."""

    def __init__(self, table: Table, path: pathlib.Path):
        self.path = path
        self._table = table
        # From the whole table, so that the files don't depend on which runs are complete.
        hashes = {run.name: _hash(recording_key(run.flags)) for run in table.runs}
        users = list(hashes.values())
        self._hashes = {name: h for name, h in hashes.items() if h and users.count(h) > 1}

    def directory(self, run: Run) -> pathlib.Path:
        """Returns a run's directory."""
        return self.path / run.name

    def log(self, run: Run) -> pathlib.Path:
        """Returns a run's log file."""
        return self.path / f"{run.name}.log"

    def is_begun(self, run: Run) -> bool:
        """Whether a run was started."""
        return (self.directory(run) / "config.json").is_file()

    def is_complete(self, run: Run) -> bool:
        """Whether a run finished."""
        return (self.directory(run) / "metrics.json").is_file()

    def recording(self, run: Run) -> pathlib.Path | None:
        """Returns the recording of the teacher that a run shares with others, or None."""
        name = self._hashes.get(run.name)
        return None if name is None else self.path / "recordings" / f"{name}.safetensors"

    def check(self) -> None:
        """Refuses complete runs that were trained with flags other than the table's.

        Raises:
            InputError: with the run, the flag, and both values.
        """
        for run in self._table.runs:
            if self.is_complete(run):
                _check_flags(run, self.directory(run))

    def check_trainable(self) -> None:
        """Refuses runs that aren't complete and need flags that train.py no longer has.

        Raises:
            InputError: with the run and the flag.
        """
        for run in self._table.runs:
            if run.removed_flags and not self.is_complete(run):
                raise InputError(
                    f"{run.name} needs --{run.removed_flags[0]}, which train.py no longer has; "
                    f"train it with commit {COMMIT_WITH_REMOVED_FLAGS}, or remove the row"
                )

    def flags(self, run: Run) -> dict[str, str]:
        """Returns the flags of train.py for a run."""
        given = {**run.given, "run_dir": str(self.directory(run).resolve())}
        recording = self.recording(run)
        return given if recording is None else {**given, "replay": str(recording.resolve())}

    def remove_recordings(self) -> None:
        """Removes recordings that no run needs any more."""
        needed = {self.recording(run) for run in self._table.runs if not self.is_complete(run)}
        for path in {self.recording(run) for run in self._table.runs} - needed:
            if path is not None:
                path.unlink(missing_ok=True)

    def add_seconds(self, run: Run, seconds: float) -> None:
        """Adds to the recorded duration of a run, which may have been interrupted before."""
        path = self.path / "timings.json"
        timings = read_json(path) if path.is_file() else {}
        before = timings.get(run.name, {}).get("seconds", 0.0)
        timings[run.name] = {"seconds": round(before + seconds, 1), "machine": machine()}
        write_json(path, timings)


class Estimates:
    """Estimates durations from a dry run of each kind of run, corrected by finished runs.

    Args:
        folder: the folder of the runs, which also keeps the results of the dry runs.
        jobs: the number of runs that train at the same time.
    """

    def __init__(self, folder: Folder, jobs: int):
        self._folder, self._jobs = folder, jobs
        self._path = folder.path / "estimates.json"
        self._timings = read_json(self._path) if self._path.is_file() else {}
        self._took: dict[str, list[float]] = {}
        self._actual = self._expected = 0.0

    def measure(self, runs: Iterable[Run]) -> None:
        """Makes a dry run of each kind that has none yet.

        Raises:
            InputError: if train.py refuses the dry run, as it would refuse the run.
        """
        kinds: dict[str, Run] = {}
        for run in runs:
            kinds.setdefault(self._kind(run), run)
        for kind in [kind for kind in kinds if kind not in self._timings]:
            timing = self._dry_run(kinds[kind])
            # The teacher has to be trained before the run can be timed.
            if not timing.get("teacher_untrained"):
                self._timings[kind] = {"run": kinds[kind].name, **timing}
                write_json(self._path, self._timings)

    def seconds(self, runs: Iterable[Run]) -> tuple[float, list[Run]]:
        """Returns the sum of the runs' durations, and the runs whose duration is unknown.

        The first run that needs a missing recording also makes it.
        """
        total, unknown = 0.0, []
        recordings = set()
        for run in runs:
            kind, recording = self._kind(run), self._folder.recording(run)
            if kind in self._timings:
                timing = self._timings[kind]
                total += training_seconds(timing)
                if recording is not None and (recording in recordings or recording.exists()):
                    total -= timing["steps"] * timing["teacher_seconds"]
                recordings.add(recording)
            elif kind in self._took:
                # The first run also trained the teacher.
                total += min(self._took[kind])
            else:
                unknown.append(run)
        return total * (self._actual / self._expected if self._expected else 1.0), unknown

    def add(self, run: Run, expected: float, actual: float) -> None:
        """Corrects the estimates by the duration of a run that wasn't interrupted."""
        self._took.setdefault(self._kind(run), []).append(actual)
        if expected:
            self._expected += expected
            self._actual += actual

    def _dry_run(self, run: Run) -> dict[str, Any]:
        print(f"{run.name}: timing a few steps", flush=True)
        given = {**self._folder.flags(run), "dry_run": "true"}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = start_train(given, self._jobs, **streams)
        printed = process.communicate()[0].decode(errors="replace")
        if process.returncode != 0:
            raise InputError(f"{run.name} can't be trained: {last_error(printed)}")
        # A GPU driver may print more lines after the JSON.
        return json.loads([line for line in printed.splitlines() if line.startswith("{")][-1])

    def _kind(self, run: Run) -> str:
        return str(_hash({**cost_key(run.flags), "machine": machine(), "jobs": self._jobs}))


def start_train(given: dict[str, str], jobs: int, **streams) -> subprocess.Popen:
    """Starts train.py with its share of the cores.

    Args:
        given: the flags of train.py.
        jobs: the number of runs that share the cores.
        **streams: arguments of `subprocess.Popen`.
    """
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    return subprocess.Popen(
        [sys.executable, "train.py", *(f"--{name}={value}" for name, value in given.items())],
        # Paths in a table are relative to the repository.
        cwd=REPOSITORY,
        env={**os.environ, **dict.fromkeys(names, threads)},
        stdin=subprocess.DEVNULL,
        # Ctrl-C must reach this process only, which ends its children.
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        **streams,
    )


def last_error(printed: str) -> str:
    """Returns the error message in a command's output."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [line for line in lines if "error: " in line]
    return (errors or lines or ["nothing was printed"])[-1]


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Has the kernel kill a child when this process is killed.

    Otherwise the child would keep its run directory locked. It loses only the steps since its last
    backup.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _check_flags(run: Run, directory: pathlib.Path) -> None:
    recorded = read_json(directory / "config.json").get("flags", {})
    for name, value in run.flags.items():
        # Before a flag was added, train.py behaved as with the flag's default.
        before = recorded.get(name, None if name in run.given else value)
        if (name, before, value) == ("optimizer", "sgd", None):
            continue  # It was the flag's default before there were recipes.
        # As text: --image_size used to be a number.
        if name not in ASIDE and str(before) != str(value):
            raise InputError(
                f"{directory} is complete, but its --{name} was {before} and the table's is "
                f"{value}; name another --runs_dir, give the row another name, or remove it"
            )


def _hash(key: dict[str, Any] | None) -> str | None:
    if key is None:
        return None
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
