"""Methods whose student predicts the teacher's maps: FitNet and VID."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from stkd_keras.methods.adapters import Adapter, convolution, regressor
from stkd_keras.methods.arithmetic import per_sample_mean, pooled_alike
from stkd_keras.methods.base import DistillationTerm

# Keeps the variance off 0, where the logarithm has no bound (the bench's number).
SMALLEST_VARIANCE = 1e-5
FIRST_VARIANCE = 5.0


@keras.saving.register_keras_serializable("stkd_keras")
class FitNet(DistillationTerm):
    """Hints: the student's maps, through a regressor, come close to the teacher's.

    Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv 1412.6550. For a sample with maps s
    and t

        mean over positions and channels of (r(s) - t)^2

    where the regressor r is a convolution to the teacher's shape, batch normalisation and ReLU,
    as github.com/HobbitLong/RepDistiller has it (ConvReg). As there, it is one term of the whole
    training; the paper trains the lower half of the student with it first.

    Args:
        features: names of maps (B, H, W, C), ("stage2",) by default as in RepDistiller.
        weight: float, 100 by default (RepDistiller, scripts/run_cifar_distill.sh).
        name: string.
    """

    feature_rank = 4

    def __init__(
        self,
        features: Sequence[str] = ("stage2",),
        weight: float = 100.0,
        name: str = "fitnet",
        **kwargs: Any,
    ):
        super().__init__(features, weight, name, **kwargs)

    def build(self, student_shape, teacher_shape, labels_shape):
        """Makes a regressor for each feature."""
        super().build(student_shape, teacher_shape, labels_shape)
        self.regressors = []
        for feature, student, teacher in self.shape_pairs(student_shape, teacher_shape):
            adapter = regressor(f"{feature} of {self.name}", student[1:], teacher[1:], relu=True)
            adapter.build(student)
            self.regressors.append(adapter)

    def call(self, student, teacher, labels):
        """Returns the loss of each sample, (B,), summed over the features."""
        pairs = zip(self.regressors, self.pairs(student, teacher), strict=True)
        return sum(hint_loss(adapter(s), t) for adapter, (s, t) in pairs)


@keras.saving.register_keras_serializable("stkd_keras")
class VID(DistillationTerm):
    """Variational information distillation: the student predicts a Gaussian of the teacher's maps.

    Ahn et al., "Variational Information Distillation for Knowledge Transfer", arXiv 1904.05835.
    For a sample with maps s and t, summed over the features,

        mean over positions and channels of ((m(s) - t)^2 / v + log v) / 2

    without the constant of the Gaussian. The mean m is three 1x1 convolutions without bias, with
    ReLU between them and as many channels as the teacher; the variance of a channel is
    v = log(1 + exp(p)) + 1e-5 with a trained p, at first v = 5. Maps of different sizes are
    averaged down to the smaller. All as in github.com/HobbitLong/RepDistiller.

    Args:
        features: names of maps (B, H, W, C), all three stages by default.
        weight: float, 1 by default (RepDistiller, scripts/run_cifar_distill.sh).
        name: string.
    """

    feature_rank = 4

    def __init__(
        self,
        features: Sequence[str] = ("stage1", "stage2", "stage3"),
        weight: float = 1.0,
        name: str = "vid",
        **kwargs: Any,
    ):
        super().__init__(features, weight, name, **kwargs)

    def build(self, student_shape, teacher_shape, labels_shape):
        """Makes the convolutions for the mean and the variance's parameters of each feature."""
        super().build(student_shape, teacher_shape, labels_shape)
        self.means, self.variance_parameters = [], []
        # The inverse of the softplus, so that the first variance is the one above.
        first = math.log(math.expm1(FIRST_VARIANCE - SMALLEST_VARIANCE))
        for feature, student, teacher in self.shape_pairs(student_shape, teacher_shape):
            channels = teacher[-1]
            options = {"use_bias": False}
            adapter = Adapter(
                [
                    convolution(channels, 1, activation="relu", **options),
                    convolution(channels, 1, activation="relu", **options),
                    convolution(channels, 1, **options),
                ]
            )
            adapter.build(student)
            self.means.append(adapter)
            self.variance_parameters.append(
                self.add_weight(
                    (channels,), keras.initializers.Constant(first), name=f"{feature}_variance"
                )
            )

    def call(self, student, teacher, labels):
        """Returns the loss of each sample, (B,), summed over the features."""
        total = 0.0
        pairs = self.pairs(student, teacher)
        for mean, parameter, (s, t) in zip(
            self.means, self.variance_parameters, pairs, strict=True
        ):
            s, t = pooled_alike(s, t)
            variance = tf.nn.softplus(tf.convert_to_tensor(parameter)) + SMALLEST_VARIANCE
            total += variational_loss(mean(s), variance, t)
        return total


def hint_loss(adapted: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Returns the mean squared difference of each sample, (B,)."""
    return per_sample_mean(tf.math.squared_difference(adapted, teacher))


def variational_loss(mean: tf.Tensor, variance: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Returns the negative logarithm of a Gaussian's density but for its constant, (B,).

    Args:
        mean: (B, H, W, C).
        variance: (C,), positive.
        teacher: (B, H, W, C).
    """
    squares = tf.math.squared_difference(mean, teacher)
    return 0.5 * per_sample_mean(squares / variance + tf.math.log(variance))
