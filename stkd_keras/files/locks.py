"""File locks, which the operating system releases when the process ends."""

import fcntl
import os
import pathlib
import socket
from typing import IO

from stkd_keras.errors import InputError, one_line
from stkd_keras.files.write_errors import unwritable

# Kept open by real path: closing any handle of a file would release the process's lock on it.
_held: dict[str, IO] = {}


def lock(path: pathlib.Path, what: pathlib.Path) -> None:
    """Locks a file until this process ends; the error names `what`, the path it protects."""
    key = os.path.realpath(path)
    if key in _held:
        return
    file = _claimed(path, what, "a+")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    _held[key] = file


def check_lock(path: pathlib.Path, what: pathlib.Path) -> None:
    """Checks that no other process holds a lock, without keeping it."""
    if path.is_file() and os.path.realpath(path) not in _held:
        _claimed(path, what, "r+").close()


def claim(file: IO, what: pathlib.Path, holder: str = "another process") -> None:
    """Locks an open file until it is closed, or raises that `holder` is writing `what`."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise InputError(
            f"{what} is being written by {holder}; wait until it ends, or choose another path"
        ) from error
    except OSError as error:
        raise unwritable(what, error) from error


def _claimed(path: pathlib.Path, what: pathlib.Path, mode: str) -> IO:
    """Opens and locks a file whose content names its last holder."""
    try:
        file = open(path, mode, errors="replace")  # noqa: SIM115
    except OSError as error:
        raise unwritable(path, error) from error
    file.seek(0)
    try:
        claim(file, what, one_line(file.read(200) or "another process"))
    except InputError:
        file.close()
        raise
    return file
