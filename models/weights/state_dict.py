"""Reads PyTorch state dicts from untrusted files."""

import argparse
import pathlib
import re
import warnings
import zipfile
from typing import Any

import numpy as np
import safetensors.numpy

from stkd_keras.errors import InputError, explain_errors, first_few, one_line
from stkd_keras.files.untrusted import check_pytorch_zip

SAFETENSORS_ENDING = ".safetensors"

# The function in pickles of NumPy scalars; it returns nothing but scalars.
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
# Training scripts save these along with the weights: their flags, and NumPy scalars.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    *((_NUMPY_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
]


def read_state_dict(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a checkpoint's tensors by their names in PyTorch, without the prefix "module."."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}; expected a PyTorch checkpoint, check the path")
    read = _read_safetensors if path.suffix == SAFETENSORS_ENDING else _read_pickle
    state: dict[str, np.ndarray] = {}
    for name, tensor in read(path).items():
        plain = re.sub(r"^(module\.)+", "", name)
        if plain in state:
            raise InputError(
                f"{path} has {one_line(plain)} twice, with and without 'module.' before it; "
                "expected each tensor once: save model.state_dict() alone"
            )
        state[plain] = tensor
    return state


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    advice = "expected a safetensors file with ordinary tensors: get a new copy"
    with explain_errors(f"can't read {path}", advice):
        return safetensors.numpy.load_file(path)


def _read_pickle(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a file of torch.save, unpickling only tensors and plain containers."""
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"reading {path} needs PyTorch, which isn't installed; pip install torch, "
            "or convert the file to .safetensors"
        ) from error
    _check_zip(path)
    try:
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # They concern old pickle protocols.
            state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # The class depends on where the file is broken.
        # PyTorch's own message explains how to run the code in an untrusted file.
        raise InputError(
            f"can't read {path} ({type(error).__name__}); expected a PyTorch file with only "
            "tensors and plain containers: get a new copy, or save model.state_dict() alone"
        ) from error
    if isinstance(state, dict):
        for wrapper in ("state_dict", "model"):
            if isinstance(state.get(wrapper), dict):
                state = state[wrapper]
    if not (isinstance(state, dict) and state) or not all(
        isinstance(name, str) and torch.is_tensor(tensor) for name, tensor in state.items()
    ):
        raise InputError(
            f"{path} has no state dict; expected named tensors, at the top or under "
            '"state_dict" or "model": save model.state_dict()'
        )
    odd = [
        name
        for name, tensor in state.items()
        if tensor.layout is not torch.strided
        or tensor.is_quantized
        or tensor.is_nested
        or tensor.is_meta
        or tensor.is_complex()
        or tensor.nbytes > tensor.untyped_storage().nbytes()  # Expanded: the file may be tiny.
    ]
    if odd:
        raise InputError(
            f"{path} has tensors that are sparse, quantized, complex or without content: "
            f"{first_few(odd)}; expected ordinary ones: save the state dict of the trained module"
        )
    # NumPy has no bfloat16.
    return {name: tensor.detach().float().numpy() for name, tensor in state.items()}


def _check_zip(path: pathlib.Path) -> None:
    """Refuses a damaged zip file; PyTorch doesn't check."""
    if not zipfile.is_zipfile(path):  # PyTorch's format before 2020.
        return
    try:
        with zipfile.ZipFile(path) as archive:
            check_pytorch_zip(str(path), archive)
            broken = archive.testzip()
    except InputError:
        raise
    except Exception:  # PyTorch reports what is wrong, if it can't read the file either.
        return
    if broken is not None:
        raise InputError(f"{path} is damaged (in {one_line(broken)}); get a new copy")
