"""One-line messages for failed writes."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator

import tensorflow as tf

from stkd_keras.errors import InputError, one_line


def check_folder(what: str, path: str | os.PathLike) -> None:
    """Checks that a folder can be created and written to; the error starts with `what`."""
    path = pathlib.Path(os.path.abspath(path))
    # `lexists` also finds broken links.
    nearest = next(each for each in (path, *path.parents) if os.path.lexists(each))
    if not nearest.is_dir():
        raise InputError(f"{what} can't be created: {nearest} isn't a folder; choose another path")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(
            f"{what} can't be written: {nearest} is read-only, or you lack write permission; "
            "choose another path"
        )


def unwritable(path: str | os.PathLike, error: BaseException) -> InputError:
    """Returns the error for a file that can't be written."""
    reason = getattr(error, "strerror", None) or one_line(error)
    return InputError(
        f"can't write {path}: {reason}; nothing else was changed; free some space or fix the "
        "permissions, and rerun the same command to resume"
    )


@contextlib.contextmanager
def unwritable_named(folder: pathlib.Path) -> Iterator[None]:
    """Turns write errors of Keras's callbacks into the error of `unwritable`."""
    try:
        yield
    except BrokenPipeError:  # Of the terminal, not of a file.
        raise
    except OSError as error:
        raise unwritable(error.filename or folder, error) from error
    except tf.errors.OpError as error:
        found = re.search(r"(\S*events\.out\.tfevents\S*); ([^\n]*)", error.message)
        if found is None:
            raise
        raise unwritable(found[1], OSError(0, found[2])) from error
