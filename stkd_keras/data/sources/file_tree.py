"""The files of a folder or an archive, read where they are: nothing is unpacked or written."""

import abc
import bz2
import gzip
import lzma
import os
import tarfile
import threading
import zipfile
from collections.abc import Collection, Iterable, Iterator
from typing import IO, Any, NamedTuple

from stkd_keras.errors import InputError
from stkd_keras.files.untrusted import (
    LARGEST_MEMBER,
    check_member_size,
    member_name,
    refused_member,
    unique_members,
    zip_members,
)


class Layout(NamedTuple):
    """Which files of a data set are its images, and their labels.

    Attributes:
        class_names: one name for each label, from 0 on.
        splits: for each split, "train", "test" and where there is one "validation", the images
            as (name in the tree of files, label).
    """

    class_names: tuple[str, ...]
    splits: dict[str, list[tuple[str, int]]]


def open_tree(path: str | os.PathLike) -> "FileTree":
    """Opens a folder, a zip or a tar archive, compressed or not, told apart by content.

    Args:
        path: the folder or the archive.

    Returns:
        Its files. A tar archive is read through once, to its end, to list them.

    Raises:
        InputError: if there is nothing at `path`, it is neither folder nor archive, it is broken
            or cut short, or an entry of the archive is a link or a device, is there twice, points
            out of the archive (an absolute path, or one with ".."), or unpacks to more than
            `stkd_keras.untrusted` allows.

    Example:

    ```python
    tree = open_tree("tiny-imagenet-200.zip")
    print(tree.read("wnids.txt"))
    ```
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        raise InputError(f"{path!r} doesn't exist, {_EXPECTED}: correct the path")
    try:
        if os.path.isdir(path):
            return _FolderTree(path)
        if not os.path.isfile(path):
            # To open a named pipe would be to wait for ever.
            raise InputError(f"{path!r} is a device or a pipe, {_EXPECTED}: correct the path")
        if zipfile.is_zipfile(path):
            return _ZipTree(path)
        return _TarTree(path)
    except InputError:
        raise
    except Exception as error:
        # Broken archives make zipfile, tarfile and the decompressors raise almost anything.
        raise InputError(
            f"{path!r} is broken or no archive ({reason(error)}), {_EXPECTED}: get it again"
        ) from error


class FileTree(abc.ABC):
    """The files of a folder or an archive, by name.

    Names are relative, with "/" between their parts. Where all the files lie in one top folder,
    as archives often have it, they are relative to that folder, unless it is called like a split
    (train, val, valid, validation, test). What the system adds beside it (names with a dot in
    front, __MACOSX, Thumbs.db, desktop.ini) doesn't count, and isn't listed then.

    Attributes:
        path: the archive, or the folder that the names are relative to.
        is_random_access: whether `read` costs no more than its file. Where it doesn't (tar),
            read many files with `read_all`.
    """

    path: str
    is_random_access = True

    def __init__(self, path: str, members: Iterable[tuple[str, Any]]):
        self.path = path
        self._top, self._members = _below_top_folder(unique_members(path, members))

    def names(self) -> list[str]:
        """The names of all files, sorted."""
        return list(self._members)

    @abc.abstractmethod
    def size(self, name: str) -> int:
        """The bytes of a file, unpacked."""

    def read(self, name: str) -> bytes:
        """Reads a file. Several threads may do so at once.

        Raises:
            InputError: if there is no such file, or it is broken.
        """
        [(_, content)] = self.read_all([name])
        return content

    @abc.abstractmethod
    def read_all(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Reads files, each once, in the order that is fastest.

        Yields:
            (name, content).

        Raises:
            InputError: as `read`.
        """

    def _member(self, name: str) -> Any:
        if name not in self._members:
            raise InputError(f"{self.path!r} has no file {name!r}: get it again")
        return self._members[name]

    def _broken(self, name: str, error: Exception) -> InputError:
        return InputError(
            f"{name}: can't be read from {self.path!r} ({reason(error)}), expected a complete "
            "file: get it again"
        )


def is_visible(name: str) -> bool:
    """Whether a file is a user's own: not hidden, nor left behind by a file manager."""
    return not any(part.startswith(".") or part in _OF_THE_SYSTEM for part in name.split("/"))


def reason(error: Exception) -> str:
    """Returns what an exception says, in one line of at most 200 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":")[:200]


_EXPECTED = "expected a folder or a .zip, .tar, .tar.gz or .tgz archive"
_SPLITS = ("train", "val", "valid", "validation", "test")
_COMPRESSIONS: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
# Long names and the like; those of CINIC-10 and Tiny-ImageNet have none of them.
_LONGEST_HEADER = 1_000_000
_OF_THE_SYSTEM = ("__MACOSX", "Thumbs.db", "desktop.ini")


class _RandomAccessTree(FileTree):
    def read_all(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        for name in dict.fromkeys(names):
            member = self._member(name)
            try:
                content = self._read(member)
            except Exception as error:
                # As in `open_tree`.
                raise self._broken(name, error) from error
            yield name, content

    @abc.abstractmethod
    def _read(self, member: Any) -> bytes: ...


class _FolderTree(_RandomAccessTree):
    def __init__(self, path: str):
        super().__init__(path, _files(path))
        self.path = os.path.join(path, *self._top)

    def size(self, name: str) -> int:
        return os.path.getsize(self._member(name))

    def _read(self, member: str) -> bytes:
        with open(member, "rb") as file:
            return file.read()


class _ZipTree(_RandomAccessTree):
    def __init__(self, path: str):
        self._archive = zipfile.ZipFile(path)
        # ZipFile doesn't promise to be thread-safe.
        self._lock = threading.Lock()
        super().__init__(path, self._list(path))

    def _list(self, path: str) -> Iterator[tuple[str, zipfile.ZipInfo]]:
        total = 0
        for name, entry in zip_members(path, self._archive):
            total += entry.file_size
            check_member_size(path, name, entry.file_size, total)
            yield name, entry

    def size(self, name: str) -> int:
        return self._member(name).file_size

    def _read(self, member: zipfile.ZipInfo) -> bytes:
        with self._lock, self._archive.open(member) as file:
            # Without a size, all that was packed is unpacked, whatever the archive says it is.
            return file.read(member.file_size)


class _TarTree(FileTree):
    is_random_access = False

    def __init__(self, path: str):
        super().__init__(path, self._list(path))

    def _list(self, path: str) -> Iterator[tuple[str, tuple[str, int]]]:
        with _unpacked(path) as file:
            headers, total = _Headers(file), 0
            with tarfile.open(fileobj=headers, mode="r:") as archive:  # type: ignore[call-overload]
                for entry in archive:
                    if not entry.isfile() and not entry.isdir():
                        raise refused_member(path, entry.name, "is a link or a device")
                    name = member_name(path, entry.name)
                    total += entry.size
                    check_member_size(path, name, entry.size, total)
                    if entry.isfile():
                        yield name, (entry.name, entry.size)
                    headers.start_next()
            _check_end(file)

    def size(self, name: str) -> int:
        return self._member(name)[1]

    def read_all(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        wanted = {self._member(name)[0]: name for name in names}
        name = next(iter(wanted.values()), "")
        try:
            with tarfile.open(self.path) as archive:
                for entry in archive:
                    if not wanted:
                        return
                    if entry.name in wanted:
                        name = wanted.pop(entry.name)
                        yield name, self._extract(archive, entry)
            if wanted:
                name = next(iter(wanted.values()))
                raise tarfile.ReadError("it is no longer there")
        except Exception as error:
            raise self._broken(name, error) from error

    def _extract(self, archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
        file = archive.extractfile(entry)
        assert file is not None  # As only for folders and devices.
        return file.read()


class _Headers:
    """The content of a tar archive, of which only entries' headers are read.

    TarFile takes any header's word for how much more of it there is to read into memory.
    """

    def __init__(self, file: IO[bytes]):
        self.tell, self.seek = file.tell, file.seek
        self._file = file
        self.start_next()

    def start_next(self) -> None:
        """Allows the next header."""
        self._left = _LONGEST_HEADER

    def read(self, size: int) -> bytes:
        """Reads from the file, or raises where no header is that long."""
        self._left -= size
        if size < 0 or self._left < 0:
            raise tarfile.ReadError("an entry's header is implausibly long")
        return self._file.read(size)


def _unpacked(path: str) -> IO[bytes]:
    """Opens the content of a tar archive, compressed or not."""
    with open(path, "rb") as file:
        beginning = file.read(6)
    for mark, opener in _COMPRESSIONS.items():
        if beginning.startswith(mark):
            return opener(path)
    return open(path, "rb")


def _check_end(file: IO[bytes]) -> None:
    """Raises if an archive ends without the blocks of zeros that close it.

    TarFile takes a header that is broken or cut short for the end. Reading on to the end of the
    file also has gzip compare its checksum.
    """
    size = 0
    while block := file.read(1 << 20):
        if block.strip(b"\0"):
            raise tarfile.ReadError("a header is broken")
        size += len(block)
        if size > LARGEST_MEMBER:
            raise tarfile.ReadError("it goes on long after its last file")
    if not size:
        raise tarfile.ReadError("it is cut short")


def _files(folder: str, prefix: str = "", above: frozenset = frozenset()) -> Iterator[tuple]:
    """Yields (name, path) of the files of a folder, through links too."""
    real = os.path.realpath(folder)
    if real in above:
        raise InputError(
            f"{folder!r} is a link to a folder that it lies in, expected links to files and "
            "folders elsewhere: remove it"
        )
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _files(entry.path, f"{prefix}{entry.name}/", above | {real})
            elif entry.is_file():
                yield prefix + entry.name, entry.path
            else:
                raise InputError(
                    f"{entry.path!r} is a broken link or a device, expected files and folders "
                    "only: remove it"
                )


def _below_top_folder(members: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Returns the top folder, if there is one, in parts, and the members by their names in it."""
    path: list[str] = []
    while (top := _top_folder(members)) is not None:
        path.append(top)
        start = f"{top}/"
        members = {
            name.removeprefix(start): member
            for name, member in members.items()
            if name.startswith(start)
        }
    return path, dict(sorted(members.items()))


def _top_folder(names: Collection[str]) -> str | None:
    tops = {name.partition("/")[0] for name in names}
    tops = {top for top in tops if is_visible(top)}
    if len(tops) != 1:
        return None
    (top,) = tops
    return None if top in names or top in _SPLITS else top
