"""Checks of untrusted files; docs/security.md describes the threats."""

import contextlib
import functools
import importlib
import json
import os
import pathlib
import stat
import zipfile
from collections.abc import Callable

import keras

from stkd_keras.errors import InputError, explain_errors, one_line

# Unpacked bytes of a data set's archive, and of one file in it.
LARGEST_ARCHIVE, LARGEST_MEMBER = 10 * 10**9, 100 * 10**6
# Bytes of a JSON or text file, including a model's config.json.
LARGEST_TEXT = 20 * 10**6


def check_keras_file(path: str | os.PathLike) -> None:
    """Checks that the configuration in a `.keras` file names only parts of models.

    Keras's safe mode checks the rest: links, data in other files, and sizes that aren't there.
    """
    path = os.fspath(path)
    name = f"{path}/config.json"
    advice = "expected a file written by model.save: get a new copy"
    with explain_errors(f"can't read {path}", advice), zipfile.ZipFile(path) as archive:
        _check_text_size(name, archive.getinfo("config.json").file_size)
        check_json(name, archive.read("config.json"), functools.partial(_check_part, path))


def check_tfds_features(folder: pathlib.Path) -> None:
    """Checks that a prepared data set names only TFDS's modules, because TFDS imports any."""
    # In FOLDER/VERSION or FOLDER/CONFIG/VERSION. Follows links, as TFDS does.
    for depth in range(4):
        for file in folder.glob("*/" * depth + "features.json"):
            check_json(str(file), read_text(file), functools.partial(_check_feature, file))


def check_pytorch_zip(path: str, archive: zipfile.ZipFile) -> None:
    """Checks that a PyTorch file isn't larger unpacked, because PyTorch never compresses."""
    compressed = [entry.filename for entry in archive.infolist() if entry.compress_type]
    size, limit = sum(entry.file_size for entry in archive.infolist()), os.path.getsize(path)
    if compressed or size > limit:
        what = f"{one_line(compressed[0])!r} compressed" if compressed else "entries in each other"
        raise InputError(
            f"{path} has {what} and would unpack to {size:,} bytes; expected at most its own "
            f"{limit:,}, as PyTorch writes it: save the model again"
        )


def zip_members(path: str, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Returns the files of a zip archive by name; raises if it has unsafe entries."""
    members: dict[str, zipfile.ZipInfo] = {}
    total = 0
    for entry in archive.infolist():
        # Zero if the archive was made on a system without Unix file types.
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise refused_member(path, entry.filename, "is a link or a device")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refused_member(path, entry.filename, "is neither stored nor deflated")
        name = member_name(path, entry.filename)
        if entry.is_dir():
            continue
        if name in members:
            raise refused_member(path, name, "appears twice")
        total += entry.file_size
        check_member_size(path, name, entry.file_size, total)
        members[name] = entry
    return members


def check_member_size(path: str, name: str, size: int, total: int) -> None:
    """Checks the unpacked size of a file in a data set's archive, and the total so far."""
    if size > LARGEST_MEMBER:
        why = f"unpacks to {size / 1e6:,.0f} MB (at most {LARGEST_MEMBER / 1e6:,.0f} are read)"
        raise refused_member(path, name, why)
    if total > LARGEST_ARCHIVE:
        raise InputError(
            f"{path!r} unpacks to {total / 1e9:,.1f} GB or more, expected at most "
            f"{LARGEST_ARCHIVE / 1e9:,.0f}: get it from a source you trust, or unpack it yourself"
        )


def member_name(path: str, name: str) -> str:
    """Normalizes an entry's name; raises if it points outside the archive."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        raise refused_member(path, name, "points outside the archive")
    return "/".join(part for part in parts if part not in ("", "."))


def refused_member(path: str, name: str, why: str) -> InputError:
    """Returns the error for an unsafe entry of an archive."""
    return InputError(
        f"{path!r} holds {one_line(name)!r}, which {why}, expected files and folders inside the "
        "archive only: get it from a source you trust, or pack it again without it"
    )


def read_text(path: str | os.PathLike) -> str:
    """Reads a UTF-8 text file of at most `LARGEST_TEXT` bytes."""
    _check_text_size(os.fspath(path), os.path.getsize(path))
    return pathlib.Path(path).read_text(encoding="utf-8-sig")


def check_json(path: str, content: str | bytes, check: Callable[[dict], None]) -> None:
    """Calls `check` with every JSON object in a text; raises an InputError if it is broken."""
    advice = "expected the whole file as it was written: get a new copy"
    with explain_errors(f"{path} can't be read as JSON", advice):
        json.loads(content, object_hook=check)


# Layers that hold or load code, and Python functions.
_CODE = ("Lambda", "TFSMLayer", "TorchModuleWrapper", "__lambda__")
# Serialized values.
_VALUES = ("__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__")
# Keras's public modules with parts of models. Keras's safe mode allows every public name that
# isn't on its denylist, including functions that read and write files.
_CLASSES_FROM = (
    "keras", "keras.constraints", "keras.dtype_policies", "keras.initializers", "keras.layers",
    "keras.losses", "keras.metrics", "keras.models", "keras.optimizers",
    "keras.optimizers.schedules", "keras.quantizers", "keras.random", "keras.regularizers",
)  # fmt: skip
_IMPORTED_BY_KERAS = ("keras", "keras_cv", "keras_hub", "keras_nlp")
_FUNCTIONS_FROM = ("keras.activations", "keras.losses", "keras.metrics", "keras.ops")


def _check_part(path: str, part: dict) -> None:
    """Checks that an object in a model's configuration only names a part of models.

    Names outside of Keras are left to Keras, which allows registered ones and imports nothing.
    """
    if "class_name" not in part or "config" not in part:
        return
    name, module = part["class_name"], part.get("module")
    if name in _CODE:
        kind = "Lambda layer or lambda function" if name == "__lambda__" else f"{name} layer"
        raise InputError(
            f"{path} has a {kind}, which runs code from the file, and safe mode refuses it; "
            "expected layers that are known by name: replace it with a registered class of your "
            "own and save the model again"
        )
    if not _is_harmless(part):
        named = part["config"] if name == "function" else name
        raise InputError(
            f"{path} names {one_line(named)!r} of {one_line(module)!r}, which isn't a part of "
            "models; expected Keras layers, as model.save writes them: get it from a source you "
            "trust"
        )


def _is_harmless(part: dict) -> bool:
    """Whether an object in a configuration is a part of models, or isn't from Keras."""
    name, module = part["class_name"], part.get("module")
    if name in _VALUES:
        return True
    if not isinstance(name, str) or "module" not in part:  # Keras 2 resolved names loosely.
        return False
    if not isinstance(module, str) or module.partition(".")[0] not in _IMPORTED_BY_KERAS:
        return True
    if module.startswith("keras_hub."):
        with contextlib.suppress(ImportError):
            importlib.import_module("keras_hub")  # Registers its classes.
    if name != "function" and keras.saving.get_registered_object(part.get("registered_name")):
        return True
    if name == "function":
        return module in _FUNCTIONS_FROM or module.startswith("keras.ops.")
    if module in _CLASSES_FROM:
        return isinstance(getattr(importlib.import_module(module), name, None), type)
    return module.startswith("keras.src.")  # Keras only allows saveable classes there.


def _check_feature(file: pathlib.Path, part: dict) -> None:
    for name in (part.get("type"), part.get("pythonClassName")):
        if isinstance(name, str) and not name.startswith("tensorflow_datasets."):
            raise InputError(
                f"{file} names {one_line(name)!r}, which TFDS would import; expected features of "
                "tensorflow_datasets only: get the data from a source you trust, or prepare them "
                "yourself"
            )


def _check_text_size(path: str, size: int) -> None:
    if size > LARGEST_TEXT:
        raise InputError(
            f"{path} has {size / 1e6:,.0f} MB, expected text of at most {LARGEST_TEXT / 1e6:.0f}: "
            "check whether it is the right file"
        )
