"""Access to the files of a folder or an archive, by name."""

import abc
import os
import threading
import zipfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from stkd_keras.data.sources.archives import unpack_tar
from stkd_keras.errors import InputError, explain_errors
from stkd_keras.files.untrusted import zip_members

_EXPECTED = "expected a folder or a .zip, .tar, .tar.gz or .tgz archive"
_SPLITS = ("train", "val", "valid", "validation", "test")
_SYSTEM_FILES = ("__MACOSX", "Thumbs.db", "desktop.ini")


class Layout(NamedTuple):
    """The class names of a data set, and the (name, label) of each image file by split."""

    class_names: tuple[str, ...]
    splits: dict[str, list[tuple[str, int]]]


class FileTree(abc.ABC):
    """The files of a folder or an archive, by relative names with "/" separators.

    If all files are in a single top folder, as is common in archives, names are relative to it,
    unless it is named like a split. Hidden and system files next to it are ignored.
    """

    def __init__(self, path: str, entries: dict[str, Any]):
        self.path = path
        self.top, self._entries = _strip_top_folder(entries)

    def names(self) -> list[str]:
        """Returns the sorted names of all files."""
        return list(self._entries)

    @abc.abstractmethod
    def size(self, name: str) -> int:
        """Returns the (uncompressed) size of a file in bytes."""

    def read(self, name: str) -> bytes:
        """Reads a file; thread-safe. Raises an InputError if it is missing or broken."""
        problem = f"{name}: can't be read from {self.path!r}"
        with explain_errors(problem, "expected a complete file: get a new copy"):
            return self._read(self._entries[name])

    @abc.abstractmethod
    def _read(self, entry: Any) -> bytes: ...


def open_tree(path: str | os.PathLike) -> FileTree:
    """Opens a folder, a zip archive or a tar archive. Tar archives are unpacked first."""
    path = os.fspath(path)
    if os.path.isdir(path):
        return _FolderTree(path)
    if not os.path.exists(path):
        raise InputError(f"{path!r} doesn't exist, {_EXPECTED}: correct the path")
    if not os.path.isfile(path):  # Opening a named pipe would block.
        raise InputError(f"{path!r} is a device or a pipe, {_EXPECTED}: correct the path")
    with explain_errors(f"{path!r} is broken or not an archive", f"{_EXPECTED}: get a new copy"):
        return _ZipTree(path) if zipfile.is_zipfile(path) else _FolderTree(unpack_tar(path))


def label_folders(
    tree: FileTree, folders: Sequence[str], ending: str, expected: str
) -> list[tuple[str, int]]:
    """Returns (name, label) for the files with an ending in a split's class folders.

    Raises an InputError if a class folder has no such file, or another folder does.
    """
    labels = {folder: label for label, folder in enumerate(folders)}
    split = folders[0].partition("/")[0]
    files: dict[str, list[tuple[str, int]]] = {folder: [] for folder in folders}
    for name in tree.names():
        folder, _, file = name.rpartition("/")
        if not folder.startswith(f"{split}/") or not is_visible(file):
            continue
        if file.lower().endswith(ending):
            if folder not in labels:
                raise unexpected_layout(
                    tree, f"has images in {folder}, which isn't a class", expected
                )
            files[folder].append((name, labels[folder]))
    for folder, found in files.items():
        if not found:
            raise unexpected_layout(tree, f"has no {ending} images in {folder}", expected)
    return [file for found in files.values() for file in found]


def unexpected_layout(tree: FileTree, problem: str, expected: str) -> InputError:
    """Returns the error for files that aren't those of a data set."""
    return InputError(
        f"{tree.path!r} {problem}, expected the files of {expected}: unpack or download it again"
    )


def is_visible(name: str) -> bool:
    """Whether a file is neither hidden nor created by the operating system."""
    return not any(part.startswith(".") or part in _SYSTEM_FILES for part in name.split("/"))


class _FolderTree(FileTree):
    def __init__(self, path: str):
        super().__init__(path, dict(_walk(path)))
        self.path = os.path.join(path, *self.top)

    def size(self, name: str) -> int:
        return os.path.getsize(self._entries[name])

    def _read(self, entry: str) -> bytes:
        with open(entry, "rb") as file:
            return file.read()


class _ZipTree(FileTree):
    def __init__(self, path: str):
        self._archive = zipfile.ZipFile(path)
        self._lock = threading.Lock()  # ZipFile isn't documented as thread-safe.
        super().__init__(path, zip_members(path, self._archive))

    def size(self, name: str) -> int:
        return self._entries[name].file_size

    def _read(self, entry: zipfile.ZipInfo) -> bytes:
        with self._lock, self._archive.open(entry) as file:
            # Limits the decompressed size even if the entry understates it.
            return file.read(entry.file_size)


def _walk(
    folder: str, prefix: str = "", parents: frozenset = frozenset()
) -> Iterator[tuple[str, str]]:
    """Yields (name, path) of all files below a folder, following links."""
    real = os.path.realpath(folder)
    if real in parents:
        raise InputError(
            f"{folder!r} is a link to one of its own parents, expected links to files and folders "
            "elsewhere: remove it"
        )
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/", parents | {real})
            elif entry.is_file():
                yield prefix + entry.name, entry.path
            else:
                raise InputError(
                    f"{entry.path!r} is a broken link or a device, expected files and folders "
                    "only: remove it"
                )


def _strip_top_folder(entries: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Strips single top folders; returns their names, and the sorted entries below them."""
    path = []
    while (top := _top_folder(entries)) is not None:
        path.append(top)
        entries = {
            name.removeprefix(f"{top}/"): entry
            for name, entry in entries.items()
            if name.startswith(f"{top}/")
        }
    return path, dict(sorted(entries.items()))


def _top_folder(names: Collection[str]) -> str | None:
    """Returns the only folder at the top, unless it is named like a split."""
    tops: Iterable[str] = {name.partition("/")[0] for name in names}
    tops = [top for top in tops if is_visible(top)]
    if len(tops) != 1 or tops[0] in names or tops[0] in _SPLITS:
        return None
    return tops[0]
