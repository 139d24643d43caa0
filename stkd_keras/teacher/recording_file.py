"""The file format of a recording: safetensors with one tensor, written step by step."""

import json
import pathlib
import struct

import numpy as np
import safetensors

from stkd_keras.errors import InputError, differences, explain_errors, without_removed
from stkd_keras.mixing import REMOVED

# Our dtype names and those of safetensors.
SAFETENSORS_DTYPES = {"float16": "F16", "float32": "F32"}
_TENSOR, _SETTINGS = "logits", "stkd_keras"
_MAX_HEADER_BYTES = 1_000_000


def unfinished_path(path: pathlib.Path) -> pathlib.Path:
    """Returns the file that holds a recording until it is complete."""
    return path.with_name(f"{path.name}.unfinished")


def check_equal(path: pathlib.Path, recorded: dict, given: dict) -> None:
    """Raises an InputError that names each setting that differs from the recorded ones."""
    if differs := differences(recorded, given):
        raise InputError(
            f"{path} was recorded with other settings: {differs}; record to another file"
        )


def make_header(settings: dict, shape: tuple[int, int, int], dtype: str) -> bytes:
    """Returns the header of a safetensors file with one tensor."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    content = {
        "__metadata__": {_SETTINGS: json.dumps(settings)},
        _TENSOR: {
            "dtype": SAFETENSORS_DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [0, size],
        },
    }
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def parse_header(path: pathlib.Path) -> tuple[dict, tuple[int, ...], str]:
    """Reads the settings, shape and dtype of a recording, which may be unfinished."""
    advice = "expected a file of stkd_keras.record_teacher"
    with explain_errors(f"{path} isn't a recording", advice), path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        content = json.loads(file.read(min(length, _MAX_HEADER_BYTES)))
        tensor = content[_TENSOR]
        dtypes = {theirs: ours for ours, theirs in SAFETENSORS_DTYPES.items()}
        settings = dict(json.loads(content["__metadata__"][_SETTINGS]))
        shape, dtype = tuple(tensor["shape"]), dtypes[tensor["dtype"]]
    mixing = settings.get("mixing")
    if isinstance(mixing, dict) and isinstance(mixing.get("config"), dict):
        settings["mixing"] = {**mixing, "config": without_removed(mixing["config"], REMOVED)}
    return settings, shape, dtype


def read_header(path: pathlib.Path) -> tuple[dict, tuple[int, int, int], str, int]:
    """Reads the settings, shape, dtype and data offset of a complete recording."""
    if not path.is_file():
        is_begun = unfinished_path(path).exists()
        remedy = "it is unfinished: record again to resume" if is_begun else "check the path"
        raise InputError(f"no file {path}; expected a recording, {remedy}")
    settings, shape, dtype = parse_header(path)
    with explain_errors(f"{path} is broken", "remove it and record again"):
        safetensors.safe_open(path, "numpy")  # Checks the file's size.
    if len(shape) != 3 or 0 in shape:
        raise InputError(f"{path} has logits of shape {shape}, expected (steps, batch, classes)")
    steps, batch_size, classes = shape
    data_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return settings, (steps, batch_size, classes), dtype, path.stat().st_size - data_bytes
