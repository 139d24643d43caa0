"""Writes files as folders and archives."""

import io
import pathlib
import tarfile
import zipfile


def pack(kind, path, files) -> pathlib.Path:
    """Writes files, a dict of contents by name, as a "folder", a "zip", or a "tar", "tar.gz"..."""
    if kind == "folder":
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:" + kind.removeprefix("tar").removeprefix(".")) as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return path
