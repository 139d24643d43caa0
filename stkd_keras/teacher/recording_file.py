"""The file format of a recording."""

import json
import pathlib
import struct

import numpy as np
import safetensors

from stkd_keras.errors import InputError, differences, without_removed
from stkd_keras.mixing import REMOVED

# The name in the file, which is one of safetensors'.
_DTYPES = {"float16": "F16", "float32": "F32"}
_TENSOR, _SETTINGS = "logits", "stkd_keras"
# A header that says it's longer isn't one of ours.
_LONGEST_HEADER = 1_000_000


def _unfinished(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.unfinished")


def _check_equal(path: pathlib.Path, recorded: dict, given: dict) -> None:
    if differs := differences(recorded, given):
        raise InputError(
            f"{path} was recorded for something else: {differs}; record to another file"
        )


def _header(settings: dict, shape: tuple[int, int, int], dtype: str) -> bytes:
    """The beginning of a safetensors file with one tensor."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    content = {
        "__metadata__": {_SETTINGS: json.dumps(settings)},
        _TENSOR: {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [0, size]},
    }
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _parse_header(path: pathlib.Path) -> tuple[dict, tuple[int, ...], str]:
    """Reads the header of a recording, finished or not: settings, shape and dtype."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            content = json.loads(file.read(min(length, _LONGEST_HEADER)))
        tensor = content[_TENSOR]
        names = {name: dtype for dtype, name in _DTYPES.items()}
        settings = dict(json.loads(content["__metadata__"][_SETTINGS]))
        shape, dtype = tuple(tensor["shape"]), names[tensor["dtype"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise InputError(f"{path} isn't a recording of stkd_keras.record_teacher") from error
    mixing = settings.get("mixing")
    if isinstance(mixing, dict) and isinstance(mixing.get("config"), dict):
        settings["mixing"] = {**mixing, "config": without_removed(mixing["config"], REMOVED)}
    return settings, shape, dtype


def _read_header(path: pathlib.Path) -> tuple[dict, tuple[int, int, int], str, int]:
    """Reads a whole recording's settings, shape, dtype, and where the numbers begin."""
    if not path.is_file():
        is_begun = _unfinished(path).exists()
        state = "it isn't finished: record again to go on" if is_begun else "check it"
        raise InputError(f"no file {path}; expected one of stkd_keras.record_teacher, {state}")
    settings, shape, dtype = _parse_header(path)
    try:
        with safetensors.safe_open(path, "numpy") as file:  # Sees whether the file is whole.
            file.metadata()
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path} is broken ({error}); remove it and record again") from error
    if len(shape) != 3 or 0 in shape:
        raise InputError(f"{path} holds logits of shape {shape}, expected (steps, batch, classes)")
    steps, batch_size, classes = shape
    numbers = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return settings, (steps, batch_size, classes), dtype, path.stat().st_size - numbers
