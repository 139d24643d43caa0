"""Runs commands as forks of one process, so that TensorFlow is imported only once.

The process imports what the commands import, but runs no TensorFlow operation: threads would not
survive a fork.
"""

import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from typing import NamedTuple

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# Seconds until a command that hangs is killed.
LIMIT = 600.0
# Prefixes of variables that would override what a test sets.
_NOT_INHERITED = ("TF_CONFIG", "SLURM_", "TFDS_", "KERAS_", "TF_CPP_", "PYTHONWARNINGS")


class Completed(NamedTuple):
    """The result of a command.

    Attributes:
        returncode: the exit status, the negative number of a signal, or None after the time limit.
        stdout: standard output.
        stderr: standard error.
    """

    returncode: int | None
    stdout: str
    stderr: str


class ForkedCommands:
    """A process that forks a child for each command.

    Args:
        folder: holds the commands' output and their home directory.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        (folder / "home").mkdir()
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment({}),
            text=True,
        )

    def run(
        self,
        script: str,
        *flags: object,
        cwd: pathlib.Path,
        env: Mapping[str, str] | None = None,
        limit: float = LIMIT,
    ) -> Completed:
        """Runs a command in a folder, with additional environment variables."""
        request = {
            "argv": [str(REPOSITORY / script), *map(str, flags)],
            "cwd": str(cwd),
            "environment": self._environment(env or {}),
            "output": [str(self._folder / name) for name in ("stdout", "stderr")],
            "limit": limit,
        }
        print(json.dumps(request), file=self._server.stdin, flush=True)
        status = json.loads(self._server.stdout.readline())
        return Completed(status, *self._output())

    def run_alone(
        self,
        script: str,
        *flags: object,
        cwd: pathlib.Path,
        env: Mapping[str, str] | None = None,
        limit: float = LIMIT,
    ) -> Completed:
        """Runs a command in a new process, as users do."""
        with (self._folder / "stdout").open("wb") as out, (self._folder / "stderr").open("wb") as e:
            process = subprocess.Popen(
                [sys.executable, str(REPOSITORY / script), *map(str, flags)],
                cwd=cwd,
                env=self._environment(env or {}),
                stdout=out,
                stderr=e,
                start_new_session=True,
            )
            try:
                status = process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                status = None
        return Completed(status, *self._output())

    def close(self) -> None:
        """Ends the process."""
        self._server.communicate()

    def _output(self) -> tuple[str, str]:
        stdout, stderr = (
            (self._folder / name).read_bytes().decode(errors="backslashreplace")
            for name in ("stdout", "stderr")
        )
        return stdout, stderr

    def _environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_INHERITED)}
        # This proxy doesn't exist, so that no test can use the network.
        nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
        return {**inherited, **nowhere, "HOME": str(self._folder / "home"), **variables}


def force_xla() -> None:
    """Makes Keras compile with XLA on the CPU wherever it does on a GPU."""
    from keras.src.trainers import trainer

    trainer.Trainer._resolve_auto_jit_compile = lambda self: trainer.model_supports_jit(self)


def _serve() -> None:
    sys.path.insert(1, str(REPOSITORY))
    _import_what_commands_import()
    if "STKD_AS_ON_GPU" in os.environ:
        force_xla()
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become_command(request)
        print(json.dumps(_wait(pid, time.monotonic() + request["limit"])), flush=True)


def _import_what_commands_import() -> None:
    # isort: off
    import quiet_tensorflow  # noqa: F401

    # isort: on
    import keras  # noqa: F401
    import sklearn.datasets
    import sklearn.model_selection  # noqa: F401

    import models  # noqa: F401
    import stkd_keras  # noqa: F401
    from models import run_models  # noqa: F401
    from stkd_keras import experiment  # noqa: F401
    from stkd_keras.cli import app  # noqa: F401
    from stkd_keras.training import timing  # noqa: F401


def _become_command(request: dict) -> None:
    """Runs a script in a fork as Python would in a new process."""
    os.setsid()
    for descriptor, path in enumerate(request["output"], start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["argv"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit, which would run the parent's exit handlers.
    os._exit(status)


def _wait(pid: int, deadline: float) -> int | None:
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.005)


if __name__ == "__main__":
    _serve()
