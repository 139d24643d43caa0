"""Files that appear whole or not at all, and one process at a time that writes them."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

import keras

from stkd_keras.files.locks import claim
from stkd_keras.files.write_errors import unwritable

_BESIDE = ".unfinished-"


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


def write_model(path: pathlib.Path, model: keras.Model) -> None:
    """Writes a `.keras` file, whole or not at all.

    Raises:
        InputError: where it can't be written.
    """
    with written_whole(path) as beside:
        try:
            model.save(beside)
        except (RuntimeError, ValueError) as error:  # HDF5's words for a full disk.
            raise unwritable(path, error) from error
