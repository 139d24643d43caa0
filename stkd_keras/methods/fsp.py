"""Flow of the solution procedure: FSP."""

import itertools

import keras
import tensorflow as tf

from stkd_keras.errors import InputError
from stkd_keras.methods.arithmetic import pooled_alike, squared_error
from stkd_keras.methods.base import PretrainedTerm


@keras.saving.register_keras_serializable("stkd_keras")
class FSP(PretrainedTerm):
    """Flow of the solution procedure: Gram matrices between the maps of neighboring stages.

    Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and
    Transfer Learning", CVPR 2017. The loss of a sample, summed over neighboring features f and g,
    is

        mean over channels c, d of (F(s)_cd - F(t)_cd)^2,
        F_cd = mean over positions of f_c * g_d

    The larger of f and g is average-pooled to the size of the smaller. Both models need the same
    numbers of channels. This loss alone pretrains the student's body (for 30 epochs in
    github.com/HobbitLong/RepDistiller); after that the term adds nothing.

    Args:
        features: names of at least two maps (B, H, W, C), in the order of the model. Defaults to
            all three stages; RepDistiller uses "stem" as well.
        weight: float, 50 by default (RepDistiller, scripts/run_cifar_distill.sh).
        pretraining_steps: integer, at least 0. With 0 the term counts in every step.
    """

    feature_rank = 4
    same_last_size = True

    def __init__(
        self,
        features=("stage1", "stage2", "stage3"),
        weight=50.0,
        pretraining_steps=0,
        name="fsp",
        **kwargs,
    ):
        super().__init__(features, weight, pretraining_steps, name, **kwargs)
        if len(self.features) < 2:
            raise InputError(f"features of {name} is {features!r}; expected at least two names")

    def call(self, student, teacher, labels):
        pairs = list(self.pairs(student, teacher))
        return sum(
            squared_error(flow_matrix(s, next_s), flow_matrix(t, next_t))
            for (s, t), (next_s, next_t) in itertools.pairwise(pairs)
        )


def flow_matrix(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Returns the mean products of the channels of two maps, (B, C, D)."""
    first, second = pooled_alike(first, second)
    positions = first.shape[1] * first.shape[2]
    return tf.einsum("bhwc,bhwd->bcd", first, second) / positions
