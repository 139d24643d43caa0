"""Activation boundaries: AB."""

import keras
import tensorflow as tf

from stkd_keras.methods.adapters import regressor
from stkd_keras.methods.base import PretrainedTerm, checked_positive


@keras.saving.register_keras_serializable("stkd_keras")
class AB(PretrainedTerm):
    """Activation boundaries: the student's neurons are active where the teacher's are.

    Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden
    Neurons", arXiv 1811.03233. With the preactivations s and t, margin m and connectors r, the
    loss of a sample is

        3 / 1000 * sum over the features l = 1..L of 2^(l - L) * sum over positions and channels of
            (r(s) + m)^2 where t <= 0 and r(s) > -m,  (r(s) - m)^2 where t > 0 and r(s) <= m

    The factors are those of github.com/HobbitLong/RepDistiller. A connector is a convolution to
    the teacher's shape with batch normalization; maps of equal shapes have none. This loss alone
    pretrains the student's body and the connectors (for 30 epochs in RepDistiller); after that the
    term adds nothing.

    Args:
        features: names of preactivation maps (B, H, W, C). Defaults to those of all three stages.
        weight: float, 1 by default (RepDistiller, scripts/run_cifar_distill.sh).
        margin: positive float, 1 by default (RepDistiller, distiller_zoo/AB.py).
        pretraining_steps: integer, at least 0. With 0 the term counts in every step.
    """

    feature_rank = 4

    def __init__(
        self,
        features=("stage1_preactivation", "stage2_preactivation", "stage3_preactivation"),
        weight=1.0,
        margin=1.0,
        pretraining_steps=0,
        name="ab",
        **kwargs,
    ):
        super().__init__(features, weight, pretraining_steps, name, **kwargs)
        self.margin = checked_positive("margin", margin)

    def build(self, student_shape, teacher_shape, labels_shape):
        super().build(student_shape, teacher_shape, labels_shape)
        self.connectors = [
            keras.layers.Identity(dtype="float32")
            if student[1:] == teacher[1:]
            else regressor(f"{feature} of {self.name}", student, teacher, relu=False)
            for feature, student, teacher in self.shape_pairs(student_shape, teacher_shape)
        ]

    def call(self, student, teacher, labels):
        total = 0.0
        pairs = zip(self.connectors, self.pairs(student, teacher), strict=True)
        for i, (connector, (s, t)) in enumerate(pairs):
            share = 2.0 ** (i + 1 - len(self.features))
            total += 0.003 * share * boundary_loss(connector(s), t, self.margin)
        return total


def boundary_loss(student: tf.Tensor, teacher: tf.Tensor, margin: float) -> tf.Tensor:
    """Returns the sum of each sample's squared distances to the right side of the margin, (B,)."""
    too_active = (teacher <= 0) & (student > -margin)
    too_silent = (teacher > 0) & (student <= margin)
    squares = tf.where(too_active, tf.square(student + margin), 0.0)
    squares += tf.where(too_silent, tf.square(student - margin), 0.0)
    return tf.reduce_sum(squares, axis=[1, 2, 3])
