"""The training loss: label loss, soft loss and loss terms."""

import warnings
from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

from stkd_keras.classifiers.features import OUTPUTS, with_features
from stkd_keras.distillation.batch import size
from stkd_keras.distillation.metrics import Means
from stkd_keras.distillation.pretraining import pretraining_steps, stage_name
from stkd_keras.distribution.replicas import may_be_empty
from stkd_keras.losses import SoftTargetLoss
from stkd_keras.methods import DistillationTerm
from stkd_keras.methods.base import feature_names

# What `fit` logs if the data have no labels.
LOGGED_WITHOUT_LABELS = ("loss", "soft_loss", "teacher_agreement")


class Objective:
    """Computes the losses of a batch and tracks each with a metric."""

    def __init__(self, temperature, soft_weight, label_weight, label_smoothing, terms, has_teacher):
        self.soft_weight, self.label_weight, self.terms = soft_weight, label_weight, terms
        self.label_smoothing = label_smoothing
        self._soft_loss = SoftTargetLoss(temperature)
        names = ["loss", "label_loss"] + has_teacher * ["soft_loss", "teacher_agreement"]
        names += [term.name for term in terms]
        names += [stage_name(term) for term in terms if term.pretraining_steps]
        self.means = Means(names)

    def __call__(self, student, targets, sample_weight, training: bool) -> dict[str, tf.Tensor]:
        """Returns the losses, scalars; "loss" is their weighted sum.

        In training, also returns the agreement with the teacher. Otherwise, the cross-entropy with
        the labels is the only loss.
        """
        teacher = targets.get("teacher")
        labels = targets["labels"]
        if training and self.label_smoothing:
            labels = smooth(labels, self.label_smoothing)
        loss = label_loss(student["logits"], labels, sample_weight)
        if not training:
            return {"loss": loss}
        losses = {"label_loss": loss, "loss": self.label_weight * loss}
        if teacher:
            loss = self._soft_loss.call(teacher["logits"], student["logits"])
            losses["soft_loss"] = mean_over_batch(loss, sample_weight)
            losses["loss"] += self.soft_weight * losses["soft_loss"]
            agrees = tf.argmax(teacher["logits"], axis=-1) == tf.argmax(student["logits"], axis=-1)
            losses["teacher_agreement"] = mean_over_batch(tf.cast(agrees, tf.float32))
            self._add_terms(losses, student, targets, sample_weight)
        return losses

    def _add_terms(self, losses, student, targets, sample_weight) -> None:
        """Adds the loss terms; during pretraining, returns only the pretraining losses."""
        labels, step = targets["labels"], targets["step"]
        inputs = student, targets["teacher"], labels, sample_weight
        pretraining = 0.0
        for term in self.terms:
            index = {"index": targets["index"]} if term.needs_index else {}
            loss = term_loss(term, term, *inputs, training=True, **index)
            losses[term.name] = loss
            if not term.only_in_pretraining:
                losses["loss"] += term.weight * loss
            if term.pretraining_steps:
                if not term.only_in_pretraining:
                    loss = tf.cond(
                        step < term.pretraining_steps,
                        lambda t=term: term_loss(t.pretraining_loss, t, *inputs),
                        lambda: tf.constant(0.0),
                    )
                losses[stage_name(term)] = loss
                pretraining += loss
        steps = pretraining_steps(self.terms)
        if steps:
            losses["loss"] = tf.where(step < steps, pretraining, losses["loss"])


def connect_terms(
    terms: Sequence[DistillationTerm],
    student: keras.Model,
    teacher,
    student_features: Mapping[str, str],
    teacher_features: Mapping[str, str],
    num_classes: int,
) -> tuple[Callable, dict[str, tf.TensorShape], Callable, dict[str, tf.TensorShape]]:
    """Builds the terms; returns student and teacher with features, and the shapes of these."""
    logits = tf.TensorShape([None, num_classes])
    student_shapes, teacher_shapes = {OUTPUTS: logits, "logits": logits}, {"logits": logits}

    def teacher_logits(x):
        return {"logits": teacher(x)}

    teacher_outputs: Callable = teacher_logits
    names = feature_names(terms)
    if names:
        student = with_features(student, names, student_features, "student")
        student_shapes |= {n: tf.TensorShape(student.output[n].shape) for n in names}
        teacher_outputs, shapes = teacher.with_features(names, teacher_features)
        teacher_shapes = {**shapes, "logits": logits}
    for term in terms:
        if not term.built:
            of_student, of_teacher = (
                {name: tuple(shapes[name]) for name in term.features}
                for shapes in (student_shapes, teacher_shapes)
            )
            term.build(of_student, of_teacher, (None, num_classes))
        if num_classes == 2 and term.two_classes:
            message = f"{term.name} learns little from two classes: {term.two_classes}"
            warnings.warn(message, stacklevel=4)
    return student, student_shapes, teacher_outputs, teacher_shapes


def term_loss(
    function: Callable,
    term: DistillationTerm,
    student: dict[str, tf.Tensor],
    teacher: dict[str, tf.Tensor],
    soft_labels: tf.Tensor,
    sample_weight,
    **kwargs,
) -> tf.Tensor:
    """Computes a term's loss, a scalar scaled for distribution as Keras's losses are."""
    student, teacher = (
        {name: outputs[name] for name in term.features} for outputs in (student, teacher)
    )

    def compute():
        values = function(student, teacher, soft_labels, **kwargs)
        if values.shape.rank and sample_weight is not None:
            values *= tf.reshape(tf.cast(sample_weight, values.dtype), [-1])
        return tf.reduce_mean(values)

    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if not may_be_empty(soft_labels):
        return compute() / replicas
    return tf.cond(tf.shape(soft_labels)[0] > 0, compute, lambda: tf.constant(0.0)) / replicas


def smooth(soft_labels: tf.Tensor, share: float) -> tf.Tensor:
    """Spreads a share of each label evenly over the classes; labels of zeros stay zeros."""
    return (1 - share) * soft_labels + share * tf.reduce_mean(soft_labels, axis=1, keepdims=True)


def label_loss(logits, soft_labels, sample_weight) -> tf.Tensor:
    """Returns the cross-entropy with the labels, a scalar.

    A mixed label sums to the share of its labeled images. TensorFlow's own cross-entropy has the
    right gradient only for labels that sum to 1.
    """
    losses = -tf.reduce_sum(soft_labels * tf.nn.log_softmax(logits), axis=1)
    return mean_over_batch(losses, sample_weight)


def mean_over_batch(losses, sample_weight=None) -> tf.Tensor:
    """Returns the weighted mean of losses (B,), a scalar scaled for distribution as Keras's are."""
    if sample_weight is not None:
        losses *= tf.reshape(sample_weight, [-1])
    # A replica's batch can be empty.
    count = tf.maximum(tf.cast(size(losses), tf.float32), 1)
    return tf.reduce_sum(losses) / (count * tf.distribute.get_strategy().num_replicas_in_sync)
