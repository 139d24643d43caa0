"""Weights from PyTorch's checkpoint files, for the models of the zoo."""

import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import safetensors.numpy

from stkd_keras.errors import InputError

SAFETENSORS_ENDING = ".safetensors"
PICKLE_ENDINGS = (".pth", ".pt", ".th")
ENDINGS = (SAFETENSORS_ENDING, *PICKLE_ENDINGS)

# What implementations call differently: their name -> ours.
_SYNONYMS = {"linear": "fc", "shortcut": "downsample"}

# PyTorch's parameter -> (Keras's attribute, the axes that np.transpose turns the one into the
# other by). Kernels are OIHW there and HWIO here, matrices (out, in) there and (in, out) here.
_PARAMETERS: dict[type, dict[str, tuple[str, tuple[int, ...]]]] = {
    keras.layers.Conv2D: {"weight": ("kernel", (2, 3, 1, 0)), "bias": ("bias", (0,))},
    keras.layers.Dense: {"weight": ("kernel", (1, 0)), "bias": ("bias", (0,))},
    keras.layers.BatchNormalization: {
        "weight": ("gamma", (0,)),
        "bias": ("beta", (0,)),
        "running_mean": ("moving_mean", (0,)),
        "running_var": ("moving_variance", (0,)),
    },
}


def load_pytorch(model: keras.Model, path: str | pathlib.Path) -> keras.Model:
    """Fills a model of the zoo with the weights of a PyTorch checkpoint.

    Tensors find their layers by name: "layer1.0.conv1.weight" is the kernel of the layer
    "layer1_0_conv1". The head may be called `fc` or `linear`, a shortcut `downsample` or
    `shortcut`. Every tensor has to be used (but `num_batches_tracked`) and every weight to be
    filled; otherwise the model stays as it was.

    Args:
        model: a model that `models.build` made.
        path: a `.safetensors` file, or a `.pth`, `.pt` or `.th` file (needs PyTorch; only tensors
            and plain containers are unpickled). The state dict may be the file's whole content or
            its entry "state_dict" or "model", and a "module." of DataParallel before its names
            is seen through.

    Returns:
        The same model.

    Raises:
        InputError: if the file is missing, can't be read or isn't a state dict, if PyTorch is
            needed and missing, or if tensors and weights don't match; names what doesn't.
    """
    return assign(model, read_state_dict(path), path)


def read_state_dict(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a checkpoint's tensors, by PyTorch's names, without "module." before them.

    Raises:
        InputError: as `load_pytorch`.
    """
    path = pathlib.Path(path)
    if path.suffix not in ENDINGS:
        raise InputError(f"{path} isn't a PyTorch checkpoint; expected one of {', '.join(ENDINGS)}")
    if not path.is_file():
        raise InputError(f"no file {path}; expected a PyTorch checkpoint, check the path")
    read = _read_safetensors if path.suffix == SAFETENSORS_ENDING else _read_pickle
    state = read(path)
    return {_without_module(name): tensor for name, tensor in state.items()}


def assign(
    model: keras.Model, state: Mapping[str, np.ndarray], path: str | pathlib.Path
) -> keras.Model:
    """Fills the model with a state dict's tensors, all of them or none.

    Args:
        model: a model that `models.build` made.
        state: PyTorch's names to tensors, in PyTorch's layouts.
        path: the file, for messages.

    Raises:
        InputError: if tensors and weights don't match; names what doesn't.
    """
    tensors: dict[str, tuple[str, np.ndarray]] = {}
    unexpected = []
    for name, tensor in state.items():
        key = _key(name)
        if key in tensors:
            unexpected.append(f"{name} (a second {tensors[key][0]})")
        elif not name.endswith("num_batches_tracked"):
            tensors[key] = (name, tensor)
    targets = _targets(model)
    unexpected += [name for key, (name, _) in tensors.items() if key not in targets]
    missing = [key for key in targets if key not in tensors]
    misshapen = [
        f"{key} (file {tensors[key][1].shape}, model {_pytorch_shape(variable, axes)})"
        for key, (variable, axes) in targets.items()
        if key in tensors and tensors[key][1].shape != _pytorch_shape(variable, axes)
    ]
    complaints = [
        f"{len(names)} {kind}: {_first_few(names)}"
        for kind, names in (
            ("missing from the file", missing),
            ("unexpected in the file", unexpected),
            ("of another shape", misshapen),
        )
        if names
    ]
    if complaints:
        raise InputError(
            f"{path} doesn't fit the model {model.name}: {'; '.join(complaints)}; build the model "
            "with the file's depth, shortcut, channels and number of classes"
        )
    for key, (variable, axes) in targets.items():
        variable.assign(np.transpose(tensors[key][1], axes))
    return model


def has_projection_shortcuts(state: Mapping[str, np.ndarray]) -> bool:
    """Whether a state dict holds weights of shortcuts, by either of their names."""
    return any({"downsample", "shortcut"} & set(name.split(".")) for name in state)


def one_line(error: Exception, length: int = 200) -> str:
    """Returns the start of an error's message, on one line."""
    # Keras puts its cause behind these words, after a page of configuration.
    cause = str(error).rpartition("Exception encountered: ")[2]
    text = " ".join(cause.split()) or type(error).__name__
    return text if len(text) <= length else text[: length - 3] + "..."


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load_file(path)
    except Exception as error:  # Which kind depends on the byte at which a file is broken.
        raise InputError(
            f"can't read {path} ({one_line(error)}); expected a safetensors file: get it again"
        ) from error


def _read_pickle(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the state dict of a `.pth`, `.pt` or `.th` file, unpickling nothing but tensors."""
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"reading {path} needs PyTorch, which isn't installed; pip install torch, "
            "or convert the file to .safetensors"
        ) from error
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # Which kind depends on the byte at which a file is broken.
        # PyTorch's own message explains how to run the code in a file that isn't trusted.
        raise InputError(
            f"can't read {path} ({type(error).__name__}); expected a PyTorch file with nothing but "
            "tensors and plain containers: get it again, or save model.state_dict() alone"
        ) from error
    if isinstance(state, dict):
        for wrapper in ("state_dict", "model"):
            if isinstance(state.get(wrapper), dict):
                state = state[wrapper]
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and torch.is_tensor(tensor) for name, tensor in state.items()
    ):
        raise InputError(
            f"{path} holds no state dict; expected names with tensors, at the top or under "
            '"state_dict" or "model": save model.state_dict()'
        )
    # NumPy has no bfloat16.
    return {name: tensor.detach().float().numpy() for name, tensor in state.items()}


def _without_module(name: str) -> str:
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def _key(name: str) -> str:
    """Turns "layer2.0.shortcut.1.running_var" into "layer2_0_downsample_1.running_var"."""
    *modules, parameter = name.split(".")
    return "_".join(_SYNONYMS.get(module, module) for module in modules) + "." + parameter


def _targets(model: keras.Model) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Returns the model's variables and the axes to transpose by, under `_key`'s names."""
    targets = {}
    for layer in model.layers:
        for parameter, (attribute, axes) in _PARAMETERS.get(type(layer), {}).items():
            variable = getattr(layer, attribute)
            if variable is not None:
                targets[f"{layer.name}.{parameter}"] = (variable, axes)
    if len(targets) != len(model.weights):
        raise InputError(
            f"the model {model.name} has weights that PyTorch's names aren't known for; expected "
            f"only {', '.join(kind.__name__ for kind in _PARAMETERS)} layers: use a model of "
            "models.build"
        )
    return targets


def _pytorch_shape(variable, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(variable.shape[axes.index(axis)] for axis in range(len(axes)))


def _first_few(names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
