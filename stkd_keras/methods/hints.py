"""Methods in which the student predicts the teacher's maps: FitNet and VID."""

import math

import keras
import tensorflow as tf

from stkd_keras.methods.adapters import Adapter, convolution, regressor
from stkd_keras.methods.arithmetic import per_sample_mean, pooled_alike, squared_error
from stkd_keras.methods.base import DistillationTerm

# Keeps the variance away from 0, where its logarithm is unbounded (RepDistiller's value).
SMALLEST_VARIANCE = 1e-5
FIRST_VARIANCE = 5.0


@keras.saving.register_keras_serializable("stkd_keras")
class FitNet(DistillationTerm):
    """Hints: the student's maps, passed through a regressor, approximate the teacher's.

    Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv 1412.6550. The loss of a sample with
    maps s and t, summed over the features, is

        mean over positions and channels of (r(s) - t)^2

    The regressor r is a convolution to the teacher's shape with batch normalization and ReLU, as
    in github.com/HobbitLong/RepDistiller (ConvReg). As there, the term counts throughout
    training; the paper first trains the lower half of the student with it.

    Args:
        features: names of maps (B, H, W, C). Defaults to ("stage2",), as in RepDistiller.
        weight: float, 100 by default (RepDistiller, scripts/run_cifar_distill.sh).
    """

    feature_rank = 4

    def __init__(self, features=("stage2",), weight=100.0, name="fitnet", **kwargs):
        super().__init__(features, weight, name, **kwargs)

    def build(self, student_shape, teacher_shape, labels_shape):
        super().build(student_shape, teacher_shape, labels_shape)
        self.regressors = [
            regressor(f"{feature} of {self.name}", student, teacher, relu=True)
            for feature, student, teacher in self.shape_pairs(student_shape, teacher_shape)
        ]

    def call(self, student, teacher, labels):
        pairs = zip(self.regressors, self.pairs(student, teacher), strict=True)
        return sum(squared_error(adapter(s), t) for adapter, (s, t) in pairs)


@keras.saving.register_keras_serializable("stkd_keras")
class VID(DistillationTerm):
    """Variational information distillation: the student predicts a Gaussian of the teacher's maps.

    Ahn et al., "Variational Information Distillation for Knowledge Transfer", arXiv 1904.05835.
    The loss of a sample with maps s and t, summed over the features, is

        mean over positions and channels of ((m(s) - t)^2 / v + log v) / 2

    which omits the Gaussian's constant. The mean m is three 1x1 convolutions without bias, with
    ReLUs in between and as many channels as the teacher. The variance of a channel is
    v = log(1 + exp(p)) + 1e-5 with a trainable p; v starts at 5. The larger of two maps is
    average-pooled to the size of the smaller. All of this follows
    github.com/HobbitLong/RepDistiller.

    Args:
        features: names of maps (B, H, W, C). Defaults to all three stages.
        weight: float, 1 by default (RepDistiller, scripts/run_cifar_distill.sh).
    """

    feature_rank = 4

    def __init__(self, features=("stage1", "stage2", "stage3"), weight=1.0, name="vid", **kwargs):
        super().__init__(features, weight, name, **kwargs)

    def build(self, student_shape, teacher_shape, labels_shape):
        super().build(student_shape, teacher_shape, labels_shape)
        self.means, self.variance_parameters = [], []
        # The inverse of softplus.
        first = math.log(math.expm1(FIRST_VARIANCE - SMALLEST_VARIANCE))
        for feature, student, teacher in self.shape_pairs(student_shape, teacher_shape):
            channels = teacher[-1]
            activations = ("relu", "relu", None)
            adapter = Adapter(
                [convolution(channels, 1, activation=a, use_bias=False) for a in activations]
            )
            adapter.build(student)
            self.means.append(adapter)
            initializer = keras.initializers.Constant(first)
            self.variance_parameters.append(
                self.add_weight((channels,), initializer, name=f"{feature}_variance")
            )

    def call(self, student, teacher, labels):
        total = 0.0
        pairs = self.pairs(student, teacher)
        for mean, parameter, (s, t) in zip(
            self.means, self.variance_parameters, pairs, strict=True
        ):
            s, t = pooled_alike(s, t)
            variance = tf.nn.softplus(tf.convert_to_tensor(parameter)) + SMALLEST_VARIANCE
            squares = tf.math.squared_difference(mean(s), t)
            total += 0.5 * per_sample_mean(squares / variance + tf.math.log(variance))
        return total
