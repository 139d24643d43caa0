"""Saving and loading the distiller."""

import keras

from stkd_keras.classifiers.fused_batch_norm import (
    fuse_batch_normalization,
    has_fused_batch_normalization,
)
from stkd_keras.distillation.compilation import CompiledSteps
from stkd_keras.distribution.replicas import average_batch_statistics
from stkd_keras.errors import without_removed
from stkd_keras.teacher.frozen import FrozenTeacher
from stkd_keras.teacher.recorded import RecordedTeacher

# The distiller's arguments.
_ARGUMENTS = (
    "student", "teacher", "mixing", "mixing_steps", "temperature", "soft_weight", "label_weight",
    "label_smoothing", "soft_target", "terms", "student_features", "teacher_features", "data_seed",
    "student_outputs", "name",
)  # fmt: skip
# Options that commit 1f4727a still had, each with the value that gives today's behavior.
_REMOVED = {"clean_soft_weight": 0.0}


class SavedDistiller(CompiledSteps):
    """Base class of the distiller: how Keras saves and loads it."""

    def get_config(self) -> dict:
        serialize = keras.saving.serialize_keras_object
        return {
            **{name: getattr(self, name) for name in _ARGUMENTS},
            "student": serialize(self.student),
            "has_fused_student": has_fused_batch_normalization(self.student),
            "teacher": self.teacher and self.teacher.get_config(),
            "mixing": serialize(self.mixing),
            "terms": [serialize(term) for term in self.terms],
        }

    @classmethod
    def from_config(cls, config: dict) -> "SavedDistiller":
        deserialize = keras.saving.deserialize_keras_object
        arguments = without_removed(config, _REMOVED)
        arguments |= {part: deserialize(config[part]) for part in ("student", "mixing")}
        arguments["terms"] = [deserialize(term) for term in config.get("terms", ())]
        if arguments.pop("has_fused_student"):
            fuse_batch_normalization(arguments["student"])
        teacher = config["teacher"]
        if teacher is not None:
            recording = teacher.get("recording")
            arguments["teacher"] = (
                RecordedTeacher(recording) if recording else FrozenTeacher.from_config(teacher)
            )
        return cls(**arguments)

    def get_compile_config(self) -> dict:
        config = super().get_compile_config()
        return {**config, "auto_scale_loss": self._auto_scale_loss} if config else config

    def compile_from_config(self, config: dict) -> None:
        config = keras.saving.deserialize_keras_object(config)
        config.pop("loss_weights", None)
        self.compile(**config)
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def save_own_variables(self, store) -> None:
        super().save_own_variables(store)
        store["step"] = self.step.numpy()

    def load_own_variables(self, store) -> None:
        self.step.assign(store["step"][()])

    def save_assets(self, dir_path: str) -> None:
        """Writes the teacher's weights; Keras calls this for `.keras` files only."""
        if isinstance(self.teacher, FrozenTeacher):
            self.teacher.save_weights(dir_path)

    def load_assets(self, dir_path: str) -> None:
        if isinstance(self.teacher, FrozenTeacher):
            self.teacher.load_weights(dir_path)

    def save(self, *args, **kwargs) -> None:
        """Saves student, teacher, settings and optimizer like `keras.Model.save`."""
        average_batch_statistics(self)
        super().save(*args, **kwargs)
