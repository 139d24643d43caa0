"""Methods that compare logits: DKD, DIST and distillation of standardized logits."""

import keras
import tensorflow as tf

from stkd_keras.losses import SoftTargetLoss
from stkd_keras.methods.arithmetic import lengths
from stkd_keras.methods.base import DistillationTerm, checked_positive, checked_weight

# Added to a product of norms and to a standard deviation, as in the original code.
DIST_EPSILON = 1e-8
STANDARD_DEVIATION_EPSILON = 1e-7
# The logit of a class that is left out; infinity would make gradients NaN.
EXCLUDED = -1e9
# Relative size of rounding errors: several times the float32 precision.
ROUNDING = 1e-6


class _LogitsTerm(DistillationTerm):
    """Base class of terms that compare logits at a temperature."""

    feature_rank = 2
    same_last_size = True
    uses_logits_only = True

    def __init__(self, features, weight, temperature, name, **kwargs):
        super().__init__(features, weight, name, **kwargs)
        self.temperature = checked_positive("temperature", temperature)


@keras.saving.register_keras_serializable("stkd_keras")
class DKD(_LogitsTerm):
    """Decoupled distillation: separate weights for the target class and for all other classes.

    Zhao et al., "Decoupled Knowledge Distillation", arXiv 2203.08679. With the softmaxes p of the
    teacher and q of the student at temperature T, the loss of a sample, summed over the features,
    is

        T^2 * (alpha * KL((p_y, 1 - p_y) || (q_y, 1 - q_y)) + beta * KL(p' || q'))

    where y is the target class, and p' and q' are the probabilities of the other classes, divided
    by their sum. Plain distillation is alpha = 1, beta = 1 - p_y. The target of a soft label is
    its most likely class. The loss of an unlabeled sample is 0. With two classes, the second KL is
    0.

    Args:
        features: names of logits (B, C), ("logits",) by default.
        weight: float, 1 by default. github.com/megvii-research/mdistiller increases it from 0
            over the first 20 epochs.
        temperature: positive float, T, 4 by default (this and the next two: mdistiller,
            mdistiller/engine/cfg.py).
        alpha: float, at least 0, 1 by default.
        beta: float, at least 0, 8 by default. mdistiller's configurations choose it for each pair
            of models.
    """

    refuses_mixing = (
        "DKD separates the target class from all others, and a mixture has several targets"
    )
    two_classes = "its second part is 0 and beta has no effect"

    def __init__(
        self,
        features=("logits",),
        weight=1.0,
        temperature=4.0,
        alpha=1.0,
        beta=8.0,
        name="dkd",
        **kwargs,
    ):
        super().__init__(features, weight, temperature, name, **kwargs)
        self.alpha = checked_weight("alpha", alpha)
        self.beta = checked_weight("beta", beta)

    def call(self, student, teacher, labels):
        total = 0.0
        for s, t in self.pairs(student, teacher):
            target_loss, other_loss = decoupled_losses(s, t, labels, self.temperature)
            total += self.alpha * target_loss + self.beta * other_loss
        return total


@keras.saving.register_keras_serializable("stkd_keras")
class DIST(_LogitsTerm):
    """Relations of probabilities: correlated with the teacher's for each sample and each class.

    Huang et al., "Knowledge Distillation from A Stronger Teacher", arXiv 2205.10536. With the
    softmaxes p of the teacher and q of the student at temperature T and Pearson's correlation r,
    the loss of a batch, summed over the features, is

        T^2 * (beta * (1 - mean over samples of r(q_i., p_i.))
               + gamma * (1 - mean over classes of r(q_.c, p_.c)))

    With two classes, r(q_i., p_i.) is 1 or -1, and has no gradient.

    Args:
        features: names of logits (B, C), ("logits",) by default.
        weight: float, 1 by default (this and the next three: github.com/hunto/DIST_KD, whose
            classification code is github.com/hunto/image_classification_sota,
            lib/models/losses/kd_loss.py).
        temperature: positive float, T, 1 by default.
        beta: float, at least 0, 1 by default.
        gamma: float, at least 0, 1 by default.
    """

    two_classes = "its first part (beta) has no gradient"

    def __init__(
        self,
        features=("logits",),
        weight=1.0,
        temperature=1.0,
        beta=1.0,
        gamma=1.0,
        name="dist",
        **kwargs,
    ):
        super().__init__(features, weight, temperature, name, **kwargs)
        self.beta = checked_weight("beta", beta)
        self.gamma = checked_weight("gamma", gamma)

    def pair_loss(self, student, teacher):
        q, p = (tf.nn.softmax(logits / self.temperature) for logits in (student, teacher))
        losses = self.beta * relation_loss(q, p, axis=1)
        losses += self.gamma * relation_loss(q, p, axis=0)
        return self.temperature**2 * losses


@keras.saving.register_keras_serializable("stkd_keras")
class StandardizedKD(_LogitsTerm):
    """Knowledge distillation of standardized logits: the student need not match their scale.

    Sun et al., "Logit Standardization in Knowledge Distillation", arXiv 2403.01427. The loss of a
    sample at temperature T, summed over the features, is

        T^2 * KL(softmax(z(t) / T) || softmax(z(s) / T)),  z(x) = (x - mean(x)) / std(x)

    with the mean and the unbiased standard deviation over the classes. With two classes, z only
    tells which of them is likelier.

    Args:
        features: names of logits (B, C), ("logits",) by default.
        weight: float, 9 by default (this and the next: the command for CIFAR-100 in the README of
            github.com/sunshangquan/logit-standardization-KD).
        temperature: positive float, T, 2 by default.
    """

    two_classes = "standardized logits only tell which class is likelier"

    def __init__(
        self, features=("logits",), weight=9.0, temperature=2.0, name="kd_standardized", **kwargs
    ):
        super().__init__(features, weight, temperature, name, **kwargs)

    def pair_loss(self, student, teacher):
        loss = SoftTargetLoss(self.temperature)
        return loss.call(standardized(teacher), standardized(student))


def decoupled_losses(
    student: tf.Tensor, teacher: tf.Tensor, labels: tf.Tensor, temperature: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns DKD's losses of the target class and of the other classes, (B,) each, times T^2."""
    is_target = tf.one_hot(tf.argmax(labels, axis=1), labels.shape[1]) > 0
    has_label = tf.cast(tf.reduce_max(labels, axis=1) > 0, tf.float32)
    p, q = (_decoupled(logits / temperature, is_target) for logits in (teacher, student))
    target_loss, other_loss = (
        tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=1)
        for log_p, log_q in zip(p, q, strict=True)
    )
    scale = temperature**2 * has_label
    return scale * target_loss, scale * other_loss


def relation_loss(student: tf.Tensor, teacher: tf.Tensor, axis: int) -> tf.Tensor:
    """Returns 1 minus the mean Pearson correlation of probabilities (B, C) along an axis."""
    s, t = _deviations(student, axis), _deviations(teacher, axis)
    products = tf.reduce_sum(s * t, axis=axis, keepdims=True)
    return 1.0 - tf.reduce_mean(products / (lengths(s, axis) * lengths(t, axis) + DIST_EPSILON))


def standardized(logits: tf.Tensor) -> tf.Tensor:
    """Returns logits (B, C) with mean 0 and an unbiased standard deviation of 1."""
    centered = _deviations(logits, axis=1)
    deviation = lengths(centered, axis=1) / (logits.shape[1] - 1) ** 0.5
    return centered / (deviation + STANDARD_DEVIATION_EPSILON)


def _deviations(values: tf.Tensor, axis: int) -> tf.Tensor:
    """Returns differences from the mean along an axis; 0 if they are rounding errors only."""
    deviations = values - tf.reduce_mean(values, axis=axis, keepdims=True)
    # After the division by its norm, a rounding error would count like any other deviation.
    is_rounding = lengths(deviations, axis) <= ROUNDING * lengths(values, axis)
    return tf.where(is_rounding, 0.0, deviations)


def _decoupled(logits: tf.Tensor, is_target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns log-probabilities of target and non-target (B, 2), and among non-targets (B, C)."""
    log_softmax = tf.nn.log_softmax(logits)
    target = tf.reduce_sum(tf.where(is_target, log_softmax, 0.0), axis=1)
    others = tf.reduce_logsumexp(tf.where(is_target, EXCLUDED, log_softmax), axis=1)
    among_others = tf.nn.log_softmax(tf.where(is_target, EXCLUDED, logits))
    return tf.stack([target, others], axis=1), among_others
