"""Methods that compare summaries of maps, without adapters: AT and NST."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from stkd_keras.methods.arithmetic import flat, per_sample_mean, pooled_alike, unit_vectors
from stkd_keras.methods.base import DistillationTerm


@keras.saving.register_keras_serializable("stkd_keras")
class AT(DistillationTerm):
    """Attention transfer: the student looks where the teacher looks.

    Zagoruyko and Komodakis, "Paying More Attention to Attention", arXiv 1612.03928. For a sample
    with maps s and t, summed over the features,

        mean over positions of (a(s) - a(t))^2,  a(f) = q / |q|,  q = mean over channels of f^2

    Maps of different sizes are averaged down to the smaller. The mean over positions in place of
    the norm is github.com/HobbitLong/RepDistiller's.

    Args:
        features: names of maps (B, H, W, C), all three stages by default.
        weight: float, 1000 by default (RepDistiller, scripts/run_cifar_distill.sh).
        name: string.
    """

    feature_rank = 4

    def __init__(
        self,
        features: Sequence[str] = ("stage1", "stage2", "stage3"),
        weight: float = 1000.0,
        name: str = "at",
        **kwargs: Any,
    ):
        super().__init__(features, weight, name, **kwargs)

    def call(self, student, teacher, labels):
        """Returns the loss of each sample, (B,), summed over the features."""
        return sum(attention_loss(s, t) for s, t in self.pairs(student, teacher))


@keras.saving.register_keras_serializable("stkd_keras")
class NST(DistillationTerm):
    """Neuron selectivity transfer: channels of the student are selective as the teacher's are.

    Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
    arXiv 1707.01219: the squared maximum mean discrepancy between the channels of the two, with
    the kernel k(a, b) = (a . b)^2. For a sample with maps s and t, summed over the features,

        mean_ij k(t_i, t_j) + mean_ij k(s_i, s_j) - 2 mean_ij k(s_i, t_j)

    where s_i is a channel's map divided by its norm. Maps of different sizes are averaged down to
    the smaller, as in github.com/HobbitLong/RepDistiller.

    Args:
        features: names of maps (B, H, W, C), all three stages by default.
        weight: float, 50 by default (RepDistiller, scripts/run_cifar_distill.sh).
        name: string.
    """

    feature_rank = 4

    def __init__(
        self,
        features: Sequence[str] = ("stage1", "stage2", "stage3"),
        weight: float = 50.0,
        name: str = "nst",
        **kwargs: Any,
    ):
        super().__init__(features, weight, name, **kwargs)

    def call(self, student, teacher, labels):
        """Returns the loss of each sample, (B,), summed over the features."""
        return sum(selectivity_loss(s, t) for s, t in self.pairs(student, teacher))


def attention_loss(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Returns the mean squared difference of the attention maps of each sample, (B,)."""
    student, teacher = pooled_alike(student, teacher)
    return per_sample_mean(
        tf.math.squared_difference(attention_map(student), attention_map(teacher))
    )


def attention_map(maps: tf.Tensor) -> tf.Tensor:
    """Returns how strongly each position is active, one unit vector a sample, (B, H * W)."""
    return unit_vectors(flat(tf.reduce_mean(tf.square(maps), axis=-1)))


def selectivity_loss(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Returns the squared maximum mean discrepancy of the channels of each sample, (B,)."""
    student, teacher = (_channels(maps) for maps in pooled_alike(student, teacher))
    kernel_means = [
        per_sample_mean(tf.square(tf.matmul(a, b, transpose_a=True)))
        for a, b in ((teacher, teacher), (student, student), (student, teacher))
    ]
    return kernel_means[0] + kernel_means[1] - 2 * kernel_means[2]


def _channels(maps: tf.Tensor) -> tf.Tensor:
    """(B, H * W, C): each channel's map, of length 1."""
    _, height, width, channels = maps.shape
    return unit_vectors(tf.reshape(maps, [-1, height * width, channels]), axis=1)
