"""Values that train.py must refuse, for each of its flags."""

import math
import pathlib

from hypothesis import strategies as st

from stkd_keras import recipes


def fill(folder: pathlib.Path) -> None:
    """Writes the files that the values refer to."""
    (folder / "file").write_text("a file")
    (folder / "other").mkdir()
    (folder / "other" / "thesis.tex").write_text("years of work")


def _is_integer(text: str) -> bool:
    for base in (10, 8, 16):
        try:
            int(text, base)
        except ValueError:
            continue
        return True
    return False


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# Any command-line argument; surrogates stand for bytes that aren't UTF-8.
texts = st.text(st.characters(exclude_characters="\0"), max_size=30)


def integers(lowest: int, highest: int | None = None):
    """Values that aren't integers in a range."""
    choices = [
        st.integers(max_value=lowest - 1).map(str),
        st.floats().filter(lambda value: value != int(value) if math.isfinite(value) else True)
        .map(repr),
        texts.filter(lambda text: not _is_integer(text)),
    ]  # fmt: skip
    if highest is not None:
        choices.append(st.integers(min_value=highest + 1).map(str))
    return st.one_of(choices)


def floats(is_good):
    """Values that aren't numbers, or that the function rejects."""
    numbers = st.floats() | st.sampled_from([0.0, -1.0, 2.0, 1e39, -math.inf, math.inf, math.nan])
    return st.one_of(
        numbers.filter(lambda value: not is_good(value)).map(repr),
        texts.filter(lambda text: not _is_float(text)),
    )


def words(*good: str):
    """Values that aren't one of these words."""
    near = st.sampled_from([f"{word}x" for word in good] + [word.upper() for word in good])
    return (texts | near).filter(lambda text: text not in good)


def names(*more: str):
    """Names of models and files that don't exist."""
    return st.one_of(
        texts.map(lambda text: f"no such {text}"), texts.map(lambda text: f"{text}.keras"),
        st.sampled_from(["", "resnet21", "resnet8:width=2", "keras.applications:resnet50", *more]),
    )  # fmt: skip


missing_files = texts.map(lambda text: f"nowhere/{text}")
in_a_file = texts.map(lambda text: f"file/{text}")
no_features = texts.filter(lambda text: text and "=" not in text)
not_switches = texts.filter(lambda text: text.lower() not in ("true", "false", "t", "f", "1", "0"))


def _is_positive(value: float) -> bool:
    return 1e-12 <= value <= 1e12


def _is_weight(value: float) -> bool:
    return value == 0 or _is_positive(value)


VALUES = {
    "augment": words(
        "standard", "cutout", "randaugment", "none", "photo", "photo,erasing", "photo,randaugment"
    ),
    "resize": words("crop", "pad", "stretch"),
    "backbone_learning_rate": floats(_is_weight),
    "backup_steps": integers(1),
    "validation_freq": integers(1),
    "histogram_freq": integers(0),
    "profile_steps": integers(0),
    "batch_size": integers(1, 1437),
    "calibrate": words("temperature", "none"),
    "clip_norm": floats(_is_weight),
    "data_dir": missing_files | in_a_file,
    "data_seed": integers(0, 2**63 - 1),
    "dataset": words("cifar10", "cifar100", "cinic10", "digits", "folder", "tiny_imagenet").filter(
        lambda text: not text.startswith("tfds:")
    ),
    "deterministic": not_switches,
    "distribute": words("auto", "none", "mirrored", "multi_worker"),
    "dry_run": not_switches,
    "ema": floats(lambda value: 0 <= value < 1),
    "epochs": integers(1, 10**9),
    "flip": not_switches,
    "freeze_batch_norm": not_switches,
    "freeze_epochs": integers(0, 30),
    "image_size": integers(1, 8192) | st.integers(1, 7).map(str),
    "label_smoothing": floats(lambda value: 0 <= value < 1),
    "label_weight": floats(_is_weight),
    "learning_rate": floats(_is_positive),
    "logical_devices": integers(0, 64),
    "memory_limit": floats(lambda value: value >= 0),
    "method": words(*recipes.METHODS),
    "method_weight": floats(_is_weight),
    "mixed_precision": words("none", "mixed_float16", "mixed_bfloat16"),
    "mixing": words("none", "mixup", "cutmix", "mixup,cutmix"),
    "mixing_per_batch": not_switches,
    "mixing_epochs": integers(0, 10**9),
    "mixup_alpha": floats(_is_positive),
    "mixup_probability": floats(lambda value: 0 <= value <= 1),
    "num_images": integers(2, 64),
    "optimizer": words("sgd", "adamw"),
    "overwrite": not_switches,
    "pretraining_epochs": integers(0, 10**9),
    "recipe": words("scratch", "finetune"),
    "replay": in_a_file | st.sampled_from(["", "other", "file"]),
    "run_dir": in_a_file | st.sampled_from(["", "other", "file", "."]),
    "seed": integers(0, 2**32 - 1),
    "skip_bad_images": not_switches,
    "soft_target": words("virtual", "mixed"),
    "soft_weight": floats(_is_weight),
    "steps_per_execution": integers(1),
    "student": names("resnet8,resnet8"),
    "student_features": no_features,
    "student_normalization": texts,
    "student_weights": missing_files,
    "teacher": names("resnet8,resnet21", ",", "resnet8,"),
    "teacher_classes": missing_files,
    "teacher_dir": in_a_file | st.sampled_from(["", "file"]),
    "teacher_dtype": words("float32", "bfloat16", "float16"),
    "teacher_epochs": integers(1, 10**9),
    "teacher_features": no_features,
    "teacher_normalization": texts,
    "teacher_outputs": words("logits", "probabilities"),
    "teacher_weights": missing_files,
    "temperature": floats(_is_positive),
    "train_fraction": floats(lambda value: 0 < value <= 1),
    "train_images_per_class": integers(1, 200),
    "unlabeled_dir": missing_files,
    "validation_fraction": floats(lambda value: 0 <= value < 1),
    "weight_decay": floats(_is_weight),
}
"""A strategy of bad values by flag."""

REQUIRED = {
    "data_dir": ("--dataset=folder",),
    "logical_devices": ("--distribute=mirrored",),
    "method_weight": ("--method=fitnet",),
    "pretraining_epochs": ("--method=ft",),
    "student_features": ("--method=fitnet",),
    "teacher_features": ("--method=fitnet",),
}
"""Other flags without which a flag has no effect."""

ARGUMENT_NAMES = {
    "backbone_learning_rate": "backbone's learning rate",
    "learning_rate": "learning rate",
    "weight_decay": "weight decay",
    "mixup_alpha": "alpha",
    "mixup_probability": "probability",
    "train_images_per_class": "images_per_class",
}
"""Names in messages of the library that differ from the flag."""
