"""The defaults of train.py, by data set and by method."""

import dataclasses
from typing import Any

from stkd_keras import methods
from stkd_keras.data import AnySplit
from stkd_keras.errors import LARGEST, SMALLEST, InputError, is_positive, unknown_name
from stkd_keras.mixing import CutMix, Mixup, MixupOrCutMix


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Defaults of train.py's flags of these names. None means without."""

    teacher: str = "resnet110"
    student: str = "resnet20"
    teacher_epochs: int = 200
    epochs: int = 200
    batch_size: int = 128
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    backbone_learning_rate: float | None = None
    freeze_epochs: int | None = None
    freeze_batch_norm: bool | None = None
    clip_norm: float | None = None
    ema: float | None = None
    label_smoothing: float | None = None
    # Of methods that don't have their own.
    temperature: float = 4.0
    soft_weight: float = 0.9
    label_weight: float = 0.1


RECIPES = {
    # Common practice on CIFAR-10 and similar data sets.
    "scratch": Recipe(),
    # For pretrained weights. The temperature was chosen on validation images (docs/results).
    "finetune": Recipe(
        epochs=30,
        batch_size=32,
        optimizer="adamw",
        freeze_batch_norm=True,
        clip_norm=1.0,
        ema=0.999,
        label_smoothing=0.1,
        temperature=4.0,
    ),
}
_DIGITS = {"teacher": "resnet20", "student": "resnet8", "teacher_epochs": 30}
# Changes of recipes for a data set.
DATASETS: dict[tuple[str, str], dict[str, Any]] = {
    ("digits", "scratch"): {**_DIGITS, "epochs": 30, "batch_size": 64},
    ("digits", "finetune"): _DIGITS,
}
# Defaults of each optimizer, by recipe.
OPTIMIZERS: dict[str, dict[str, dict[str, float]]] = {
    "sgd": {
        "scratch": {"learning_rate": 0.1, "weight_decay": 5e-4},
        "finetune": {
            "learning_rate": 1e-2, "weight_decay": 1e-4, "backbone_learning_rate": 1e-3
        },
    },
    "adamw": {
        "scratch": {"learning_rate": 1e-3, "weight_decay": 0.05},
        "finetune": {
            "learning_rate": 1e-3, "weight_decay": 0.05, "backbone_learning_rate": 1e-4
        },
    },
}  # fmt: skip
# Arguments of `stkd_keras.experiment.train` that a recipe sets.
TRAINING = (
    "optimizer", "learning_rate", "weight_decay", "backbone_learning_rate", "freeze_epochs",
    "freeze_batch_norm", "clip_norm", "ema",
)  # fmt: skip
# Options that 0 or false turns off, as None does.
OPTIONAL = ("freeze_epochs", "freeze_batch_norm", "clip_norm", "ema", "label_smoothing")

MIXINGS = ("none", "mixup", "cutmix", "mixup,cutmix")
# github.com/HobbitLong/RepDistiller pretrains for 30 epochs before 240 epochs of training.
PRETRAINING_SHARE = 30 / 240
# Methods without a loss term of their own.
OWN_METHODS: dict[str, dict[str, Any]] = {
    "stkd": {"mixing": "mixup"},
    "kd": {},
    "mixup": {"soft_weight": 0.0, "label_weight": 1.0, "mixing": "mixup", "mixup_alpha": 0.2},
    "ce": {"soft_weight": 0.0, "label_weight": 1.0},
}
METHODS = (*OWN_METHODS, *methods.METHODS)
_DEFAULTS: dict[str, Any] = {
    "mixing": "none",
    "mixup_alpha": 1.0,
    "mixup_probability": 1.0,
    "num_images": 2,
    "mixing_epochs": None,
    "mixing_per_batch": False,
    "soft_target": "virtual",
    "method_weight": None,
    "pretraining_epochs": None,
}
# The settings of `method_settings`.
_OF_RECIPE = ("temperature", "soft_weight", "label_weight")
SETTINGS = (*_OF_RECIPE, *_DEFAULTS)
# Settings that only matter with mixing.
_OF_MIXING = (
    "mixup_alpha", "mixup_probability", "num_images", "mixing_epochs", "mixing_per_batch",
    "soft_target",
)  # fmt: skip


def recipe_for(dataset: str, optimizer: str | None = None, recipe: str = "scratch") -> Recipe:
    """Returns a recipe for a data set, with the optimizer's defaults.

    Args:
        dataset: the data set's name.
        optimizer: a name in `OPTIMIZERS`; None for the recipe's own.
        recipe: a name in `RECIPES`.

    Raises:
        InputError: if the optimizer or the recipe is unknown.
    """
    if recipe not in RECIPES:
        raise unknown_name("recipe", recipe, RECIPES)
    optimizer = optimizer or RECIPES[recipe].optimizer
    check_optimizer(optimizer)
    changes = {**OPTIMIZERS[optimizer][recipe], **DATASETS.get((dataset, recipe), {})}
    return dataclasses.replace(RECIPES[recipe], optimizer=optimizer, **changes)


def method_settings(method: str, recipe: Recipe = RECIPES["scratch"], **explicit) -> dict[str, Any]:
    """Returns a method's settings, overridden by explicit ones.

    Args:
        method: a name in `METHODS`.
        recipe: the temperature and loss weights of methods that don't have their own.
        **explicit: values for names in `SETTINGS`; None means not given. Setting an option of
            mixing enables mixing.

    Raises:
        InputError: if the method is unknown or settings contradict each other.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    given = {name: value for name, value in explicit.items() if value is not None}
    of_recipe = {name: getattr(recipe, name) for name in _OF_RECIPE}
    settings = {**_DEFAULTS, **of_recipe, **_defaults_of(method), **given}
    of_mixing = [n for n in _OF_MIXING if n in given and given[n] not in (False, 0, "virtual")]
    if of_mixing and settings["mixing"] == "none":
        if "mixing" in given:
            raise InputError(
                f"mixing is none, but {of_mixing[0]} is {given[of_mixing[0]]}, which is a setting "
                "of mixing; leave one of them out"
            )
        settings["mixing"] = "mixup"
    if settings["mixup_probability"] == 0:
        settings["mixing"] = "none"
    _check_term(method, settings, given)
    return settings


def needs_teacher(method: str, settings: dict[str, Any]) -> bool:
    """Whether a method with these settings needs a teacher."""
    return method not in OWN_METHODS or settings["soft_weight"] > 0


def needs_features(method: str) -> bool:
    """Whether a method uses features of inner layers."""
    return method not in OWN_METHODS and not methods.METHODS[method].term.uses_logits_only


def can_replay(method: str, settings: dict[str, Any]) -> bool:
    """Whether training can use a recording of the teacher's logits."""
    return needs_teacher(method, settings) and not needs_features(method)


def make_mixing(settings: dict[str, Any]) -> Mixup | CutMix | None:
    """Returns the mixing that the settings describe, or None.

    Raises:
        InputError: if a setting is out of range, even without mixing.
    """
    options = {
        "alpha": settings["mixup_alpha"],
        "probability": settings["mixup_probability"],
        "per_batch": settings["mixing_per_batch"],
    }
    mixup = Mixup(num_images=settings["num_images"], **options)
    if settings["mixing"] in ("none", "mixup"):
        return mixup if settings["mixing"] == "mixup" else None
    if mixup.num_images != 2:
        raise InputError(
            f"num_images is {mixup.num_images}, but CutMix mixes two: leave it out, or choose the "
            "mixing mixup"
        )
    return CutMix(**options) if settings["mixing"] == "cutmix" else MixupOrCutMix(**options)


def make_terms(
    method: str, settings: dict[str, Any], train_split: AnySplit, steps: int, data_seed: int
) -> list[methods.DistillationTerm]:
    """Returns the loss terms of a published method, or [] for other methods.

    Args:
        method: a name in `METHODS`.
        settings: from `method_settings`, with `pretraining_epochs` set.
        train_split: the training images.
        steps: batches per epoch.
        data_seed: seed of the terms' random draws.
    """
    if method in OWN_METHODS:
        return []
    entry = methods.METHODS[method]
    options = dict(entry.options)
    if settings["method_weight"] is not None:
        options["weight"] = settings["method_weight"]
    if entry.temperature is not None:
        options["temperature"] = settings["temperature"]
    if entry.pretraining_epochs:
        options["pretraining_steps"] = settings["pretraining_epochs"] * steps
    if entry.term.needs_index:
        options |= {
            "num_images": len(train_split),
            "image_labels": train_split.labels,
            "seed": data_seed,
        }
    return [entry.term(**options)]


def distiller_arguments(
    method: str, settings: dict[str, Any], train_split: AnySplit, steps: int, data_seed: int = 0
) -> dict[str, Any]:
    """Returns the arguments of `SimilarityTransferDistiller` for a method's settings.

    Args:
        method: a name in `METHODS`.
        settings: from `method_settings`, with `pretraining_epochs` set.
        train_split: the training images.
        steps: batches per epoch.
        data_seed: seed of mixing and of the terms' random draws.

    Raises:
        InputError: if a setting is out of range.
    """
    mixing_steps = None
    if settings["mixing_epochs"] is not None:
        # Pretraining epochs don't count as mixing epochs.
        mixing_steps = ((settings["pretraining_epochs"] or 0) + settings["mixing_epochs"]) * steps
    as_they_are = "temperature", "soft_weight", "label_weight", "soft_target"
    return {
        **{name: settings[name] for name in as_they_are},
        "label_smoothing": settings.get("label_smoothing") or 0.0,
        "mixing": make_mixing(settings),
        "mixing_steps": mixing_steps,
        "terms": make_terms(method, settings, train_split, steps, data_seed),
        "data_seed": data_seed,
    }


def default_pretraining_epochs(method: str, epochs: int) -> int:
    """Returns a method's default number of pretraining epochs for `epochs` of training."""
    if method in OWN_METHODS or not methods.METHODS[method].pretraining_epochs:
        return 0
    return max(1, round(PRETRAINING_SHARE * epochs))


def check_optimizer(name: str) -> None:
    """Raises an InputError if an optimizer is unknown."""
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, OPTIMIZERS)


def training_arguments(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `stkd_keras.experiment.train` among a recipe's or run's values."""
    return {name: values[name] for name in TRAINING}


def check_recipe(
    learning_rate: float,
    weight_decay: float,
    backbone_learning_rate: float | None = None,
    clip_norm: float | None = None,
    ema: float | None = None,
) -> None:
    """Raises an InputError if a number is out of range."""
    numbers = f"from {SMALLEST:g} to {LARGEST:g}"
    if not is_positive(learning_rate):
        raise InputError(f"the learning rate is {learning_rate}, but must be a number {numbers}")
    others = {
        "the weight decay": weight_decay,
        "the backbone's learning rate": backbone_learning_rate,
        "clip_norm": clip_norm,
    }
    for name, value in others.items():
        if not (value in (None, 0) or is_positive(value)):
            raise InputError(f"{name} is {value}, but must be 0 or a number {numbers}")
    if not 0 <= (ema or 0) < 1:
        raise InputError(f"ema is {ema}, but must be at least 0 and less than 1: a momentum")


def check_freeze(freeze_epochs: int | None, epochs: int, pretraining: int) -> None:
    """Raises an InputError if the backbone can't be frozen for so many epochs."""
    if not 0 <= (freeze_epochs or 0) <= epochs:
        raise InputError(
            f"freeze_epochs is {freeze_epochs}, but must be from 0 to epochs, which is {epochs}"
        )
    if freeze_epochs and pretraining:
        raise InputError(
            f"freeze_epochs is {freeze_epochs}, but the method has a pretraining stage; leave one "
            "of them out"
        )


def _defaults_of(method: str) -> dict[str, Any]:
    if method in OWN_METHODS:
        return OWN_METHODS[method]
    entry = methods.METHODS[method]
    defaults = {"soft_weight": entry.soft_weight, "label_weight": entry.label_weight}
    return defaults | ({"temperature": entry.temperature} if entry.temperature else {})


def _check_term(method: str, settings: dict[str, Any], given: dict[str, Any]) -> None:
    """Rejects term settings of methods without such a term, and mixing where it isn't defined."""
    entry = methods.METHODS.get(method)
    if entry is None and "method_weight" in given:
        raise InputError(
            f"method_weight is {given['method_weight']}, but {method} has no loss term of its own: "
            "leave it out, and set soft_weight and label_weight"
        )
    weight = settings["method_weight"]
    if not (weight in (None, 0) or is_positive(weight)):
        raise InputError(
            f"method_weight is {weight}, but must be 0 or a number from {SMALLEST:g} to {LARGEST:g}"
        )
    if "pretraining_epochs" in given and not (entry and entry.pretraining_epochs):
        raise InputError(
            f"pretraining_epochs is {given['pretraining_epochs']}, but {method} has no "
            "pretraining: leave it out"
        )
    if entry and entry.term.refuses_mixing and settings["mixing"] != "none":
        raise InputError(
            f"{method} isn't defined on mixed images: {entry.term.refuses_mixing}; leave the "
            "mixing out, or choose another method"
        )
