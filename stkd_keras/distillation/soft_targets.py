"""The teacher's logits and features for a training step."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from stkd_keras.classifiers.outputs import logits_of_probabilities
from stkd_keras.distribution.replicas import skip_empty_batch
from stkd_keras.mixing import mix_batch_outputs
from stkd_keras.teacher.frozen import FrozenTeacher
from stkd_keras.teacher.recorded import RecordedTeacher


def freeze(
    teacher, soft_target: str, mixing, mixing_steps: int | None, data_seed: int
) -> FrozenTeacher | RecordedTeacher | None:
    """Returns the teacher as a FrozenTeacher, or a recording that fits the distiller."""
    if isinstance(teacher, RecordedTeacher):
        if soft_target == "mixed":  # It is then recorded on the clean images.
            mixing = mixing_steps = None
        teacher.check_distiller(mixing, mixing_steps, data_seed)
    elif teacher is not None and not isinstance(teacher, FrozenTeacher):
        teacher = FrozenTeacher(teacher)
    return teacher


@dataclasses.dataclass(frozen=True)
class SoftTargets:
    """Computes what the student learns from the teacher in a step."""

    teacher: Callable
    shapes: dict[str, tf.TensorShape]
    mixing: Callable | None
    mixing_steps: int | None
    data_seed: int
    soft_target: str
    temperature: float

    def __call__(
        self, virtual_x, clean_x, clean_labels, recorded_logits, step, replica
    ) -> dict[str, tf.Tensor]:
        """Returns "logits", (B, C), and the features that terms need, all float32."""
        if self.soft_target == "virtual":
            if recorded_logits is not None:
                return {"logits": recorded_logits}
            return self._teacher_outputs(virtual_x)
        logits = recorded_logits
        if logits is None:
            logits = self._teacher_outputs(clean_x)["logits"]
        probabilities = mix_batch_outputs(
            self.mixing,
            self.mixing_steps,
            self.data_seed,
            tf.nn.softmax(logits / self.temperature),
            clean_x,
            clean_labels,
            step,
            replica,
        )
        return {"logits": self.temperature * logits_of_probabilities(probabilities)}

    def _teacher_outputs(self, x) -> dict[str, tf.Tensor]:
        if len(self.shapes) == 1:
            return {"logits": skip_empty_batch(self.teacher, x, self.shapes["logits"])}
        return skip_empty_batch(self.teacher, x, self.shapes)
