"""Methods that compare how the samples of a batch relate to each other: SP, CC, RKD and PKT."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from stkd_keras.methods.adapters import linear
from stkd_keras.methods.arithmetic import flat, lengths, unit_vectors
from stkd_keras.methods.base import DistillationTerm, checked_count, checked_weight

# The numbers that the originals add to norms, squared distances and probabilities.
PKT_EPSILON = 1e-7
RKD_EPSILON = 1e-12


@keras.saving.register_keras_serializable("stkd_keras")
class SP(DistillationTerm):
    """Similarity preservation: samples that excite the teacher alike excite the student alike.

    Tung and Mori, "Similarity-Preserving Knowledge Distillation", arXiv 1907.09682. For a batch
    of B, with the features of a sample in one row, summed over the features,

        |G(s) - G(t)|^2 / B^2,  G(f) = f f^T with each row divided by its norm

    Args:
        features: names of features of any shape, the last stage by default.
        weight: float, 3000 by default (github.com/HobbitLong/RepDistiller,
            scripts/run_cifar_distill.sh).
        name: string.
    """

    def __init__(
        self,
        features: Sequence[str] = ("stage3",),
        weight: float = 3000.0,
        name: str = "sp",
        **kwargs: Any,
    ):
        super().__init__(features, weight, name, **kwargs)

    def call(self, student, teacher, labels):
        """Returns the loss of the batch, a scalar, summed over the features."""
        return sum(similarity_loss(s, t) for s, t in self.pairs(student, teacher))


@keras.saving.register_keras_serializable("stkd_keras")
class CC(DistillationTerm):
    """Correlation congruence, in the form that the bench has from its first author.

    Peng et al., "Correlation Congruence for Knowledge Distillation", arXiv 1904.01802. With the
    embeddings of both models mapped linearly to one size and d_i = |s_i - t_i| by coordinates,

        mean over i of (d_i . d_(i + 1))

    over neighbours in the batch. That is the code its author gave to
    github.com/HobbitLong/RepDistiller; the paper compares matrices of correlations.

    Args:
        features: names of vectors (B, D), ("embedding",) by default.
        weight: float, 0.02 by default (RepDistiller, scripts/run_cifar_distill.sh).
        embedding_size: integer, what both are mapped to, 128 by default (RepDistiller).
        name: string.
    """

    feature_rank = 2

    def __init__(
        self,
        features: Sequence[str] = ("embedding",),
        weight: float = 0.02,
        embedding_size: int = 128,
        name: str = "cc",
        **kwargs: Any,
    ):
        super().__init__(features, weight, name, **kwargs)
        self.embedding_size = checked_count("embedding_size", embedding_size)

    def build(self, student_shape, teacher_shape, labels_shape):
        """Makes two linear maps for each feature."""
        super().build(student_shape, teacher_shape, labels_shape)
        self.student_maps, self.teacher_maps = [], []
        for _, student, teacher in self.shape_pairs(student_shape, teacher_shape):
            for maps, shape in ((self.student_maps, student), (self.teacher_maps, teacher)):
                maps.append(linear(self.embedding_size))
                maps[-1].build(shape)

    def call(self, student, teacher, labels):
        """Returns the loss of the batch, a scalar, summed over the features."""
        maps = zip(self.student_maps, self.teacher_maps, strict=True)
        pairs = zip(maps, self.pairs(student, teacher), strict=True)
        return sum(correlation_loss(of_s(s), of_t(t)) for (of_s, of_t), (s, t) in pairs)

    def get_config(self) -> dict:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "embedding_size": self.embedding_size}


@keras.saving.register_keras_serializable("stkd_keras")
class RKD(DistillationTerm):
    """Relational distillation: the student keeps the teacher's distances and angles of samples.

    Park et al., "Relational Knowledge Distillation", arXiv 1904.05068. Over the samples of the
    batch, with h Huber's loss of threshold 1, summed over the features,

        distance_weight * mean over i, j of h(d_ij(s), d_ij(t))
        + angle_weight * mean over i, j, k of h(cos_ijk(s), cos_ijk(t))

    where d_ij is the distance of two embeddings divided by the mean distance, and cos_ijk the
    cosine of the angle at i between j and k.

    Args:
        features: names of vectors (B, D), ("embedding",) by default.
        weight: float, 1 by default (github.com/HobbitLong/RepDistiller,
            scripts/run_cifar_distill.sh).
        distance_weight: float, 25 by default (RepDistiller, distiller_zoo/RKD.py).
        angle_weight: float, 50 by default (the same).
        name: string.
    """

    feature_rank = 2

    def __init__(
        self,
        features: Sequence[str] = ("embedding",),
        weight: float = 1.0,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        name: str = "rkd",
        **kwargs: Any,
    ):
        super().__init__(features, weight, name, **kwargs)
        self.distance_weight = checked_weight("distance_weight", distance_weight)
        self.angle_weight = checked_weight("angle_weight", angle_weight)

    def call(self, student, teacher, labels):
        """Returns the loss of the batch, a scalar, summed over the features."""
        return sum(
            self.distance_weight * distance_loss(s, t) + self.angle_weight * angle_loss(s, t)
            for s, t in self.pairs(student, teacher)
        )

    def get_config(self) -> dict:
        """Returns the arguments of the constructor."""
        return {
            **super().get_config(),
            "distance_weight": self.distance_weight,
            "angle_weight": self.angle_weight,
        }


@keras.saving.register_keras_serializable("stkd_keras")
class PKT(DistillationTerm):
    """Probabilistic transfer: each sample is as likely to pick the others as with the teacher.

    Passalis and Tefas, "Probabilistic Knowledge Transfer for Deep Representation Learning",
    arXiv 1803.10837. Over the samples of the batch, summed over the features,

        mean over i, j of p_ij(t) log(p_ij(t) / p_ij(s))

    where p_ij(f) is (1 + cos(f_i, f_j)) / 2, divided by its sum over j. The mean over j in place
    of the sum is github.com/HobbitLong/RepDistiller's, after github.com/passalis/probabilistic_kt.

    Args:
        features: names of vectors (B, D), ("embedding",) by default.
        weight: float, 30000 by default (RepDistiller, scripts/run_cifar_distill.sh).
        name: string.
    """

    feature_rank = 2

    def __init__(
        self,
        features: Sequence[str] = ("embedding",),
        weight: float = 30000.0,
        name: str = "pkt",
        **kwargs: Any,
    ):
        super().__init__(features, weight, name, **kwargs)

    def call(self, student, teacher, labels):
        """Returns the loss of the batch, a scalar, summed over the features."""
        return sum(probability_loss(s, t) for s, t in self.pairs(student, teacher))


def similarity_loss(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Returns the mean squared difference of the similarities in the batch, a scalar."""
    return tf.reduce_mean(
        tf.math.squared_difference(_similarities(student), _similarities(teacher))
    )


def correlation_loss(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Returns the mean product of neighbours' differences, a scalar; of one sample 0.

    Args:
        student: (B, D).
        teacher: (B, D).
    """
    differences = tf.abs(student - teacher)
    products = tf.reduce_sum(differences[:-1] * differences[1:])
    return products / tf.cast(tf.maximum(tf.shape(student)[0] - 1, 1), tf.float32)


def distance_loss(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Returns the mean Huber loss of the relative distances in the batch, a scalar."""
    return tf.reduce_mean(_huber(_relative_distances(student), _relative_distances(teacher)))


def angle_loss(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Returns the mean Huber loss of the cosines of angles in the batch, a scalar."""
    return tf.reduce_mean(_huber(_cosines(student), _cosines(teacher)))


def probability_loss(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Returns the mean term of the divergence of the probabilities in the batch, a scalar."""
    p, q = _pair_probabilities(teacher), _pair_probabilities(student)
    return tf.reduce_mean(p * tf.math.log((p + PKT_EPSILON) / (q + PKT_EPSILON)))


def _similarities(features: tf.Tensor) -> tf.Tensor:
    rows = flat(features)
    return unit_vectors(tf.matmul(rows, rows, transpose_b=True))


def _relative_distances(x: tf.Tensor) -> tf.Tensor:
    squares = tf.reduce_sum(tf.square(_differences(x)), axis=-1)
    # Only of a sample from itself: two that are equal count as a distance of 1e-6 in the mean.
    is_other = 1.0 - tf.eye(tf.shape(x)[0])
    distances = is_other * tf.sqrt(tf.maximum(squares, RKD_EPSILON))
    count = tf.reduce_sum(is_other)
    mean = tf.reduce_sum(distances) / tf.maximum(count, 1.0)
    return distances / tf.where(mean > 0, mean, 1.0)


def _cosines(x: tf.Tensor) -> tf.Tensor:
    directions = unit_vectors(_differences(x))
    return tf.matmul(directions, directions, transpose_b=True)


def _differences(x: tf.Tensor) -> tf.Tensor:
    """(B, B, D): at (i, j) what leads from i to j."""
    return x[None] - x[:, None]


def _huber(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    difference = tf.abs(a - b)
    return tf.where(difference < 1.0, 0.5 * difference**2, difference - 0.5)


def _pair_probabilities(x: tf.Tensor) -> tf.Tensor:
    directions = x / (lengths(x) + PKT_EPSILON)
    similarities = (tf.matmul(directions, directions, transpose_b=True) + 1.0) / 2.0
    return similarities / tf.reduce_sum(similarities, axis=1, keepdims=True)
