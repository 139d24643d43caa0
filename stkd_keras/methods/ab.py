"""The method that transfers which neurons are active: AB."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from stkd_keras.methods.adapters import regressor
from stkd_keras.methods.base import PretrainedTerm, checked_positive


@keras.saving.register_keras_serializable("stkd_keras")
class AB(PretrainedTerm):
    """Activation boundaries: the student's neurons are active where the teacher's are.

    Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden
    Neurons", arXiv 1811.03233. With the maps s and t before their activations, margin m and
    connectors r, a sample's loss is

        3 / 1000 * sum over the features l = 1..L of 2^(l - L) * sum over positions and channels of
            (r(s) + m)^2 where t <= 0 and r(s) > -m,  (r(s) - m)^2 where t > 0 and r(s) <= m

    The factors are github.com/HobbitLong/RepDistiller's. A connector is a convolution to the
    teacher's shape and batch normalisation; maps of equal shapes have none. The method trains the
    student's body and the connectors alone with it, 30 epochs in RepDistiller; afterwards the term
    adds nothing.

    Args:
        features: names of maps (B, H, W, C) before their activations, of all three stages by
            default.
        weight: float, 1 by default (RepDistiller, scripts/run_cifar_distill.sh).
        margin: positive float, 1 by default (RepDistiller, distiller_zoo/AB.py).
        pretraining_steps: integer, at least 0, the stage's steps; with 0 the term counts in every
            step.
        name: string.
    """

    feature_rank = 4

    def __init__(
        self,
        features: Sequence[str] = (
            "stage1_preactivation",
            "stage2_preactivation",
            "stage3_preactivation",
        ),
        weight: float = 1.0,
        margin: float = 1.0,
        pretraining_steps: int = 0,
        name: str = "ab",
        **kwargs: Any,
    ):
        super().__init__(features, weight, pretraining_steps, name, **kwargs)
        self.margin = checked_positive("margin", margin)

    def build(self, student_shape, teacher_shape, labels_shape):
        """Makes a connector for each feature whose shapes differ."""
        super().build(student_shape, teacher_shape, labels_shape)
        self.connectors = []
        for feature, student, teacher in self.shape_pairs(student_shape, teacher_shape):
            if student[1:] == teacher[1:]:
                self.connectors.append(keras.layers.Identity(dtype="float32"))
            else:
                name = f"{feature} of {self.name}"
                self.connectors.append(regressor(name, student[1:], teacher[1:], relu=False))
            self.connectors[-1].build(student)

    def call(self, student, teacher, labels):
        """Returns the loss of each sample, (B,)."""
        total = 0.0
        pairs = zip(self.connectors, self.pairs(student, teacher), strict=True)
        for i, (connector, (s, t)) in enumerate(pairs):
            share = 2.0 ** (i + 1 - len(self.features))
            total += 0.003 * share * boundary_loss(connector(s), t, self.margin)
        return total

    def get_config(self) -> dict:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "margin": self.margin}


def boundary_loss(student: tf.Tensor, teacher: tf.Tensor, margin: float) -> tf.Tensor:
    """Returns the squared distances to the right side of each neuron's boundary, summed, (B,)."""
    too_active = (teacher <= 0) & (student > -margin)
    too_silent = (teacher > 0) & (student <= margin)
    squares = tf.where(too_active, tf.square(student + margin), 0.0)
    squares += tf.where(too_silent, tf.square(student - margin), 0.0)
    return tf.reduce_sum(squares, axis=[1, 2, 3])
