"""Models from files, from the zoo and from keras.applications, as the commands' flags name them."""

import pathlib
import warnings
import zipfile
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from models import applications
from models.applications import is_application
from models.weights import pytorch, state_dict
from models.zoo import build, options_from_state, parse_name
from stkd_keras.classifiers.fused_batch_norm import fuse_batch_normalization
from stkd_keras.classifiers.outputs import resolve_outputs
from stkd_keras.data import Dataset, parse_normalization
from stkd_keras.errors import InputError, one_line
from stkd_keras.files.untrusted import check_hdf5, check_keras_file

# Names that are of files and not of models.
_WEIGHTS_ENDINGS = (".h5", ".safetensors", ".pth", ".pt", ".th")


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
    """Gets a model from a file, or by its name with or without weights of a file.

    Args:
        source: a `.keras` file (the model is all in there), a model of the zoo (one of
            `available()`), or one of keras.applications, such as
            "keras.applications:MobileNetV2", which preprocesses as it does there.
        input_shape: (height, width, channels). Needed with a name; a `.keras` file is held
            against it.
        num_classes: number of classes; likewise.
        weights: with a name, the file that fills the model: a `.weights.h5` of Keras's (of an
            application also `.h5`), or a `.keras` file, which then is the model; of the zoo's
            models any other file is a PyTorch checkpoint (see `load_pytorch`). None: fresh
            weights.
        mean: as in `build`, 0 where None. A `.keras` file and an application bring their own.
        std: as in `build`, 1 where None; likewise.
        options: as in `build`; likewise. Those that a PyTorch checkpoint tells, such as a
            ResNet's `shortcut`, follow it where they aren't given.

    Returns:
        The model, with `fuse_batch_normalization` applied.

    Raises:
        InputError: if a file is missing, can't be read or doesn't fit, if arguments contradict
            each other or are missing, or as in `build`.
    """
    name, file = str(source), None if weights is None else str(weights)
    check_source(name, file)
    if name.endswith(".keras"):
        file = name
    settings = {"mean": mean, "std": std, **options}
    settings = {key: value for key, value in settings.items() if value is not None}
    if is_whole_model(file):
        if settings:
            raise InputError(
                f"{file} is a whole model, but {', '.join(settings)} is given as well; "
                "expected a model of the zoo with that: leave it out, the file brings its own"
            )
        return _load_keras_file(str(file), input_shape, num_classes)
    if input_shape is None or num_classes is None:
        raise InputError(
            f"{name} is built for an input_shape and num_classes, but these are {input_shape} and "
            f"{num_classes}; expected both: give what the data has, such as (32, 32, 3) and 10"
        )
    if is_application(name):
        if settings:
            raise InputError(
                f"{name} preprocesses as Keras made it, but {', '.join(settings)} is given as "
                "well; expected that with a model of the zoo only: leave it out"
            )
        model = applications.build(name, input_shape, num_classes)
        return fuse_batch_normalization(model if file is None else fill(model, name, file))
    if file is None:
        return build(name, input_shape, num_classes, **settings)
    return _build_with_weights(name, input_shape, num_classes, file, settings)


def load_for(
    dataset: Dataset,
    source: str,
    weights: str | None = None,
    normalization: str | None = None,
    num_classes: int | None = None,
) -> keras.Model:
    """Gets a model for a data set, as the commands' flags name it.

    Args:
        dataset: gives the input shape and the number of classes.
        source: as in `load`.
        weights: as in `load`.
        normalization: how the pixels of `weights` were normalised, as in
            `stkd_keras.data.parse_normalization`; None for the data set's own. A `.keras` file
            and an application bring their own.
        num_classes: where it isn't the data set's.

    Raises:
        InputError: as in `load`.
    """
    mean = std = None
    brings_its_own = is_whole_model(source, weights) or is_application(source)
    if normalization is not None or not brings_its_own:
        mean, std = parse_normalization(normalization or "dataset", dataset)
    model = load(
        source,
        input_shape=dataset.image_shape,
        num_classes=num_classes or dataset.num_classes,
        weights=weights,
        mean=mean,
        std=std,
    )
    try:
        resolve_outputs(model, "auto", "model")
    except InputError as error:
        raise InputError(f"{source} is no classifier: {error}") from error
    return model


def check_source(source: str, weights: str | None = None) -> None:
    """Refuses a name or a file that `load` can't take, before anything slow is done.

    Raises:
        InputError: if the name isn't known, a file is missing, or one doesn't go with the other.
    """
    if source.endswith(".keras"):
        if weights is not None:
            raise InputError(
                f"{source} brings its own weights, but weights={weights} is given as well; "
                "expected one of them: leave weights out, or name a model of the zoo"
            )
        check_file(source)
    elif source.endswith(_WEIGHTS_ENDINGS):
        raise InputError(
            f"{source} has weights but no architecture; expected a .keras file or a model of the "
            "zoo: name the model and pass this file as its weights"
        )
    elif is_application(source):
        applications.check_name(source)
        if weights is not None and not weights.endswith((".h5", ".keras")):
            raise InputError(
                f"{weights} can't be the weights of {source}; expected a file that Keras wrote: "
                ".weights.h5, .h5 or .keras"
            )
    else:
        parse_name(source)
    if weights is not None:
        check_file(weights)


def check_normalization(
    flag: str, normalization: str | None, source: str, weights: str | None
) -> None:
    """Refuses the normalisation of a model that brings its own, or that is trained afresh.

    Args:
        flag: "student" or "teacher".
        normalization: as in `load_for`.
        source: likewise.
        weights: likewise.

    Raises:
        InputError: if it is given all the same.
    """
    if normalization is not None and not takes_normalization(source, weights):
        raise InputError(
            f"--{flag}_normalization={normalization} goes with --{flag}_weights of a .weights.h5 "
            f"or PyTorch file for a model of the zoo; other {flag}s bring their own, so leave it "
            "out"
        )


def takes_normalization(source: str, weights: str | None) -> bool:
    """Whether a model's weights don't tell how pixels are normalised."""
    return weights is not None and not (is_whole_model(source, weights) or is_application(source))


def is_whole_model(*files: str | None) -> bool:
    """Whether one of the files holds a model with its architecture, and not weights alone."""
    return any(file is not None and file.endswith(".keras") for file in files)


def fill(model: keras.Model, name: str, file: str) -> keras.Model:
    """Fills a model from a file of weights that Keras wrote.

    Args:
        model: the model.
        name: what it is called, for the error.
        file: `.weights.h5`, or Keras's older `.h5`.

    Returns:
        The same model.

    Raises:
        InputError: if they don't fit, or the file can't be read.
    """
    check_file(file)
    check_hdf5(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # They list what the error tells too.
            model.load_weights(file)
    except Exception as error:  # Which kind depends on what in the file is broken.
        raise InputError(
            f"can't fill {name} from {file} ({one_line(error)}); expected the weights of the same "
            "architecture: check the name, its options and num_classes"
        ) from error
    if is_application(name):
        applications.restore_scale(model, file)
    return _checked_finite(model, file)


def check_file(file: str) -> None:
    """Refuses a file that isn't there.

    Raises:
        InputError: likewise.
    """
    if not pathlib.Path(file).is_file():
        raise InputError(f"no file {file}; expected a model's weights, check the path")


def _build_with_weights(
    name: str,
    input_shape: Sequence[int | None],
    num_classes: int,
    file: str,
    settings: dict[str, Any],
) -> keras.Model:
    """Builds a model of the zoo and fills it from a file of weights alone."""
    if file.endswith(".weights.h5"):
        return fill(build(name, input_shape, num_classes, **settings), name, file)
    state = state_dict.read_state_dict(file)
    settings = {**options_from_state(name, state), **parse_name(name)[1], **settings}
    return pytorch.assign(build(name, input_shape, num_classes, **settings), state, file)


def _load_keras_file(
    file: str, input_shape: Sequence[int | None] | None, num_classes: int | None
) -> keras.Model:
    """Loads a `.keras` file and holds it against what the data has."""
    check_file(file)
    if not zipfile.is_zipfile(file):  # Keras says "File not found" of these.
        raise InputError(f"{file} isn't a .keras file, or a broken one; expected one of model.save")
    check_keras_file(file)
    try:
        model = keras.saving.load_model(file, compile=False, safe_mode=True)
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
    return fuse_batch_normalization(_checked_finite(model, file))


def _checked_finite(model: keras.Model, file: str) -> keras.Model:
    """Refuses weights that are no numbers, which a ReLU would hide."""
    for weight in model.weights:
        if weight.dtype.startswith(("float", "bfloat")) and not np.isfinite(weight.numpy()).all():
            raise InputError(
                f"{file} has NaNs or infinities in {weight.path}; expected the weights of a "
                "training that went well: take an earlier file"
            )
    return model


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
