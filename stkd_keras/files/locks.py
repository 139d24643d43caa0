"""Locks on files and folders."""

import fcntl
import os
import pathlib
import socket
from typing import IO

from stkd_keras.errors import InputError, one_line
from stkd_keras.files.write_errors import unwritable

# By file: closing any of a process's handles on a file would give its lock up.
_held: dict[str, IO] = {}


def lock(path: pathlib.Path, what: pathlib.Path) -> None:
    """Takes a lock that this process holds until it ends, however it ends.

    Args:
        path: a file for it, which is made if it is missing and stays.
        what: what it is for.

    Raises:
        InputError: where another process holds it, or the file can't be written.
    """
    key = os.path.realpath(path)
    if key in _held:
        return
    file = _claimed(path, what, "a+")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    _held[key] = file


def check_lock(path: pathlib.Path, what: pathlib.Path) -> None:
    """Sees whether this process could take a lock, without changing its file.

    Raises:
        InputError: as `lock`.
    """
    if path.is_file() and os.path.realpath(path) not in _held:
        _claimed(path, what, "r+").close()


def claim(file: IO, what: pathlib.Path, holder: str = "another process") -> None:
    """Makes an open file this process's, until it closes it or ends.

    Args:
        file: open for writing.
        what: what this process is going to write, for the error.
        holder: who does so, if another one does.

    Raises:
        InputError: where it is another process's, or the file system has no locks.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise InputError(
            f"{what} is being written by {holder}; wait until it has ended, or choose another place"
        ) from error
    except OSError as error:
        raise unwritable(what, error) from error


def _claimed(path: pathlib.Path, what: pathlib.Path, mode: str) -> IO:
    """Opens and claims a lock's file, which says who had it last."""
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
