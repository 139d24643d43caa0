"""Methods that compare where or how channels are active: AT and NST."""

import keras
import tensorflow as tf

from stkd_keras.methods.arithmetic import (
    flat,
    per_sample_mean,
    pooled_alike,
    squared_error,
    unit_vectors,
)
from stkd_keras.methods.base import DistillationTerm


@keras.saving.register_keras_serializable("stkd_keras")
class AT(DistillationTerm):
    """Attention transfer: the student is active at the same positions as the teacher.

    Zagoruyko and Komodakis, "Paying More Attention to Attention", arXiv 1612.03928. The loss of a
    sample with maps s and t, summed over the features, is

        mean over positions of (a(s) - a(t))^2,  a(f) = q / |q|,  q = mean over channels of f^2

    The larger of two maps is average-pooled to the size of the smaller. As in
    github.com/HobbitLong/RepDistiller, the mean over positions replaces the paper's norm.

    Args:
        features: names of maps (B, H, W, C). Defaults to all three stages.
        weight: float, 1000 by default (RepDistiller, scripts/run_cifar_distill.sh).
    """

    feature_rank = 4

    def __init__(self, features=("stage1", "stage2", "stage3"), weight=1000.0, name="at", **kwargs):
        super().__init__(features, weight, name, **kwargs)

    def pair_loss(self, student, teacher):
        student, teacher = pooled_alike(student, teacher)
        return squared_error(attention_map(student), attention_map(teacher))


@keras.saving.register_keras_serializable("stkd_keras")
class NST(DistillationTerm):
    """Neuron selectivity transfer: the student's channels match the teacher's in distribution.

    Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
    arXiv 1707.01219. The loss is the squared maximum mean discrepancy between the channels of the
    two models with the kernel k(a, b) = (a . b)^2. For a sample, summed over the features,

        mean_ij k(t_i, t_j) + mean_ij k(s_i, s_j) - 2 mean_ij k(s_i, t_j)

    where s_i and t_i are the maps of single channels divided by their norms. The larger of two
    maps is average-pooled to the size of the smaller, as in github.com/HobbitLong/RepDistiller.

    Args:
        features: names of maps (B, H, W, C). Defaults to all three stages.
        weight: float, 50 by default (RepDistiller, scripts/run_cifar_distill.sh).
    """

    feature_rank = 4

    def __init__(self, features=("stage1", "stage2", "stage3"), weight=50.0, name="nst", **kwargs):
        super().__init__(features, weight, name, **kwargs)

    def pair_loss(self, student, teacher):
        student, teacher = (_channels(maps) for maps in pooled_alike(student, teacher))
        kernel_means = [
            per_sample_mean(tf.square(tf.matmul(a, b, transpose_a=True)))
            for a, b in ((teacher, teacher), (student, student), (student, teacher))
        ]
        return kernel_means[0] + kernel_means[1] - 2 * kernel_means[2]


def attention_map(maps: tf.Tensor) -> tf.Tensor:
    """Returns how active each position is, as one unit vector per sample, (B, H * W)."""
    return unit_vectors(flat(tf.reduce_mean(tf.square(maps), axis=-1)))


def _channels(maps: tf.Tensor) -> tf.Tensor:
    """Returns the map of each channel as a unit vector, (B, H * W, C)."""
    _, height, width, channels = maps.shape
    return unit_vectors(tf.reshape(maps, [-1, height * width, channels]), axis=1)
