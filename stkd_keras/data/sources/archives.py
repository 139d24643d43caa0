"""Finds data set archives and unpacks tar archives."""

import bz2
import contextlib
import gzip
import hashlib
import lzma
import os
import pathlib
import tarfile
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from stkd_keras.data.sources.threads import with_progress
from stkd_keras.errors import InputError
from stkd_keras.files import untrusted

UNPACKED = ".unpacked-"
"""Marks the names of unpacked folders, complete or not."""

_COMPRESSIONS: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
_LONGEST_HEADER = 1_000_000  # Bytes, including long names and sparse maps.
_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")


def find_source(path: str | os.PathLike, name: str) -> pathlib.Path | None:
    """Finds a data set's unpacked folder (one that contains "train") or archive."""
    path = pathlib.Path(path)
    if path.is_file() or (path / "train").is_dir():
        return path
    if not path.is_dir():
        return None
    # Short names first: "NAME.zip" before "NAME (1).zip".
    entries = sorted(path.iterdir(), key=lambda entry: (len(entry.name), entry.name))
    named = [
        entry for entry in entries if _alphanumeric(entry.name).startswith(_alphanumeric(name))
    ]
    # Skips folders of `unpack_tar`, which checks itself whether they are up to date.
    folders = (find_source(e, name) for e in named if e.is_dir() and UNPACKED not in e.name)
    archives = (e for e in named if e.is_file() and e.name.lower().endswith(_SUFFIXES))
    return next(filter(None, (*folders, *archives)), None)


def unpack_tar(path: str) -> str:
    """Unpacks a tar archive, compressed or not, to a folder next to it and returns the folder.

    The folder's name contains a hash of the archive's size and modification time, and it gets that
    name only once it is complete, so it can be reused until the archive changes.
    """
    status = os.stat(path)
    version = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:8]
    folder = f"{path}{UNPACKED}{version}"
    if os.path.isdir(folder):
        return folder
    parent, name = os.path.split(path)
    try:
        with tempfile.TemporaryDirectory(prefix=f"{name}{UNPACKED}", dir=parent or ".") as partial:
            content = os.path.join(partial, "content")
            os.mkdir(content)
            _extract(path, content, f"unpacking {path} to {folder}")
            try:
                os.rename(content, folder)
            except OSError:
                if not os.path.isdir(folder):  # Unless another process was faster.
                    raise
    except OSError as error:
        if error.errno is None:  # gzip and bz2 raise it for broken archives.
            raise
        raise InputError(
            f"can't unpack {path!r} to {folder!r} ({error.strerror}), expected space and "
            "write permission: unpack it yourself and pass the folder"
        ) from error
    return folder


def _alphanumeric(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _extract(path: str, folder: str, what: str) -> None:
    with _open(path) as file:
        reader = _LimitedReader(file)
        with tarfile.open(fileobj=reader, mode="r:") as archive:  # type: ignore[call-overload]
            members = with_progress(_checked_members(path, archive, reader), None, what, "file")
            archive.extractall(folder, members, filter="data")
        _check_end(file)


def _open(path: str) -> contextlib.AbstractContextManager[IO[bytes]]:
    with open(path, "rb") as file:
        start = file.read(6)
    opener = next((o for magic, o in _COMPRESSIONS.items() if start.startswith(magic)), open)
    return opener(path, "rb")


class _LimitedReader:
    """Limits how much is read per entry, because TarFile trusts any size in a header."""

    def __init__(self, file: IO[bytes]):
        self.tell, self.seek = file.tell, file.seek
        self._file = file
        self.limit = _LONGEST_HEADER

    def read(self, size: int) -> bytes:
        self.limit -= size
        if size < 0 or self.limit < 0:
            raise tarfile.ReadError("an entry's header is implausibly long")
        return self._file.read(size)


def _checked_members(
    path: str, archive: tarfile.TarFile, reader: _LimitedReader
) -> Iterator[tarfile.TarInfo]:
    """Yields the entries; raises an InputError at the first unsafe one."""
    names, total = set(), 0
    for entry in archive:
        if not entry.isfile() and not entry.isdir():
            raise untrusted.refused_member(path, entry.name, "is a link or a device")
        name = untrusted.member_name(path, entry.name)
        if entry.isfile() and name in names:
            raise untrusted.refused_member(path, name, "appears twice")
        names.add(name)
        total += entry.size
        untrusted.check_member_size(path, name, entry.size, total)
        reader.limit = entry.size + _LONGEST_HEADER
        yield entry


def _check_end(file: IO[bytes]) -> None:
    """Raises if an archive doesn't end with blocks of zeros, as complete ones do.

    TarFile takes a broken or truncated header for the end. Reading to the end of the file also
    makes gzip check its checksum.
    """
    size = 0
    while block := file.read(1 << 20):
        if block.strip(b"\0"):
            raise tarfile.ReadError("a header is broken")
        size += len(block)
        if size > untrusted.LARGEST_MEMBER:
            raise tarfile.ReadError("it has too many zeros after its last file")
    if not size:
        raise tarfile.ReadError("it is truncated")
