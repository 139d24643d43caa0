"""The teacher's logits and features for a training step."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from stkd_keras.classifiers.outputs import logits_of_probabilities
from stkd_keras.distribution.replicas import skip_empty_batch
from stkd_keras.teacher.frozen import FrozenTeacher
from stkd_keras.teacher.recorded import RecordedTeacher


def freeze(
    teacher, soft_target: str, mixing, mixing_steps: int | None, data_seed: int
) -> FrozenTeacher | RecordedTeacher | None:
    """Returns the teacher as a FrozenTeacher, or a recording that fits the distiller."""
    if isinstance(teacher, RecordedTeacher):
        if soft_target == "mixed":  # It was recorded on the clean images.
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
    soft_target: str
    temperature: float
    mix_outputs: Callable

    def __call__(
        self, virtual_x, clean_x, clean_labels, recorded_logits, step, replica
    ) -> dict[str, tf.Tensor]:
        """Returns "logits", (B, C), and the features that terms need, all float32."""
        x = virtual_x if self.soft_target == "virtual" else clean_x
        if recorded_logits is None:
            outputs = skip_empty_batch(self.teacher, x, self.shapes)
        else:
            outputs = {"logits": recorded_logits}
        if self.soft_target == "virtual":
            return outputs
        probabilities = tf.nn.softmax(outputs["logits"] / self.temperature)
        probabilities = self.mix_outputs(probabilities, clean_x, clean_labels, step, replica)
        return {"logits": self.temperature * logits_of_probabilities(probabilities)}
