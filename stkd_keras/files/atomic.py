"""Atomic writes: a file appears complete or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

import keras

from stkd_keras.files.locks import claim
from stkd_keras.files.write_errors import unwritable

_UNFINISHED = ".unfinished-"


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary sibling of a file, and renames it to the file at the end."""
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
        except (RuntimeError, ValueError) as error:  # HDF5 raises them on a full disk.
            raise unwritable(path, error) from error


@contextlib.contextmanager
def atomic_folder(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields an empty folder, and moves its content to another folder at the end."""
    folder = pathlib.Path(folder)
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    temporary = folder / f"{_UNFINISHED}folder"
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        with open(temporary / "lock", "a") as file:
            claim(file, folder)
            try:
                yield _empty(temporary / "new")
                _move_all(temporary / "new", folder, _empty(temporary / "old"))
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        for each in missing:
            with contextlib.suppress(OSError):
                each.rmdir()


def remove_unfinished(folder: pathlib.Path) -> None:
    """Removes the temporary files that killed processes left in a folder."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        path.unlink(missing_ok=True)


def is_unfinished(path: pathlib.Path) -> bool:
    """Whether a path is a temporary file of `atomic_path`."""
    return path.name.startswith(_UNFINISHED)


def _empty(folder: pathlib.Path) -> pathlib.Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _move_all(source: pathlib.Path, target: pathlib.Path, old: pathlib.Path) -> None:
    """Moves the entries of a folder, and the folders they replace to a third one."""
    for path in source.rglob("*"):
        _sync(path)
    for path in source.iterdir():
        if path.is_dir() and (target / path.name).exists():
            os.replace(target / path.name, old / path.name)
        os.replace(path, target / path.name)
    _sync(target)


def _sync(path: pathlib.Path) -> None:
    """Writes a file's content to the disk, so that it survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
