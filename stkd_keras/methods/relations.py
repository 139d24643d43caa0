"""Methods that compare relations between the samples of a batch: SP, CC, RKD and PKT."""

import keras
import tensorflow as tf

from stkd_keras.methods.adapters import linear
from stkd_keras.methods.arithmetic import flat, lengths, unit_vectors
from stkd_keras.methods.base import DistillationTerm, checked_count, checked_weight

# Added to norms, squared distances and probabilities, as in the original code.
PKT_EPSILON = 1e-7
RKD_EPSILON = 1e-12


@keras.saving.register_keras_serializable("stkd_keras")
class SP(DistillationTerm):
    """Similarity preservation: samples similar for the teacher are similar for the student.

    Tung and Mori, "Similarity-Preserving Knowledge Distillation", arXiv 1907.09682. The loss of a
    batch of B samples, summed over the features, is

        |G(s) - G(t)|^2 / B^2,  G(f) = f f^T with each row divided by its norm

    where row i of f holds all features of sample i. On several replicas, the rows are those of a
    replica's part of the batch, and the loss is divided by the number of replicas, so that it has
    the size it has on one device.

    Args:
        features: names of features of any shape. Defaults to the last stage.
        weight: float, 3000 by default (github.com/HobbitLong/RepDistiller,
            scripts/run_cifar_distill.sh).
    """

    def __init__(self, features=("stage3",), weight=3000.0, name="sp", **kwargs):
        super().__init__(features, weight, name, **kwargs)

    def pair_loss(self, student, teacher):
        differences = tf.math.squared_difference(_similarities(student), _similarities(teacher))
        return tf.reduce_mean(differences) / _num_replicas()


@keras.saving.register_keras_serializable("stkd_keras")
class CC(DistillationTerm):
    """Correlation congruence, in the form of the first author's code in RepDistiller.

    Peng et al., "Correlation Congruence for Knowledge Distillation", arXiv 1904.01802. Embeddings
    of both models are mapped linearly to the same size. With d_i = |s_i - t_i|, taken element by
    element, the loss of a batch is

        mean over i of (d_i . d_(i + 1))

    This is the code that the author contributed to github.com/HobbitLong/RepDistiller; the paper
    compares correlation matrices.

    Args:
        features: names of vectors (B, D), ("embedding",) by default.
        weight: float, 0.02 by default (RepDistiller, scripts/run_cifar_distill.sh).
        embedding_size: integer, the size that both are mapped to, 128 by default (RepDistiller).
    """

    feature_rank = 2

    def __init__(
        self, features=("embedding",), weight=0.02, embedding_size=128, name="cc", **kwargs
    ):
        super().__init__(features, weight, name, **kwargs)
        self.embedding_size = checked_count("embedding_size", embedding_size)

    def build(self, student_shape, teacher_shape, labels_shape):
        super().build(student_shape, teacher_shape, labels_shape)
        self.student_maps, self.teacher_maps = [], []
        for _, student, teacher in self.shape_pairs(student_shape, teacher_shape):
            for maps, shape in ((self.student_maps, student), (self.teacher_maps, teacher)):
                maps.append(linear(self.embedding_size))
                maps[-1].build(shape)

    def call(self, student, teacher, labels):
        maps = zip(self.student_maps, self.teacher_maps, strict=True)
        pairs = zip(maps, self.pairs(student, teacher), strict=True)
        return sum(correlation_loss(map_s(s), map_t(t)) for (map_s, map_t), (s, t) in pairs)


@keras.saving.register_keras_serializable("stkd_keras")
class RKD(DistillationTerm):
    """Relational distillation: the student keeps the teacher's distances and angles of samples.

    Park et al., "Relational Knowledge Distillation", arXiv 1904.05068. With the Huber loss h
    (threshold 1), the loss of a batch, summed over the features, is

        distance_weight * mean over i, j of h(d_ij(s), d_ij(t))
        + angle_weight * mean over i, j, k of h(cos_ijk(s), cos_ijk(t))

    where d_ij is the distance of two embeddings divided by the mean distance, and cos_ijk the
    cosine of the angle at i between j and k.

    Args:
        features: names of vectors (B, D), ("embedding",) by default.
        weight: float, 1 by default (github.com/HobbitLong/RepDistiller,
            scripts/run_cifar_distill.sh).
        distance_weight: float, 25 by default (RepDistiller, distiller_zoo/RKD.py).
        angle_weight: float, 50 by default (same source).
    """

    feature_rank = 2

    def __init__(
        self,
        features=("embedding",),
        weight=1.0,
        distance_weight=25.0,
        angle_weight=50.0,
        name="rkd",
        **kwargs,
    ):
        super().__init__(features, weight, name, **kwargs)
        self.distance_weight = checked_weight("distance_weight", distance_weight)
        self.angle_weight = checked_weight("angle_weight", angle_weight)

    def pair_loss(self, student, teacher):
        distances = _relative_distances(student), _relative_distances(teacher)
        loss = self.distance_weight * tf.reduce_mean(keras.losses.huber(*distances))
        cosines = _cosines(student), _cosines(teacher)
        return loss + self.angle_weight * tf.reduce_mean(keras.losses.huber(*cosines))


@keras.saving.register_keras_serializable("stkd_keras")
class PKT(DistillationTerm):
    """Probabilistic transfer: samples are as likely to be neighbors as for the teacher.

    Passalis and Tefas, "Probabilistic Knowledge Transfer for Deep Representation Learning",
    arXiv 1803.10837. The loss of a batch, summed over the features, is

        mean over i, j of p_ij(t) log(p_ij(t) / p_ij(s))

    where p_ij(f) is (1 + cos(f_i, f_j)) / 2, divided by its sum over j. As in
    github.com/HobbitLong/RepDistiller, after github.com/passalis/probabilistic_kt, the mean over j
    replaces the sum. Several replicas are treated as in SP.

    Args:
        features: names of vectors (B, D), ("embedding",) by default.
        weight: float, 30000 by default (RepDistiller, scripts/run_cifar_distill.sh).
    """

    feature_rank = 2

    def __init__(self, features=("embedding",), weight=30000.0, name="pkt", **kwargs):
        super().__init__(features, weight, name, **kwargs)

    def pair_loss(self, student, teacher):
        p, q = _pair_probabilities(teacher), _pair_probabilities(student)
        divergences = p * tf.math.log((p + PKT_EPSILON) / (q + PKT_EPSILON))
        return tf.reduce_mean(divergences) / _num_replicas()


def correlation_loss(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Returns the mean product of the differences of neighbors, a scalar (0 for one sample)."""
    differences = tf.abs(student - teacher)
    products = tf.reduce_sum(differences[:-1] * differences[1:])
    return products / tf.cast(tf.maximum(tf.shape(student)[0] - 1, 1), tf.float32)


def _num_replicas() -> int:
    return tf.distribute.get_strategy().num_replicas_in_sync


def _similarities(features: tf.Tensor) -> tf.Tensor:
    vectors = flat(features)
    return unit_vectors(tf.matmul(vectors, vectors, transpose_b=True))


def _relative_distances(x: tf.Tensor) -> tf.Tensor:
    squares = tf.reduce_sum(tf.square(_differences(x)), axis=-1)
    # The distance of a sample to itself is left out; equal samples count as 1e-6 apart.
    is_other = 1.0 - tf.eye(tf.shape(x)[0])
    distances = is_other * tf.sqrt(tf.maximum(squares, RKD_EPSILON))
    count = tf.reduce_sum(is_other)
    mean = tf.reduce_sum(distances) / tf.maximum(count, 1.0)
    return distances / tf.where(mean > 0, mean, 1.0)


def _cosines(x: tf.Tensor) -> tf.Tensor:
    directions = unit_vectors(_differences(x))
    return tf.matmul(directions, directions, transpose_b=True)


def _differences(x: tf.Tensor) -> tf.Tensor:
    """Returns x_j - x_i at (i, j), (B, B, D)."""
    return x[None] - x[:, None]


def _pair_probabilities(x: tf.Tensor) -> tf.Tensor:
    directions = x / (lengths(x) + PKT_EPSILON)
    similarities = (tf.matmul(directions, directions, transpose_b=True) + 1.0) / 2.0
    return similarities / tf.reduce_sum(similarities, axis=1, keepdims=True)
