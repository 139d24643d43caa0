"""The method that transfers how maps develop from stage to stage: FSP."""

import itertools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from stkd_keras.errors import InputError
from stkd_keras.methods.arithmetic import per_sample_mean, pooled_alike
from stkd_keras.methods.base import PretrainedTerm


@keras.saving.register_keras_serializable("stkd_keras")
class FSP(PretrainedTerm):
    """Flow of the solution procedure: Gram matrices between the maps of neighbouring stages.

    Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and
    Transfer Learning", CVPR 2017. For a sample, summed over neighbouring features f, g,

        mean over channels c, d of (F(s)_cd - F(t)_cd)^2,
        F_cd = mean over positions of f_c * g_d

    where the larger of f and g is averaged down to the other's size. The two models need equal
    numbers of channels. The method trains the student's body alone with it, 30 epochs in
    github.com/HobbitLong/RepDistiller; afterwards the term adds nothing.

    Args:
        features: names of maps (B, H, W, C), at least two, from front to back; all three stages by
            default. RepDistiller takes "stem" before them.
        weight: float, 50 by default (RepDistiller, scripts/run_cifar_distill.sh).
        pretraining_steps: integer, at least 0, the stage's steps; with 0 the term counts in every
            step.
        name: string.
    """

    feature_rank = 4

    def __init__(
        self,
        features: Sequence[str] = ("stage1", "stage2", "stage3"),
        weight: float = 50.0,
        pretraining_steps: int = 0,
        name: str = "fsp",
        **kwargs: Any,
    ):
        super().__init__(features, weight, pretraining_steps, name, **kwargs)
        if len(self.features) < 2:
            raise InputError(f"features of {name} is {features!r}; expected at least two names")

    def build(self, student_shape, teacher_shape, labels_shape):
        """Checks that the channels agree; there is nothing to make."""
        super().build(student_shape, teacher_shape, labels_shape)
        for feature, student, teacher in self.shape_pairs(student_shape, teacher_shape):
            if student[-1] != teacher[-1]:
                raise InputError(
                    f"{feature} has {student[-1]} channels in the student and {teacher[-1]} in the "
                    f"teacher, but {self.name} expects equal numbers; choose models of equal "
                    "widths or another method"
                )

    def call(self, student, teacher, labels):
        """Returns the loss of each sample, (B,)."""
        pairs = list(self.pairs(student, teacher))
        return sum(
            flow_loss(flow_matrix(s, next_s), flow_matrix(t, next_t))
            for (s, t), (next_s, next_t) in itertools.pairwise(pairs)
        )


def flow_matrix(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Returns the mean products of two maps' channels, (B, C, D)."""
    first, second = pooled_alike(first, second)
    positions = first.shape[1] * first.shape[2]
    return tf.einsum("bhwc,bhwd->bcd", first, second) / positions


def flow_loss(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Returns the mean squared difference of two matrices of each sample, (B,)."""
    return per_sample_mean(tf.math.squared_difference(student, teacher))
