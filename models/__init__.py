"""The zoo: classifiers for small images, their weights, and their files.

A model of the zoo takes pixels as they are, float32 in [0, 255], normalises them itself in its
first layer and gives logits. It is made of Keras's own layers only, so its file loads wherever
Keras is.

```python
student = models.build("resnet20", input_shape=(32, 32, 3), num_classes=10)
teacher = models.load(
    "resnet56", input_shape=(32, 32, 3), num_classes=10, weights="resnet56.safetensors",
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
)
```
"""

import inspect
import pathlib
import warnings
import zipfile
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from models import pytorch, resnet
from models.pytorch import load_pytorch, one_line
from stkd_keras.data import Dataset, parse_normalization
from stkd_keras.errors import InputError, unknown_name
from stkd_keras.normalization import fuse_batch_normalization

__all__ = ["available", "build", "check_source", "load", "load_for", "load_pytorch"]

# Functions of (normalised images, number of classes, *, options) that return the logits.
_REGISTRY = {**resnet.MODELS}

_WEIGHTS_ENDINGS = (".keras", ".weights.h5", *pytorch.ENDINGS)


def available() -> list[str]:
    """Returns the names that `build` and `load` know, family by family."""
    return list(_REGISTRY)


def build(
    name: str,
    input_shape: Sequence[int | None],
    num_classes: int,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    **options: Any,
) -> keras.Model:
    """Builds a model of the zoo with fresh weights.

    The initial weights depend on the architecture and Keras's seed alone
    (`keras.utils.set_random_seed`).

    Args:
        name: one of `available()`.
        input_shape: (height, width, channels); height and width may be None.
        num_classes: number of logits, at least 2.
        mean: what is subtracted from pixels / 255, one number or one a channel.
        std: what is divided by after that, likewise.
        options: what the family's function takes beyond these; for ResNets `shortcut`, "identity"
            (default) or "projection".

    Returns:
        A functional model from pixels, float32 in [0, 255] of shape (B, *input_shape), to logits,
        float32 of shape (B, num_classes).

    Raises:
        InputError: if the name, an option or a value isn't known or doesn't fit.

    Example:

    ```python
    model = build("resnet20", input_shape=(32, 32, 3), num_classes=10)
    ```
    """
    _check_name(name)
    for option in options:
        if option not in _options(name):
            raise unknown_name(f"option of {name}", option, _options(name))
    height, width, channels = _checked_input_shape(input_shape)
    if not _is_count(num_classes) or num_classes < 2:
        raise InputError(f"num_classes is {num_classes!r}; expected an integer of at least 2")
    pixels = keras.Input((height, width, channels), dtype="float32", name="pixels")
    images = _normalization(mean, std, channels)(pixels)
    logits = _REGISTRY[name](images, num_classes, **options)
    return fuse_batch_normalization(keras.Model(pixels, logits, name=name))


def load(
    source: str | pathlib.Path,
    *,
    input_shape: Sequence[int | None] | None = None,
    num_classes: int | None = None,
    weights: str | pathlib.Path | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    **options: Any,
) -> keras.Model:
    """Gets a model from a file, or from the zoo with or without weights of a file.

    Args:
        source: a `.keras` file (the model is all in there), or one of `available()`.
        input_shape: (height, width, channels). Needed with a name of the zoo; a `.keras` file is
            held against it.
        num_classes: number of classes; likewise.
        weights: with a name of the zoo, the file that fills the model: a PyTorch checkpoint (see
            `load_pytorch`), a `.weights.h5` of Keras's, or a `.keras` file, which then is the
            model. None: fresh weights.
        mean: as in `build`, 0 where None. A `.keras` file brings its own.
        std: as in `build`, 1 where None; likewise.
        options: as in `build`; likewise. A ResNet's `shortcut` follows a PyTorch checkpoint where
            it isn't given.

    Returns:
        The model, with `fuse_batch_normalization` applied.

    Raises:
        InputError: if a file is missing, can't be read or doesn't fit, if arguments contradict
            each other or are missing, or as in `build`.
    """
    name = str(source)
    if name.endswith(".keras"):
        if weights is not None:
            raise InputError(
                f"{name} brings its own weights, but weights={weights} is given as well; "
                "expected one of them: leave weights out, or name a model of the zoo"
            )
        weights = source
    elif name.endswith(_WEIGHTS_ENDINGS):
        raise InputError(
            f"{name} has weights but no architecture; expected a .keras file or a model of the "
            "zoo: name the model and pass this file as its weights"
        )
    else:
        _check_name(name)
    settings = {"mean": mean, "std": std, **options}
    settings = {key: value for key, value in settings.items() if value is not None}
    if str(weights).endswith(".keras"):
        if settings:
            raise InputError(
                f"{weights} is a whole model, but {', '.join(settings)} is given as well; "
                "expected a model of the zoo with that: leave it out, the file brings its own"
            )
        return _load_keras_file(str(weights), input_shape, num_classes)
    if input_shape is None or num_classes is None:
        raise InputError(
            f"{name} is built for an input_shape and num_classes, but these are {input_shape} and "
            f"{num_classes}; expected both: give what the data has, such as (32, 32, 3) and 10"
        )
    if weights is None:
        return build(name, input_shape, num_classes, **settings)
    return _build_with_weights(name, input_shape, num_classes, str(weights), settings)


def load_for(
    dataset: Dataset,
    source: str,
    weights: str | None = None,
    normalization: str | None = None,
) -> keras.Model:
    """Gets a trained model for a data set, as the commands' flags name it.

    Args:
        dataset: gives the input shape and the number of classes.
        source: as in `load`.
        weights: as in `load`.
        normalization: how the pixels of `weights` were normalised, as in
            `stkd_keras.data.parse_normalization`; None for the data set's own. A `.keras` file
            brings its own.

    Raises:
        InputError: as in `load`.
    """
    mean = std = None
    if normalization is not None or not (weights or source).endswith(".keras"):
        mean, std = parse_normalization(normalization or "dataset", dataset)
    return load(
        source,
        input_shape=dataset.image_shape,
        num_classes=dataset.num_classes,
        weights=weights,
        mean=mean,
        std=std,
    )


def check_source(source: str, weights: str | None = None) -> None:
    """Refuses a name or a file that `load` can't find, before anything slow is done.

    Raises:
        InputError: if the name isn't known, or a file is missing.
    """
    if weights is not None:
        _check_file(weights)
    if source.endswith(_WEIGHTS_ENDINGS):
        _check_file(source)
    else:
        _check_name(source)


def _build_with_weights(
    name: str,
    input_shape: Sequence[int | None],
    num_classes: int,
    file: str,
    settings: dict[str, Any],
) -> keras.Model:
    """Builds a model of the zoo and fills it from a file of weights alone."""
    if not file.endswith(_WEIGHTS_ENDINGS):
        raise InputError(f"weights is {file}; expected one of {', '.join(_WEIGHTS_ENDINGS)}")
    _check_file(file)
    if file.endswith(pytorch.ENDINGS):
        state = pytorch.read_state_dict(file)
        if "shortcut" in _options(name) and pytorch.has_projection_shortcuts(state):
            settings = {"shortcut": "projection", **settings}
        return pytorch.assign(build(name, input_shape, num_classes, **settings), state, file)
    model = build(name, input_shape, num_classes, **settings)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # They list what the error tells too.
            model.load_weights(file)
    except Exception as error:  # Which kind depends on what in the file is broken.
        raise InputError(
            f"can't fill {name} from {file} ({one_line(error)}); expected the weights of the same "
            "architecture: check the name, its options and num_classes"
        ) from error
    return model


def _load_keras_file(
    file: str, input_shape: Sequence[int | None] | None, num_classes: int | None
) -> keras.Model:
    """Loads a `.keras` file and holds it against what the data has."""
    _check_file(file)
    if not zipfile.is_zipfile(file):  # Keras says "File not found" of these.
        raise InputError(f"{file} isn't a .keras file, or a broken one; expected one of model.save")
    try:
        model = keras.saving.load_model(file, compile=False)
    except Exception as error:  # Which kind depends on what in the file is broken.
        raise InputError(
            f"can't load {file} ({one_line(error)}); expected a file of model.save: classes of "
            "your own have to be imported and registered first"
        ) from error
    if not isinstance(model, keras.Model):
        raise InputError(f"{file} holds a {type(model).__name__}; expected a keras.Model")
    if not model.built or not model.weights:
        raise InputError(f"{file} holds a model without weights; save it after it was built")
    expected_input = None if input_shape is None else (None, *input_shape)
    expected_output = None if num_classes is None else (None, num_classes)
    _check_shape(file, "inputs", _declared_shape(model, "input_shape"), expected_input)
    _check_shape(file, "outputs", _declared_shape(model, "output_shape"), expected_output)
    return fuse_batch_normalization(model)


def _declared_shape(model: keras.Model, attribute: str) -> Any:
    """Returns the model's input or output shape, None where a subclass doesn't tell it."""
    try:
        return getattr(model, attribute)
    except (AttributeError, ValueError):
        return None


def _check_shape(file: str, what: str, declared: Any, expected: tuple | None) -> None:
    """Raises unless the shapes agree; None agrees with everything, as a shape and in one."""
    if declared is None or expected is None:
        return
    agrees = (
        isinstance(declared, tuple)
        and len(declared) == len(expected)
        and all(None in pair or pair[0] == pair[1] for pair in zip(declared, expected, strict=True))
    )
    if not agrees:
        raise InputError(
            f"{file} has {what} of shape {declared}; expected {expected}: use a model made for "
            "this data"
        )


def _check_file(file: str) -> None:
    if not pathlib.Path(file).is_file():
        raise InputError(f"no file {file}; expected a model's weights, check the path")


def _check_name(name: str) -> None:
    if not isinstance(name, str) or name not in _REGISTRY:
        raise unknown_name("model", str(name), _REGISTRY)


def _options(name: str) -> list[str]:
    """Returns the names of a model's own options."""
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
    """Returns the layer that computes (pixels / 255 - mean) / std, in float32 always."""
    means = _per_channel("mean", mean, channels)
    stds = _per_channel("std", std, channels)
    if not (stds > 0).all():
        raise InputError(f"std is {std}; expected numbers above 0, in units where white is 1")
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
