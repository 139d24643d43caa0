"""Contrastive representation distillation: CRD."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from stkd_keras.errors import InputError
from stkd_keras.methods.adapters import linear
from stkd_keras.methods.arithmetic import unit_vectors
from stkd_keras.methods.base import DistillationTerm, checked_count, checked_positive
from stkd_keras.randomness import NEGATIVES, step_seed

# Added to the likelihoods, as in RepDistiller, crd/criterion.py.
EPSILON = 1e-7


@keras.saving.register_keras_serializable("stkd_keras")
class CRD(DistillationTerm):
    """Contrastive distillation: both models embed an image alike, and different images differently.

    Tian, Krishnan and Isola, "Contrastive Representation Distillation", arXiv 1910.10699, equation
    18. Both embeddings are mapped linearly to `embedding_size` numbers and divided by their norms.
    Two memory banks hold such a vector of each training image, one for the student and one for the
    teacher. Each image draws K negatives, which are images of other classes. With N training
    images and P(a, b) = exp(a . b / temperature) / Z, the loss of a sample i is

        -log(P(v, m_i) / (P(v, m_i) + K / N)) - sum over negatives j of
            log((K / N) / (P(v, m_j) + K / N))

    summed over both directions: the student's embedding v with the teacher's bank m, and vice
    versa. Z is N times the mean of exp(a . b / temperature) in the first batch. After each step,
    the image's vector in the bank becomes momentum * old + (1 - momentum) * new, divided by its
    norm.

    This follows github.com/HobbitLong/RepDistiller (mode "exact"), but draws negatives with
    replacement. They are a pure function of `seed` and the number of batches seen. An image may
    appear at most once per batch.

    Args:
        num_images: integer, the number of training images; `index` runs from 0 to num_images - 1.
        image_labels: (num_images,), the class of each training image, -1 if unknown. None if no
            class is known. For an image of unknown class, all other images are negatives.
        features: the name of one feature of vectors (B, D), ("embedding",) by default.
        weight: float, 0.8 by default (RepDistiller, scripts/run_cifar_distill.sh).
        embedding_size: integer, 128 by default (this and the next three: RepDistiller,
            train_student.py).
        num_negatives: integer, 16384 by default.
        temperature: positive float, 0.07 by default.
        momentum: float in [0, 1), 0.5 by default.
        seed: integer.

    Call arguments:
        index: (B,), integers, the number of each image in the training data.
        training: if False, the banks and the batch counter don't change.
    """

    refuses_mixing = (
        "CRD is keyed by image: its memory banks hold a vector of each training image, and a "
        "mixture is several images"
    )
    needs_index = True
    needs_one_replica = True
    feature_rank = 2

    def __init__(
        self,
        num_images: int,
        image_labels: Sequence[int] | np.ndarray | None = None,
        features=("embedding",),
        weight=0.8,
        embedding_size=128,
        num_negatives=16384,
        temperature=0.07,
        momentum=0.5,
        seed=0,
        name="crd",
        **kwargs,
    ):
        super().__init__(features, weight, name, **kwargs)
        if len(self.features) != 1:
            raise InputError(f"features of {name} is {features!r}; expected one name")
        if not 0 <= momentum < 1:
            raise InputError(f"momentum of {name} is {momentum}; expected 0 <= momentum < 1")
        self.num_images = checked_count("num_images", num_images, smallest=2)
        self.embedding_size = checked_count("embedding_size", embedding_size)
        self.num_negatives = checked_count("num_negatives", num_negatives)
        self.temperature = checked_positive("temperature", temperature)
        self.momentum = float(momentum)
        self.seed = int(seed)
        labels = None if image_labels is None else np.asarray(image_labels, np.int64)
        self.image_labels = None if labels is None else labels.tolist()
        self._order, self._start, self._count = _classes(labels, self.num_images)

    def build(self, student_shape, teacher_shape, labels_shape):
        super().build(student_shape, teacher_shape, labels_shape)
        ((_, student, teacher),) = self.shape_pairs(student_shape, teacher_shape)
        self.student_map, self.teacher_map = (linear(self.embedding_size) for _ in range(2))
        self.student_map.build(student)
        self.teacher_map.build(teacher)
        # The first vectors have a length of about 1.
        bound = (3 / self.embedding_size) ** 0.5
        shape = (self.num_images, self.embedding_size)
        self.student_bank, self.teacher_bank = (
            self._state(f"{model}_bank", shape, keras.initializers.RandomUniform(-bound, bound))
            for model in ("student", "teacher")
        )
        self.student_constant = self._state("student_constant", (), "zeros")
        self.teacher_constant = self._state("teacher_constant", (), "zeros")
        self.num_batches = self._state("num_batches", (), "zeros", dtype="int64")

    def call(self, student, teacher, labels, index=None, training=None):
        if index is None:
            raise InputError(f"{self.name} needs index=, the number of each image in the data")
        ((s, t),) = self.pairs(student, teacher)
        s, t = unit_vectors(self.student_map(s)), unit_vectors(self.teacher_map(t))
        index = tf.cast(index, tf.int32)
        picked = tf.concat([index[:, None], self._draw_negatives(index)], axis=1)
        is_frozen = training is not None and not training
        loss = 0.0
        for anchor, bank, constant in (
            (s, self.teacher_bank, self.student_constant),
            (t, self.student_bank, self.teacher_constant),
        ):
            scores = tf.matmul(anchor, tf.convert_to_tensor(bank), transpose_b=True)
            exponents = tf.gather(scores, picked, batch_dims=1) / self.temperature
            z = self._normalization(constant, exponents, is_frozen)
            loss += contrastive_loss(exponents - tf.math.log(z), self.num_images)
        if not is_frozen:
            self._remember(self.student_bank, index, s)
            self._remember(self.teacher_bank, index, t)
            self.num_batches.assign_add(1)
        return loss

    def _state(self, name: str, shape: tuple, initializer, dtype: str = "float32"):
        return self.add_weight(
            shape, initializer, dtype, trainable=False, name=name, aggregation="only_first_replica"
        )

    def _draw_negatives(self, index: tf.Tensor) -> tf.Tensor:
        """Draws images of other classes, (B, num_negatives), int32."""
        seed = step_seed(self.seed, NEGATIVES, tf.convert_to_tensor(self.num_batches))
        shape = (tf.shape(index)[0], self.num_negatives)
        bits = tf.random.stateless_uniform(
            shape, seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
        )
        start = tf.gather(self._start, index)[:, None]
        count = tf.gather(self._count, index)[:, None]
        # Scales 32 random bits to the number of places outside of the image's class.
        outside = (tf.cast(bits, tf.int64) + 2**31) * (self.num_images - count)
        place = tf.bitwise.right_shift(outside, tf.constant(32, tf.int64))
        place = tf.where(place < start, place, place + count)
        return tf.gather(self._order, place)

    def _normalization(self, constant, exponents: tf.Tensor, is_frozen: bool) -> tf.Tensor:
        """Returns Z, which is set by the first batch."""
        now = tf.convert_to_tensor(constant)
        first = tf.reduce_mean(tf.exp(tf.stop_gradient(exponents))) * self.num_images
        z = tf.where(now > 0, now, first)
        if not is_frozen:
            constant.assign(z)
        return z

    def _remember(self, bank, index: tf.Tensor, vectors: tf.Tensor) -> None:
        old = tf.convert_to_tensor(bank)
        vectors = self.momentum * tf.gather(old, index) + (1 - self.momentum) * vectors
        bank.assign(tf.tensor_scatter_nd_update(old, index[:, None], unit_vectors(vectors)))


def contrastive_loss(log_likelihoods: tf.Tensor, num_images: int) -> tf.Tensor:
    """Returns the loss (B,), given log P of one positive and K negatives, (B, 1 + K)."""
    noise = (log_likelihoods.shape[1] - 1) / num_images
    likelihoods = tf.exp(log_likelihoods) + EPSILON
    positive = log_likelihoods[:, 0] - tf.math.log(likelihoods[:, 0] + noise)
    # A difference of two logarithms would round these thousands of small numbers to 0.
    negatives = -tf.math.log1p(likelihoods[:, 1:] / noise)
    return -(positive + tf.reduce_sum(negatives, axis=1))


def _classes(labels: np.ndarray | None, num_images: int) -> tuple[np.ndarray, ...]:
    """Returns the images ordered by class, and the start and size of each image's class there."""
    if labels is None:
        labels = np.full(num_images, -1)
    if labels.shape != (num_images,):
        raise InputError(
            f"image_labels has shape {labels.shape}; expected one label for each of the "
            f"{num_images} training images"
        )
    # An image of unknown class is a class of its own.
    own_classes = labels.max() + 1 + np.arange(num_images)
    classes = np.where(labels < 0, own_classes, labels)
    _, place, count = np.unique(classes, return_inverse=True, return_counts=True)
    if len(count) < 2:
        raise InputError("image_labels has only one class, so there are no negatives")
    order = np.argsort(classes, kind="stable").astype(np.int32)
    start = np.cumsum(count) - count
    return order, start[place], count[place]
