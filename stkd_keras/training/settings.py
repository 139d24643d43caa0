"""The settings of a run."""

import dataclasses
import hashlib
import os
import re
from typing import Any

from stkd_keras import data, recipes
from stkd_keras.data import AnySplit

# Settings that may name files; the content of a file matters, not its path.
_MAY_NAME_FILES = ("teacher", "teacher_classes", "student", "student_weights")
# Settings that are unknown until the images and the teacher are loaded.
_KNOWN_LATER = ("images", "left_over", "replicas", "teacher_weights")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Every setting that a run's result depends on.

    config.json stores them, and a run only resumes with the same settings. Attributes up to
    `replay` are named after flags of train.py.
    """

    dataset: str
    image_size: int | list[int] | None  # A list of height and width unless it is a square.
    resize: str | None  # None for "crop", as in runs of version 0.1, which don't have it.
    skip_bad_images: bool
    train_fraction: float
    train_images_per_class: int | None
    validation_fraction: float | None
    augment: str
    flip: bool | None
    data_seed: int

    teacher: str
    teacher_normalization: str | None
    teacher_classes: str | None
    teacher_outputs: str | None
    teacher_dtype: str | None
    teacher_epochs: int

    student: str
    student_weights: str | None
    student_normalization: str | None
    student_features: list[str] | None
    teacher_features: list[str] | None
    mixed_precision: str
    seed: int

    method: str
    soft_weight: float
    label_weight: float
    temperature: float
    soft_target: str
    mixing: str
    mixup_alpha: float
    mixup_probability: float
    num_images: int
    mixing_epochs: int | None
    mixing_per_batch: bool
    method_weight: float | None
    pretraining_epochs: int

    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    # None if they have no effect, as in runs of version 0.1, which don't have them.
    backbone_learning_rate: float | None
    freeze_epochs: int | None
    freeze_batch_norm: bool | None
    clip_norm: float | None
    ema: float | None
    label_smoothing: float | None
    calibrate: str | None  # None for "temperature", as in runs of earlier versions.
    deterministic: bool
    replay: bool

    images: str | None = None  # A hash of the training images and labels.
    left_over: str | None = None  # See `stkd_keras.data.left_over`.
    replicas: int | None = None
    teacher_weights: str | None = None  # A hash.

    @property
    def needs_teacher(self) -> bool:
        """Whether training needs a teacher."""
        return recipes.needs_teacher(self.method, vars(self))

    @property
    def can_replay(self) -> bool:
        """Whether a recording of the teacher's logits is enough to train on."""
        return recipes.can_replay(self.method, vars(self))

    @property
    def has_onnx_teacher(self) -> bool:
        """Whether a teacher is an ONNX file, which is always recorded before training."""
        return any(source.endswith(".onnx") for source in self.teacher.split(","))

    def distiller_arguments(self, train_split: AnySplit, steps: int) -> dict[str, Any]:
        """Returns the distiller's arguments, for `steps` batches per epoch."""
        return recipes.distiller_arguments(
            self.method, vars(self), train_split, steps, self.data_seed
        )

    def training_arguments(self) -> dict[str, Any]:
        """Returns the arguments of `stkd_keras.experiment.train` that settings decide."""
        more = {"epochs": self.epochs, "augment": self.augment}
        return {**more, **recipes.training_arguments(vars(self))}

    def with_images(self, train_split: AnySplit, batch_size: int, replicas: int) -> "RunSettings":
        """Adds the settings that depend on the loaded images."""
        left_over = data.left_over(train_split, batch_size).get("left_over")
        return dataclasses.replace(
            self, images=data.content_hash(train_split), left_over=left_over, replicas=replicas
        )

    def recorded_samples(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Returns the distiller arguments that determine the images of a recording."""
        samples = {name: arguments[name] for name in ("mixing", "mixing_steps", "data_seed")}
        if self.soft_target == "mixed":  # The recording is of the original images.
            samples |= {"mixing": None, "mixing_steps": None}
        return samples

    def stored(self) -> dict[str, Any]:
        """Returns the settings known so far, as stored in config.json."""
        values = {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if value is not None or name not in _KNOWN_LATER
        }
        for name in _MAY_NAME_FILES:
            if values[name] is not None:
                values[name] = ",".join(map(_hash_of_file, values[name].split(",")))
        return values


def is_sha256(value: Any) -> bool:
    """Whether a value is a SHA-256 hash."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _hash_of_file(name: str) -> str:
    """Returns a file's hash, or the name itself if there is no such file."""
    if not os.path.isfile(name):
        return name
    with open(name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
