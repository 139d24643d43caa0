"""Turns errors of writing into one-line messages."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator

import tensorflow as tf

from stkd_keras.errors import InputError, one_line


def check_folder(what: str, path: str | os.PathLike) -> None:
    """Refuses a folder that can't be made or written to, before there is anything to write.

    Args:
        what: what is to be there, such as "--run_dir=runs/first".
        path: the folder, which needn't be there.

    Raises:
        InputError: likewise.
    """
    there = _nearest(pathlib.Path(os.path.abspath(path)))
    if not there.is_dir():
        raise InputError(f"{what} can't be made, as {there} is no folder; name another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            f"{what} can't be written: {there} is read-only, or no permission is given to write "
            "there; name another place"
        )


def _nearest(path: pathlib.Path) -> pathlib.Path:
    """The path, or of its parents the nearest that is there; a broken link is there."""
    for each in (path, *path.parents):
        try:
            each.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        return each
    return path


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
