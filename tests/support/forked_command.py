"""Runs train.py and evaluate.py many times for the price of one import of TensorFlow.

A process of its own imports what the commands import, and runs no operation of TensorFlow's: from
then on it forks a child for each command, which starts as if it had imported all that itself.
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
LIMIT = 15.0
"""Seconds that a command may take."""
# What would have a command look elsewhere than a test says.
_NOT_INHERITED = ("TF_CONFIG", "SLURM_", "TFDS_", "KERAS_", "TF_CPP_", "PYTHONWARNINGS")


class Completed(NamedTuple):
    """How a command ended.

    Attributes:
        returncode: the exit status; negative the signal that ended it, None where it took too long.
        stdout: what it wrote there.
        stderr: likewise.
        seconds: how long it took.
    """

    returncode: int | None
    stdout: str
    stderr: str
    seconds: float


class ForkedCommands:
    """The process that commands are forked from.

    Args:
        folder: where the commands' output is kept, and where their home is.
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
        *flags: str,
        cwd: pathlib.Path,
        env: Mapping[str, str] | None = None,
        limit: float = LIMIT,
    ) -> Completed:
        """Runs a command in a folder, with variables of the environment on top of the usual."""
        request = {
            "argv": [str(REPOSITORY / script), *flags],
            "cwd": str(cwd),
            "environment": self._environment(env or {}),
            "output": [str(self._folder / name) for name in ("stdout", "stderr")],
            "limit": limit,
        }
        print(json.dumps(request), file=self._server.stdin, flush=True)
        answer = json.loads(self._server.stdout.readline())
        return Completed(answer["status"], *self._output(), answer["seconds"])

    def run_alone(
        self,
        script: str,
        *flags: str,
        cwd: pathlib.Path,
        env: Mapping[str, str] | None = None,
        limit: float = LIMIT,
    ) -> Completed:
        """The same in a process that imports everything itself, as a user's."""
        start = time.monotonic()
        with (self._folder / "stdout").open("wb") as out, (self._folder / "stderr").open("wb") as e:
            process = subprocess.Popen(
                [sys.executable, str(REPOSITORY / script), *flags],
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
        return Completed(status, *self._output(), time.monotonic() - start)

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
        # A proxy that isn't there, in place of a network that may be.
        nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
        return {**inherited, **nowhere, "HOME": str(self._folder / "home"), **variables}


def _serve() -> None:
    sys.path.insert(1, str(REPOSITORY))
    _import_what_commands_import()
    for line in sys.stdin:
        request = json.loads(line)
        start = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _become_command(request)
        status = _wait(pid, start + request["limit"])
        print(json.dumps({"status": status, "seconds": time.monotonic() - start}), flush=True)


def _import_what_commands_import() -> None:
    # isort: off
    import quiet_tensorflow  # noqa: F401

    # isort: on
    import keras  # noqa: F401
    import sklearn.datasets
    import sklearn.model_selection  # noqa: F401

    import models  # noqa: F401
    import stkd_keras  # noqa: F401
    from models import loading, teachers  # noqa: F401
    from stkd_keras.training import run_directory  # noqa: F401


def _become_command(request: dict) -> None:
    """Does in a fork what Python does from the start of a script to its end."""
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
    # The rest of the parent's process isn't the command's to end.
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
