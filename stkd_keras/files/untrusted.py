"""Files from others: what is looked at before they are read, and how much they may hold.

docs/security.md says what that protects from.
"""

import io
import json
import math
import os
import pathlib
import stat
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import h5py
import keras

from stkd_keras.errors import InputError, one_line

LARGEST_ARCHIVE = 10 * 10**9
"""Bytes of all the files in a data set's archive, unpacked."""
LARGEST_MEMBER = 100 * 10**6
"""Bytes of one file in a data set's archive, unpacked."""
LARGEST_TEXT = 20 * 10**6
"""Bytes of a JSON or a text file, of a model's config.json too."""


def check_keras_file(path: str | os.PathLike) -> None:
    """Refuses a `.keras` file that would run code, or that isn't as Keras writes it.

    Args:
        path: the file.

    Raises:
        InputError: if it has a part that is code or isn't a part of models, if an entry leads out
            of it or is compressed, or if the numbers in it aren't all there (see `check_hdf5`).
    """
    path = os.fspath(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = stored_members(path, archive)
            if missing := {"config.json", "model.weights.h5"} - members.keys():
                raise InputError(f"{path} has no {min(missing)}; expected a file of model.save")
            _check_text_size(f"{path}/config.json", members["config.json"].file_size)
            _check_parts(path, parse_json(f"{path}/config.json", archive.read("config.json")))
            for name in members:
                if name.endswith(".h5"):
                    check_hdf5(f"{path}/{name}", archive.read(name))
    except InputError:
        raise
    except Exception as error:  # Which kind depends on what in the file is broken.
        raise InputError(
            f"can't read {path} ({one_line(error)}); expected a file of model.save: get it again"
        ) from error


def check_hdf5(path: str | os.PathLike, content: bytes | None = None) -> None:
    """Refuses an HDF5 file that leads to other files, or claims numbers that aren't in it.

    Keras neither links nor compresses.

    Args:
        path: the file, or what errors call it.
        content: its content, where it is in another file.

    Raises:
        InputError: if it has soft or external links, or a data set whose numbers are compressed,
            elsewhere, missing, or no numbers; or if it can't be read.
    """
    path = os.fspath(path)
    try:
        with h5py.File(path if content is None else io.BytesIO(content), "r") as file:
            # First the links, none of which may be followed.
            problem = file.visititems_links(_link_problem) or file.visititems(_dataset_problem)
    except Exception as error:  # Which kind depends on what in the file is broken.
        raise InputError(
            f"can't read {path} ({one_line(error)}); expected an HDF5 file of Keras's: get it again"
        ) from error
    if problem is not None:
        raise InputError(
            f"{path} has {problem}; expected weights as Keras writes them, all in the file: get "
            "them from a source you trust, or save them again"
        )


def check_tfds_features(folder: pathlib.Path) -> None:
    """Refuses prepared data sets whose features aren't TFDS's own.

    TFDS imports whatever module a features.json names.

    Args:
        folder: of all the versions and configurations of a data set; it need not exist.

    Raises:
        InputError: likewise.
    """
    # FOLDER/VERSION or FOLDER/CONFIG/VERSION, through links too, as TFDS finds them.
    for depth in range(4):
        for file in folder.glob("*/" * depth + "features.json"):
            for part in _objects(parse_json(str(file), read_text(file))):
                for name in (part.get("type"), part.get("pythonClassName")):
                    if isinstance(name, str) and not name.startswith("tensorflow_datasets."):
                        raise InputError(
                            f"{file} names {one_line(name)!r}, which TFDS would import; expected "
                            "features of tensorflow_datasets only: get the data from a source you "
                            "trust, or prepare them yourself"
                        )


def stored_members(path: str, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Returns the files of a model's zip archive, which unpacks to no more than its own size.

    Keras and PyTorch compress nothing, so nothing has to be unpacked to see what it takes.

    Raises:
        InputError: as `zip_members`, or if an entry is compressed or lies in another.
    """
    members = unique_members(path, zip_members(path, archive))
    compressed = [name for name, entry in members.items() if entry.compress_type]
    size, limit = sum(entry.file_size for entry in members.values()), os.path.getsize(path)
    if compressed or size > limit:
        what = f"{one_line(compressed[0])!r} compressed" if compressed else "entries in each other"
        raise InputError(
            f"{path} has {what} and would unpack to {size:,} bytes; expected at most its own "
            f"{limit:,}, as Keras and PyTorch write it: save the model again"
        )
    return members


def zip_members(path: str, archive: zipfile.ZipFile) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """Yields (name, entry) of the files of a zip archive, none of which leads out of it.

    Raises:
        InputError: if an entry is a link or a device, points out of the archive, or is compressed
            in a way that can't be unpacked in parts.
    """
    for entry in archive.infolist():
        # Zero where the archive was made on a system without Unix's kinds of files.
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise refused_member(path, entry.filename, "is a link or a device")
        name = member_name(path, entry.filename)
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refused_member(path, entry.filename, "is neither stored nor deflated")
        if not entry.is_dir():
            yield name, entry


def check_member_size(path: str, name: str, size: int, total: int) -> None:
    """Refuses a file in a data set's archive that is too large to be an image of one.

    Args:
        path: the archive.
        name: the file.
        size: its bytes, unpacked.
        total: the bytes of all the files so far, this one included.

    Raises:
        InputError: likewise, or if all of them are too large together.
    """
    if size > LARGEST_MEMBER:
        why = f"unpacks to {size / 1e6:,.0f} MB (at most {LARGEST_MEMBER / 1e6:,.0f} are read)"
        raise refused_member(path, name, why)
    if total > LARGEST_ARCHIVE:
        raise InputError(
            f"{path!r} unpacks to {total / 1e9:,.1f} GB or more, expected at most "
            f"{LARGEST_ARCHIVE / 1e9:,.0f}: get it from a source you trust, or unpack it yourself"
        )


def member_name(path: str, name: str) -> str:
    """Returns the name of an archive's entry without "./".

    Raises:
        InputError: if it points out of the archive.
    """
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        raise refused_member(path, name, "points out of the archive")
    return "/".join(part for part in parts if part not in ("", "."))


def unique_members(path: str, members: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the entries of an archive by name.

    Raises:
        InputError: if a name comes twice.
    """
    unique: dict[str, Any] = {}
    for name, member in members:
        if name in unique:
            raise refused_member(path, name, "is there twice")
        unique[name] = member
    return unique


def refused_member(path: str, name: str, why: str) -> InputError:
    """Returns the error for an archive's entry that isn't read."""
    return InputError(
        f"{path!r} holds {one_line(name)!r}, which {why}, expected files and folders inside the "
        "archive only: get it from a source you trust, or pack it again without"
    )


def read_text(path: str | os.PathLike) -> str:
    """Reads a text file, UTF-8 with or without a byte order mark, if it isn't too long for one.

    Raises:
        InputError: if it is.
        UnicodeDecodeError: if it is no such text.
    """
    _check_text_size(os.fspath(path), os.path.getsize(path))
    return pathlib.Path(path).read_text(encoding="utf-8-sig")


def parse_json(path: str, content: str | bytes) -> Any:
    """Reads JSON that may be broken, or nested without end.

    Args:
        path: what errors call it.
        content: the JSON.

    Raises:
        InputError: if it can't be read.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} can't be read as JSON ({one_line(error)}); expected the whole file as it was "
            "written: get it again"
        ) from error


# Layers that are code, or files of code, and an object that is.
_CODE = ("Lambda", "TFSMLayer", "TorchModuleWrapper", "__lambda__")
# What Keras writes in place of plain values.
_VALUES = ("__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__")
# Where Keras's public parts of models are. Its safe mode takes any public name that isn't on a
# list of forbidden ones, and so also functions that read and write files.
_CLASSES_FROM = {
    "keras": keras,
    "keras.constraints": keras.constraints,
    "keras.dtype_policies": keras.dtype_policies,
    "keras.initializers": keras.initializers,
    "keras.layers": keras.layers,
    "keras.losses": keras.losses,
    "keras.metrics": keras.metrics,
    "keras.models": keras.models,
    "keras.optimizers": keras.optimizers,
    "keras.optimizers.schedules": keras.optimizers.schedules,
    "keras.quantizers": keras.quantizers,
    "keras.random": keras.random,
    "keras.regularizers": keras.regularizers,
}
_IMPORTED_BY_KERAS = ("keras", "keras_cv", "keras_hub", "keras_nlp")
_FUNCTIONS_FROM = ("keras.activations", "keras.losses", "keras.metrics", "keras.ops")


def _check_parts(path: str, config: Any) -> None:
    """Refuses a model's configuration that names what isn't a part of models.

    What isn't Keras's is left to Keras: it takes what the user has registered, and imports nothing.
    """
    for part in _objects(config):
        if "class_name" not in part or "config" not in part:
            continue
        name, module = part["class_name"], part.get("module")
        if name in _CODE:
            kind = "lambda function" if name == "__lambda__" else f"{name} layer"
            raise InputError(
                f"{path} has a {kind}, which is code of whoever made the file, and safe mode "
                "refuses it; expected layers that are known by name: save the model with a "
                "registered class of your own in its place"
            )
        if not _is_harmless(part):
            named = part["config"] if name == "function" else name
            raise InputError(
                f"{path} names {one_line(named)!r} of {one_line(module)!r}, which isn't a part of "
                "models; expected Keras's layers and the like, as model.save writes them: get it "
                "from a source you trust"
            )


def _is_harmless(part: dict) -> bool:
    """Whether an object of a configuration is a part of models, or nothing of Keras's."""
    name, module = part["class_name"], part.get("module")
    if name in _VALUES:
        return True
    if not isinstance(name, str) or "module" not in part:  # As before Keras 3: looked up loosely.
        return False
    if not isinstance(module, str) or module.partition(".")[0] not in _IMPORTED_BY_KERAS:
        return True
    if name != "function" and keras.saving.get_registered_object(part.get("registered_name")):
        return True
    if name == "function":
        return module in _FUNCTIONS_FROM or module.startswith("keras.ops.")
    if module in _CLASSES_FROM:
        return isinstance(getattr(_CLASSES_FROM[module], name, None), type)
    return module.startswith("keras.src.")  # Keras itself takes nothing but layers from there.


def _objects(content: Any) -> Iterator[dict]:
    """Yields the JSON objects in a JSON value, at any depth."""
    waiting = [content]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _link_problem(name: str, link: Any) -> str | None:
    """What is wrong with a link of an HDF5 file, if anything is."""
    return None if isinstance(link, h5py.HardLink) else f"a link, {one_line(name)!r}"


def _dataset_problem(name: str, node: Any) -> str | None:
    """What is wrong with an object of an HDF5 file, if anything is."""
    if not isinstance(node, h5py.Dataset):
        return None
    size = math.prod(node.shape or ()) * node.dtype.itemsize
    if node.external or node.is_virtual:
        return f"{one_line(name)!r} in another file"
    if node.id.get_create_plist().get_nfilters():
        return f"{one_line(name)!r} compressed"
    if node.dtype.hasobject:
        return f"{one_line(name)!r} with other things than numbers"
    if node.shape is not None and size > node.id.get_storage_size():
        return f"{one_line(name)!r} with {size:,} bytes that aren't there"
    return None


def _check_text_size(path: str, size: int) -> None:
    if size > LARGEST_TEXT:
        raise InputError(
            f"{path} has {size / 1e6:,.0f} MB, expected text of at most {LARGEST_TEXT / 1e6:.0f}: "
            "check whether it is the right file"
        )
