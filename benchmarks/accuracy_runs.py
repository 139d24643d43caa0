"""The runs of a table: where they are, what they share, and how long they take."""

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

from accuracy_table import ASIDE, Run, Table, answers_key, cost_key

from stkd_keras.errors import InputError
from stkd_keras.evaluation.cost import machine
from stkd_keras.files.json_files import read_json, write_json
from stkd_keras.training.timing import training_seconds

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


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

    def log(self, run: Run) -> pathlib.Path:
        """What a run printed."""
        return self.path / f"{run.name}.log"

    def is_begun(self, run: Run) -> bool:
        """Whether there is something of a run."""
        return (self.directory(run) / "config.json").is_file()

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

    def flags(self, run: Run) -> dict[str, str]:
        """What train.py gets for a run."""
        given = {**run.given, "run_dir": str(self.directory(run).resolve())}
        recording = self.recording(run)
        return given if recording is None else {**given, "replay": str(recording.resolve())}

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


class Estimates:
    """How long runs take: from a dry run of each kind of them, corrected by those that have ended.

    Args:
        folder: of the runs; the dry runs' answers are kept in it.
        jobs: runs at once.
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
            InputError: where train.py refuses one, as it would refuse the run.
        """
        kinds: dict[str, Run] = {}
        for run in runs:
            kinds.setdefault(self._kind(run), run)
        for kind in [kind for kind in kinds if kind not in self._timings]:
            timing = self._dry_run(kinds[kind])
            # Once its teacher is trained, the time can be had.
            if not timing.get("teacher_untrained"):
                self._timings[kind] = {"run": kinds[kind].name, **timing}
                write_json(self._path, self._timings)

    def seconds(self, runs: Iterable[Run]) -> tuple[float, list[Run]]:
        """How long runs take, each for itself, and those of which it isn't known.

        Of those that share a recording that isn't there yet, the first makes it.
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
                # The first trained the teacher, too.
                total += min(self._took[kind])
            else:
                unknown.append(run)
        return total * (self._actual / self._expected if self._expected else 1.0), unknown

    def add(self, run: Run, expected: float, actual: float) -> None:
        """Takes into account how long a run really took, if all of it was made at once."""
        self._took.setdefault(self._kind(run), []).append(actual)
        if expected:
            self._expected += expected
            self._actual += actual

    def _dry_run(self, run: Run) -> dict[str, Any]:
        print(f"{run.name}: a few steps, for the time", flush=True)
        given = {**self._folder.flags(run), "dry_run": "true"}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = start_train(given, self._jobs, **streams)
        printed = process.communicate()[0].decode(errors="replace")
        if process.returncode != 0:
            raise InputError(f"{run.name} can't be trained: {last_error(printed)}")
        # Behind it a device's driver may have a last word.
        return json.loads([line for line in printed.splitlines() if line.startswith("{")][-1])

    def _kind(self, run: Run) -> str:
        return str(_hash({**cost_key(run.flags), "machine": machine(), "jobs": self._jobs}))


def start_train(given: dict[str, str], jobs: int, **streams) -> subprocess.Popen:
    """Starts train.py with its share of the cores.

    Args:
        given: its flags.
        jobs: how many share them.
        **streams: as of `subprocess.Popen`.
    """
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    return subprocess.Popen(
        [sys.executable, "train.py", *(f"--{name}={value}" for name, value in given.items())],
        # Where a table's relative paths start.
        cwd=REPOSITORY,
        env={**os.environ, **dict.fromkeys(names, threads)},
        stdin=subprocess.DEVNULL,
        # Ctrl-C is for this process alone, which passes it on once.
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        **streams,
    )


def last_error(printed: str) -> str:
    """What a command says of its failure."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [line for line in lines if "error: " in line]
    return (errors or lines or ["nothing was printed"])[-1]


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Has the kernel kill a child when this process is killed.

    It would go on in its directory, which the next process then couldn't have. A run that is
    killed loses nothing but the steps since its last backup.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


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
