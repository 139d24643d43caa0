"""Weights from and for PyTorch, for the models of the zoo."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import safetensors.numpy

from models.weights.state_dict import SAFETENSORS_ENDING, read_state_dict
from stkd_keras.errors import InputError, first_few
from stkd_keras.files.atomic import write_atomically

# What implementations call differently: their name -> the one that tensors are matched by.
_SYNONYMS = {"linear": "fc", "shortcut": "downsample"}


@dataclasses.dataclass(frozen=True)
class _Parameter:
    """How a parameter of PyTorch's is kept in Keras: in which attribute, and in which layout."""

    attribute: str
    to_keras: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    to_pytorch: Callable[[np.ndarray], np.ndarray]


def _transposed(attribute: str, *axes: int) -> _Parameter:
    """A parameter that np.transpose turns into Keras's by these axes."""
    return _Parameter(
        attribute,
        lambda tensor, shape: np.transpose(tensor, axes),
        lambda tensor: np.transpose(tensor, np.argsort(axes)),
    )


def _groups_to_keras(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Turns a grouped 1x1 kernel (out, in / groups, 1, 1) into (groups, in / groups, out / groups).

    PyTorch's output channels are those of the first group, then those of the second, and so on.
    """
    groups, per_group, out_per_group = shape
    return tensor.reshape(groups, out_per_group, per_group).transpose(0, 2, 1)


def _groups_to_pytorch(tensor: np.ndarray) -> np.ndarray:
    per_group = tensor.shape[1]
    return tensor.transpose(0, 2, 1).reshape(-1, per_group, 1, 1)


# Kernels are OIHW there and HWIO here, matrices (out, in) there and (in, out) here.
_PARAMETERS: dict[type, dict[str, _Parameter]] = {
    keras.layers.Conv2D: {
        "weight": _transposed("kernel", 2, 3, 1, 0),
        "bias": _transposed("bias", 0),
    },
    keras.layers.DepthwiseConv2D: {"weight": _transposed("kernel", 2, 3, 0, 1)},
    keras.layers.EinsumDense: {
        "weight": _Parameter("kernel", _groups_to_keras, _groups_to_pytorch)
    },
    keras.layers.Dense: {
        "weight": _transposed("kernel", 1, 0),
        "bias": _transposed("bias", 0),
    },
    keras.layers.BatchNormalization: {
        "weight": _transposed("gamma", 0),
        "bias": _transposed("beta", 0),
        "running_mean": _transposed("moving_mean", 0),
        "running_var": _transposed("moving_variance", 0),
    },
}


class WrongNumClassesError(InputError):
    """A checkpoint that fits a model but for the number of classes."""


def load_pytorch(model: keras.Model, path: str | pathlib.Path) -> keras.Model:
    """Fills a model of the zoo with the weights of a PyTorch checkpoint.

    Tensors find their layers by name: "layer1.0.conv1.weight" is the kernel of the layer
    "layer1_0_conv1". The head may be called `fc` or `linear`, a shortcut `downsample` or
    `shortcut`, so that RepDistiller's and mdistiller's checkpoints fit, akamaster's, and those of
    plain modules. Every tensor has to be used (but `num_batches_tracked`) and every weight to be
    filled; otherwise the model stays as it was.

    Args:
        model: a model that `models.build` made, with the options of the checkpoint's
            (`models.load` sees them from the checkpoint).
        path: a `.safetensors` file, or one of `torch.save`, whatever its ending (needs PyTorch;
            only tensors and plain containers are unpickled). The state dict may be the file's
            whole content or its entry "state_dict" or "model", and a "module." of DataParallel
            before its names is seen through.

    Returns:
        The same model.

    Raises:
        InputError: if the file is missing, can't be read or isn't a state dict, if PyTorch is
            needed and missing, if tensors and weights don't match, or if a number isn't finite;
            names what is wrong.
    """
    return assign(model, read_state_dict(path), path)


def save_pytorch(model: keras.Model, path: str | pathlib.Path) -> None:
    """Writes a model's weights as the state dict of PyTorch's module of that family.

    The module of the same name in github.com/HobbitLong/RepDistiller loads the file with
    `load_state_dict(strict=True)`; of ResNets with `shortcut="identity"` that of
    github.com/akamaster/pytorch_resnet_cifar10. It takes images that are normalised already: the
    file's metadata has "mean" and "std", JSON lists for pixels in [0, 1].

    Args:
        model: a model of the zoo, also after training, saving and loading.
        path: the `.safetensors` file to write.

    Raises:
        InputError: if the path doesn't end in `.safetensors` or can't be written to, or the model
            has weights that PyTorch's names aren't known for.
    """
    path = pathlib.Path(path)
    if path.suffix != SAFETENSORS_ENDING:
        raise InputError(f"{path} was given to write; expected a name ending in .safetensors")
    state = {
        target.name: np.ascontiguousarray(target.parameter.to_pytorch(target.variable.numpy()))
        for target in _targets(model).values()
    }
    write_atomically(path, safetensors.numpy.save(state, {"format": "pt", **_normalization(model)}))


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
    _check_fit(model, path, tensors, unexpected, targets)
    _check_numbers(path, list(tensors.values()))
    for key, target in targets.items():
        shape = tuple(target.variable.shape)
        target.variable.assign(target.parameter.to_keras(tensors[key][1], shape))
    return model


def _key(name: str) -> str:
    """Turns "layer2.0.shortcut.1.running_var" into "layer2_0_downsample_1.running_var"."""
    *modules, parameter = name.split(".")
    return "_".join(_SYNONYMS.get(module, module) for module in modules) + "." + parameter


@dataclasses.dataclass(frozen=True)
class _Target:
    """A variable of a model and PyTorch's name for it."""

    name: str
    variable: Any
    parameter: _Parameter

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in PyTorch."""
        return self.parameter.to_pytorch(np.broadcast_to(0.0, self.variable.shape)).shape


def _targets(model: keras.Model) -> dict[str, _Target]:
    """Returns the model's variables under `_key`'s names."""
    targets = {}
    for layer in model.layers:
        for name, parameter in _PARAMETERS.get(type(layer), {}).items():
            variable = getattr(layer, parameter.attribute)
            if variable is not None:
                pytorch_name = f"{layer.name.replace('_', '.')}.{name}"
                targets[_key(pytorch_name)] = _Target(pytorch_name, variable, parameter)
    if len(targets) != len(model.weights):
        raise InputError(
            f"the model {model.name} has weights that PyTorch's names aren't known for; expected "
            f"only {', '.join(kind.__name__ for kind in _PARAMETERS)} layers: use a model of "
            "models.build"
        )
    return targets


def _normalization(model: keras.Model) -> dict[str, str]:
    """Returns the metadata for how a model of the zoo normalises pixels in [0, 1]."""
    layer = next((x for x in model.layers if isinstance(x, keras.layers.Rescaling)), None)
    if layer is None:
        return {}
    std = 1 / (255 * np.asarray(layer.scale))
    return {
        "mean": json.dumps(np.round(-np.asarray(layer.offset) * std, 6).tolist()),
        "std": json.dumps(np.round(std, 6).tolist()),
    }


def _remedy(missing: list[str], unexpected: list[str], misshapen: list[str]) -> str:
    """Returns what to do about a state dict that doesn't fit, as far as its names tell."""
    if _is_head_alone(missing, unexpected, misshapen):
        return "build the model with the file's num_classes"
    shortcuts = {"downsample", "shortcut"}
    if not misshapen and all(shortcuts & set(name.split(".")) for name in missing + unexpected):
        # A ResNet whose shortcuts have weights on one side only.
        return f'build the model with shortcut="{"projection" if unexpected else "identity"}"'
    return "build the model with the file's architecture, options and num_classes"


def _is_head_alone(missing: list[str], unexpected: list[str], misshapen: list[str]) -> bool:
    heads = ("fc.", "linear.", "classifier.")
    return (
        bool(misshapen)
        and not (missing or unexpected)
        and all(name.startswith(heads) for name in misshapen)
    )


def _check_fit(
    model: keras.Model,
    path: str | pathlib.Path,
    tensors: Mapping[str, tuple[str, np.ndarray]],
    unexpected: list[str],
    targets: Mapping[str, "_Target"],
) -> None:
    """Refuses tensors that aren't the model's, by name."""
    unexpected = [*unexpected, *(name for key, (name, _) in tensors.items() if key not in targets)]
    missing = [target.name for key, target in targets.items() if key not in tensors]
    misshapen = [
        f"{tensors[key][0]} (file {tensors[key][1].shape}, model {target.shape})"
        for key, target in targets.items()
        if key in tensors and tensors[key][1].shape != target.shape
    ]
    complaints = [
        f"{len(names)} {kind}: {first_few(names)}"
        for kind, names in (
            ("missing from the file", missing),
            ("unexpected in the file", unexpected),
            ("of another shape", misshapen),
        )
        if names
    ]
    if complaints:
        kind = (
            WrongNumClassesError if _is_head_alone(missing, unexpected, misshapen) else InputError
        )
        raise kind(
            f"{path} doesn't fit the model {model.name}: {'; '.join(complaints)}; "
            f"{_remedy(missing, unexpected, misshapen)}"
        )


def _check_numbers(path: str | pathlib.Path, named: list[tuple[str, np.ndarray]]) -> None:
    """Refuses tensors whose numbers no training leaves, by name."""
    for what, names in (
        ("integers or complex numbers", [n for n, x in named if x.dtype.kind not in "fV"]),
        ("NaNs or infinities", [n for n, x in named if not np.isfinite(x).all()]),
        ("negative numbers", [n for n, x in named if n.endswith("_var") and (x < 0).any()]),
    ):
        if names:
            raise InputError(
                f"{path} has {what} in {first_few(names)}; expected the weights of a training "
                "that went well: take an earlier checkpoint"
            )
