"""Exchanges weights of the zoo's models with PyTorch."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import safetensors.numpy

from models.architectures import efficientnet_lite
from models.weights.state_dict import SAFETENSORS_ENDING, read_state_dict
from stkd_keras.errors import InputError, first_few
from stkd_keras.files.atomic import write_atomically

# Module names that differ between implementations -> the name that tensors are matched by.
_SYNONYMS = {"linear": "fc", "shortcut": "downsample"}


# Keras layer -> PyTorch's parameter -> attribute, and the axes that np.transpose takes to Keras's
# layout. PyTorch's kernels are OIHW, Keras's HWIO; its matrices are (out, in), Keras's (in, out).
_PARAMETERS: dict[type, dict[str, tuple[str, tuple[int, ...]]]] = {
    keras.layers.Conv2D: {"weight": ("kernel", (2, 3, 1, 0)), "bias": ("bias", (0,))},
    keras.layers.DepthwiseConv2D: {"weight": ("kernel", (2, 3, 0, 1))},
    # A grouped 1x1 convolution: the axes are those of (groups, out / groups, in / groups).
    keras.layers.EinsumDense: {"weight": ("kernel", (0, 2, 1))},
    keras.layers.Dense: {"weight": ("kernel", (1, 0)), "bias": ("bias", (0,))},
    keras.layers.BatchNormalization: {
        "weight": ("gamma", (0,)),
        "bias": ("beta", (0,)),
        "running_mean": ("moving_mean", (0,)),
        "running_var": ("moving_variance", (0,)),
    },
}


class WrongNumClassesError(InputError):
    """A checkpoint that fits a model except for the number of classes."""


def load_pytorch(model: keras.Model, path: str | pathlib.Path) -> keras.Model:
    """Loads the weights of a PyTorch checkpoint into a model of the zoo.

    Tensors are matched to layers by name: "layer1.0.conv1.weight" is the kernel of the layer
    "layer1_0_conv1". The head may be called `fc` or `linear`, and a shortcut `downsample` or
    `shortcut`, so that checkpoints of RepDistiller, mdistiller, akamaster and plain modules
    fit. Every tensor (except `num_batches_tracked`) and every weight has to be matched;
    otherwise the model is left unchanged.

    Args:
        model: a model of `models.build`, with the options of the checkpoint (`models.load` takes
            them from the checkpoint).
        path: a `.safetensors` file, or a file of `torch.save` with any other ending (needs
            PyTorch; only tensors and plain containers are unpickled). The state dict is the whole
            content of the file or its entry "state_dict" or "model". The prefix "module." of
            DataParallel is ignored.

    Returns:
        The same model.

    Raises:
        InputError: if the file is missing, unreadable or no state dict, if it needs PyTorch and
            that isn't installed, if tensors and weights don't match, or if a number isn't finite.
    """
    return assign(model, read_state_dict(path), path)


def save_pytorch(model: keras.Model, path: str | pathlib.Path) -> None:
    """Writes a model's weights as the state dict of the corresponding PyTorch module.

    The module of the same name in github.com/HobbitLong/RepDistiller loads the file with
    `load_state_dict(strict=True)`; for ResNets with `shortcut="identity"`, the module of
    github.com/akamaster/pytorch_resnet_cifar10 does. The module takes normalized images: the
    file's metadata has "mean" and "std" as JSON lists, for pixels in [0, 1].

    Args:
        model: a model of the zoo, or one loaded from its file.
        path: the `.safetensors` file to write.

    Raises:
        InputError: if the path doesn't end in `.safetensors` or can't be written, or if the model
            has weights without a known name in PyTorch.
    """
    path = pathlib.Path(path)
    if path.suffix != SAFETENSORS_ENDING:
        raise InputError(f"can't write {path}; expected a name ending in .safetensors")
    state = {
        target.name: np.ascontiguousarray(target.to_pytorch(target.variable.numpy()))
        for target in _targets(model).values()
    }
    write_atomically(path, safetensors.numpy.save(state, {"format": "pt", **_normalization(model)}))


def assign(
    model: keras.Model, state: Mapping[str, np.ndarray], path: str | pathlib.Path
) -> keras.Model:
    """Assigns all tensors of a state dict read from `path` to the model, or none of them."""
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
        target.variable.assign(target.to_keras(tensors[key][1]))
    return model


def _key(name: str) -> str:
    """Turns "layer2.0.shortcut.1.running_var" into "layer2_0_downsample_1.running_var"."""
    *modules, parameter = name.split(".")
    modules = [module.lstrip("_") for module in modules]
    return "_".join(_SYNONYMS.get(module, module) for module in modules) + "." + parameter


@dataclasses.dataclass(frozen=True)
class _Target:
    """A variable of a model and its name in PyTorch."""

    name: str
    variable: Any
    axes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The variable's shape in PyTorch."""
        return self.to_pytorch(np.broadcast_to(0.0, self.variable.shape)).shape

    def to_pytorch(self, array: np.ndarray) -> np.ndarray:
        tensor = np.transpose(array, np.argsort(self.axes))
        # Only kernels of grouped convolutions have three axes.
        return tensor.reshape(-1, array.shape[1], 1, 1) if array.ndim == 3 else tensor

    def to_keras(self, tensor: np.ndarray) -> np.ndarray:
        shape = np.array(self.variable.shape)[np.argsort(self.axes)]
        return np.transpose(tensor.reshape(shape), self.axes)


def _targets(model: keras.Model) -> dict[str, _Target]:
    """Returns the model's variables under `_key`'s names."""
    targets = {}
    is_lite = any(layer.name == "conv_stem" for layer in model.layers)
    for layer in model.layers:
        module = (
            efficientnet_lite.module_name(layer.name) if is_lite else layer.name.replace("_", ".")
        )
        for name, (attribute, axes) in _PARAMETERS.get(type(layer), {}).items():
            variable = getattr(layer, attribute)
            if variable is not None:
                pytorch_name = f"{module}.{name}"
                targets[_key(pytorch_name)] = _Target(pytorch_name, variable, axes)
    if len(targets) != len(model.weights):
        raise InputError(
            f"the model {model.name} has weights without a known name in PyTorch; expected only "
            f"{', '.join(kind.__name__ for kind in _PARAMETERS)} layers: use a model of "
            "models.build"
        )
    return targets


def _normalization(model: keras.Model) -> dict[str, str]:
    """Returns the metadata on how a model of the zoo normalizes pixels in [0, 1]."""
    layer = next((x for x in model.layers if isinstance(x, keras.layers.Rescaling)), None)
    if layer is None:
        return {}
    std = 1 / (255 * np.asarray(layer.scale))
    return {
        "mean": json.dumps(np.round(-np.asarray(layer.offset) * std, 6).tolist()),
        "std": json.dumps(np.round(std, 6).tolist()),
    }


def _check_fit(
    model: keras.Model,
    path: str | pathlib.Path,
    tensors: Mapping[str, tuple[str, np.ndarray]],
    unexpected: list[str],
    targets: Mapping[str, _Target],
) -> None:
    """Refuses tensors that don't match the model's weights, by name."""
    unexpected = [*unexpected, *(name for key, (name, _) in tensors.items() if key not in targets)]
    missing = [target.name for key, target in targets.items() if key not in tensors]
    misshapen = {
        tensors[key][0]: f"(file {tensors[key][1].shape}, model {target.shape})"
        for key, target in targets.items()
        if key in tensors and tensors[key][1].shape != target.shape
    }
    problems = {
        "missing from the file": missing,
        "unexpected in the file": unexpected,
        "of another shape": [f"{name} {shapes}" for name, shapes in misshapen.items()],
    }
    if not any(problems.values()):
        return
    listed = "; ".join(
        f"{len(names)} {kind}: {first_few(names)}" for kind, names in problems.items() if names
    )
    error, remedy = InputError, "the file's architecture, options and num_classes"
    if misshapen and not (missing or unexpected):
        if all(name.startswith(("fc.", "linear.", "classifier.")) for name in misshapen):
            error, remedy = WrongNumClassesError, "the file's num_classes"
    elif not misshapen and all(
        {"downsample", "shortcut"} & set(name.split(".")) for name in missing + unexpected
    ):
        remedy = f'shortcut="{"projection" if unexpected else "identity"}"'
    raise error(
        f"{path} doesn't fit the model {model.name}: {listed}; build the model with {remedy}"
    )


def _check_numbers(path: str | pathlib.Path, named: list[tuple[str, np.ndarray]]) -> None:
    """Refuses tensors with values that no training produces, by name."""
    for what, names in (
        ("integers or complex numbers", [n for n, x in named if x.dtype.kind not in "fV"]),
        ("NaNs or infinities", [n for n, x in named if not np.isfinite(x).all()]),
        ("negative numbers", [n for n, x in named if n.endswith("_var") and (x < 0).any()]),
    ):
        if names:
            raise InputError(
                f"{path} has {what} in {first_few(names)}; expected finite weights of a trained "
                "model: the training may have diverged, use an earlier checkpoint"
            )
