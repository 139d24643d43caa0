"""Atomic writes: a file appears complete or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import keras

from stkd_keras.files.write_errors import unwritable

_UNFINISHED = ".unfinished-"


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path in the same folder, and renames it to `path` at the end."""
    path = pathlib.Path(path)
    temporary = path.with_name(f"{_UNFINISHED}{os.getpid()}-{path.name}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file with `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_model(path: pathlib.Path, model: keras.Model) -> None:
    """Writes a `.keras` file with `atomic_path`."""
    with atomic_path(path) as temporary:
        try:
            model.save(temporary)
        except (RuntimeError, ValueError) as error:  # HDF5 raises these if the disk is full.
            raise unwritable(path, error) from error


def remove_unfinished(folder: pathlib.Path) -> None:
    """Removes the temporary files that killed processes left in a folder."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        path.unlink(missing_ok=True)


def is_unfinished(path: pathlib.Path) -> bool:
    return path.name.startswith(_UNFINISHED)


def _sync(path: pathlib.Path) -> None:
    """Flushes a file or folder to the disk, so that it survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
