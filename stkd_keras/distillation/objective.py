"""The training loss: label loss, soft loss and loss terms."""

from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

from stkd_keras.classifiers.features import OUTPUTS, with_features
from stkd_keras.distillation.pretraining import pretraining_steps, stage_name
from stkd_keras.labels import normalize_soft_labels
from stkd_keras.losses import SoftTargetLoss
from stkd_keras.methods import DistillationTerm
from stkd_keras.methods.base import feature_names

# What `fit` logs if the data have no labels.
LOGGED_WITHOUT_LABELS = ("loss", "soft_loss", "teacher_agreement")


class Objective:
    """Computes the losses of a batch and tracks each with a metric."""

    def __init__(self, temperature, soft_weight, label_weight, terms, has_teacher):
        self.soft_weight, self.label_weight, self.terms = soft_weight, label_weight, terms
        self._soft_loss = SoftTargetLoss(temperature)
        self._cross_entropy = keras.losses.CategoricalCrossentropy(
            from_logits=True, dtype="float32", name="label_loss"
        )
        names = ["label_loss", "soft_loss", "teacher_agreement"] if has_teacher else ["label_loss"]
        names += [term.name for term in terms]
        names += [stage_name(term) for term in terms if term.pretraining_steps]
        self.trackers = {name: keras.metrics.Mean(name=name) for name in names}

    def label_loss(self, logits, soft_labels, sample_weight) -> tf.Tensor:
        """Returns the cross-entropy with the labels, a scalar."""
        soft_labels, weights = normalize_soft_labels(soft_labels, sample_weight)
        return _scalar(self._cross_entropy(soft_labels, logits, weights))

    def training_loss(self, student, targets, sample_weight) -> tf.Tensor:
        """Returns the weighted sum of all losses, a scalar."""
        labels, teacher = targets["labels"], targets.get("teacher")
        size = tf.shape(labels)[0]
        loss = self.label_loss(student["logits"], labels, sample_weight)
        self._track("label_loss", loss, size)
        total = self.label_weight * loss
        if not teacher:
            return total
        loss = _scalar(self._soft_loss(teacher["logits"], student["logits"], sample_weight))
        self._track("soft_loss", loss, size)
        total += self.soft_weight * loss
        agrees = tf.argmax(teacher["logits"], axis=-1) == tf.argmax(student["logits"], axis=-1)
        self.trackers["teacher_agreement"].update_state(tf.cast(agrees, tf.float32))
        return self._add_terms(total, student, targets, sample_weight)

    def _add_terms(self, total, student, targets, sample_weight):
        """Adds the loss terms; during pretraining, returns only the pretraining losses."""
        labels, step = targets["labels"], targets["step"]
        size = tf.shape(labels)[0]
        inputs = student, targets["teacher"], labels, sample_weight
        pretraining = 0.0
        for term in self.terms:
            index = {"index": targets["index"]} if term.needs_index else {}
            loss = term_loss(term, term, *inputs, training=True, **index)
            self._track(term.name, loss, size)
            if not term.only_in_pretraining:
                total += term.weight * loss
            if term.pretraining_steps:
                if not term.only_in_pretraining:
                    loss = tf.cond(
                        step < term.pretraining_steps,
                        lambda t=term: term_loss(t.pretraining_loss, t, *inputs),
                        lambda: tf.constant(0.0),
                    )
                self._track(stage_name(term), loss, size)
                pretraining += loss
        steps = pretraining_steps(self.terms)
        return tf.where(step < steps, pretraining, total) if steps else total

    def _track(self, name: str, loss, size) -> None:
        # Keras divides losses by the number of replicas, so that their sum is the batch's.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        self.trackers[name].update_state(loss * replicas, sample_weight=size)


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
    student_shapes, teacher_shapes = {OUTPUTS: logits}, {"logits": logits}

    def teacher_logits(x):
        return {"logits": teacher(x)}

    teacher_outputs: Callable = teacher_logits
    names = feature_names(terms)
    if names:
        student = with_features(student, names, student_features, "student")
        student_shapes = {n: tf.TensorShape(tensor.shape) for n, tensor in student.output.items()}
        teacher_outputs, shapes = teacher.with_features(names, teacher_features)
        teacher_shapes = {**shapes, "logits": logits}
    for term in terms:
        if not term.built:
            of_student, of_teacher = (
                {name: tuple(shapes[name]) for name in term.features}
                for shapes in ({**student_shapes, "logits": logits}, teacher_shapes)
            )
            term.build(of_student, of_teacher, (None, num_classes))
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
    if replicas == 1:
        return compute()
    loss = tf.cond(tf.shape(soft_labels)[0] > 0, compute, lambda: tf.constant(0.0))
    return loss / replicas


def _scalar(loss) -> tf.Tensor:
    # Keras returns the loss of an empty batch, which a replica can get, unreduced.
    return tf.reduce_sum(loss)
