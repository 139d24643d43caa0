"""Files that appear whole or not at all, and one process at a time that writes them."""

import contextlib
import fcntl
import os
import pathlib
import re
import shutil
import socket
from collections.abc import Iterator
from typing import IO

import tensorflow as tf

from stkd_keras.errors import InputError, one_line

_BESIDE = ".unfinished-"
# By file: closing any of a process's handles on a file would give its lock up.
_held: dict[str, IO] = {}


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a place beside a file to write to, and renames what was written there once it is whole.

    Until then, and where writing fails, the file is as it was before.

    Args:
        path: the file. What is yielded has the same ending, in the same folder.

    Raises:
        InputError: where it can't be written: a full disk, a quota, a folder without permission.
    """
    path = pathlib.Path(path)
    beside = path.with_name(f"{_BESIDE}{os.getpid()}-{path.name}")
    try:
        yield beside
        _sync(beside)
        os.replace(beside, path)
        _sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file, whole or not at all.

    Raises:
        InputError: where it can't be written.
    """
    with written_whole(path) as beside:
        beside.write_bytes(content)


@contextlib.contextmanager
def filled_whole(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives an empty folder to write to, and moves all that is in it to another once it is whole.

    Files and folders of the same names are replaced, others stay. Until then, and where writing
    fails, the folder is as it was before.

    Args:
        folder: it is made if it is missing.

    Raises:
        InputError: where it can't be written, or another process is about to fill it.
    """
    folder = pathlib.Path(folder)
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    beside = folder / f"{_BESIDE}folder"
    try:
        beside.mkdir(parents=True, exist_ok=True)
        # Beside what is moved, and gone with the folder.
        with open(beside / "lock", "a") as file:
            claim(file, folder)
            try:
                yield _emptied(beside / "new")
                _move_all(beside / "new", folder, _emptied(beside / "old"))
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        for each in missing:
            with contextlib.suppress(OSError):
                each.rmdir()


def remove_unfinished(folder: pathlib.Path) -> None:
    """Removes what processes that were killed have left beside the files of a folder."""
    for path in folder.glob(f"{_BESIDE}*"):
        path.unlink(missing_ok=True)


def is_unfinished(path: pathlib.Path) -> bool:
    """Whether a file is what a process that was killed has left beside another."""
    return path.name.startswith(_BESIDE)


def unwritable(path: str | os.PathLike, error: BaseException) -> InputError:
    """Returns the error for a file that can't be written.

    Args:
        path: the file.
        error: what the operating system, or who wrote, said.
    """
    reason = getattr(error, "strerror", None) or one_line(error)
    return InputError(
        f"can't write {path}: {reason}; what was there before is as it was, and the same command "
        "goes on once there is room and permission"
    )


@contextlib.contextmanager
def unwritable_named(folder: pathlib.Path) -> Iterator[None]:
    """Gives what callbacks of Keras meet, where they can't write, the words of `unwritable`.

    Args:
        folder: where they write.

    Raises:
        InputError: in place of an OSError, or of TensorFlow's error for a file of events.
    """
    try:
        yield
    except BrokenPipeError:  # That is the terminal's.
        raise
    except OSError as error:
        raise unwritable(error.filename or folder, error) from error
    except tf.errors.OpError as error:
        found = re.search(r"(\S*events\.out\.tfevents\S*); ([^\n]*)", error.message)
        if found is None:
            raise
        raise unwritable(found[1], OSError(0, found[2])) from error


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


def _emptied(folder: pathlib.Path) -> pathlib.Path:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    return folder


def _move_all(source: pathlib.Path, target: pathlib.Path, old: pathlib.Path) -> None:
    """Moves what is in a folder to another, and folders that are in its way to a third."""
    for path in source.rglob("*"):
        _sync(path)
    for path in source.iterdir():
        if path.is_dir() and (target / path.name).exists():
            os.replace(target / path.name, old / path.name)
        os.replace(path, target / path.name)
    _sync(target)


def _sync(path: pathlib.Path) -> None:
    """Has the operating system write what it holds back, so that a loss of power loses nothing."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
