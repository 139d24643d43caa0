"""What the distiller does with further terms of its loss, the layers of `stkd_keras.methods`."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from stkd_keras.distribution import assign
from stkd_keras.errors import InputError
from stkd_keras.methods import DistillationTerm, PretrainedTerm
from stkd_keras.replay import RecordedTeacher

# Names of what else `fit` logs.
_TAKEN = {"loss", "soft_loss", "label_loss", "clean_soft_loss", "teacher_agreement"}


def check_terms(terms: Sequence[keras.layers.Layer], teacher, mixing) -> None:
    """Refuses terms that the rest of a distiller's settings doesn't allow.

    Raises:
        InputError: with what was given, what was expected, and what to do.
    """
    names = [term.name for term in terms if isinstance(term, DistillationTerm)]
    for term in terms:
        if not isinstance(term, DistillationTerm):
            raise InputError(
                f"terms has {term!r}, but must hold layers of stkd_keras.methods, or others that "
                "subclass its DistillationTerm"
            )
        if term.name in _TAKEN or names.count(term.name) > 1:
            raise InputError(
                f"a term is called {term.name!r}, as something else that is logged; pass it name="
            )
        if teacher is None:
            raise InputError(f"{term.name} compares with a teacher, but there is none; pass one")
        if mixing is not None and term.refuses_mixing:
            raise InputError(
                f"{term.name} isn't defined on mixed images: {term.refuses_mixing}; leave mixing "
                "out (mixing=None, --mixing=none), or choose another method"
            )
    needed = feature_names(terms)
    if needed and isinstance(teacher, RecordedTeacher):
        raise InputError(
            f"the recording {teacher.path} holds the teacher's logits, but {', '.join(names)} "
            f"needs its {', '.join(needed)}; take the teacher itself (without --replay)"
        )


def feature_names(terms: Sequence[DistillationTerm]) -> list[str]:
    """Returns the names of all inner features that terms need; the logits are always there."""
    return sorted({name for term in terms for name in term.features} - {"logits"})


def build_terms(
    terms: Sequence[DistillationTerm],
    student_shapes: dict[str, tf.TensorShape],
    teacher_shapes: dict[str, tf.TensorShape],
    num_classes: int,
) -> None:
    """Makes the terms' adapters for features of these shapes, each (None, ...)."""
    for term in terms:
        if not term.built:
            mine, its = (
                {name: tuple(shapes[name]) for name in term.features}
                for shapes in (student_shapes, teacher_shapes)
            )
            term.build(mine, its, (None, num_classes))


def loss_of(
    function,
    term: DistillationTerm,
    student: dict[str, tf.Tensor],
    teacher: dict[str, tf.Tensor],
    labels: tf.Tensor,
    sample_weight,
    **kwargs,
) -> tf.Tensor:
    """Computes a term, scaled for distribution as Keras's losses are.

    Args:
        function: the term, or its `pretraining_loss`.
        term: the term.
        student: float32 tensors by name.
        teacher: likewise.
        labels: rows (B, C).
        sample_weight: None, or (B,) or (B, 1); of a loss of pairs or batches there is none.
        **kwargs: of the term's call: `training`, and `index` where the term needs it.

    Returns:
        A scalar; 0 for an empty batch.
    """
    student, teacher = ({n: given[n] for n in term.features} for given in (student, teacher))

    def compute():
        values = function(student, teacher, labels, **kwargs)
        if values.shape.rank and sample_weight is not None:
            values *= tf.reshape(tf.cast(sample_weight, values.dtype), [-1])
        return tf.reduce_mean(values)

    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas == 1:
        return compute()
    loss = tf.cond(tf.shape(labels)[0] > 0, compute, lambda: tf.constant(0.0))
    return loss / replicas


def hold_still(terms: Sequence[DistillationTerm], student: keras.Model, step: tf.Tensor):
    """Remembers what a step mustn't change, though weight decay and momentum would.

    Args:
        terms: the terms.
        student: the student, which no stage but its own changes.
        step: scalar integer tensor.

    Returns:
        A function to call when the step is done.
    """
    pretrained = [t for t in terms if isinstance(t, PretrainedTerm) and t.pretraining_steps]
    held: list[tuple[keras.Variable, tf.Tensor, tf.Tensor]] = []
    if pretrained and not any(term.pretrains_student for term in pretrained):
        in_stage = step < max(term.pretraining_steps for term in pretrained)
        held += [(v, in_stage, tf.identity(v)) for v in student.variables]
    for term in pretrained:
        is_over = step >= term.pretraining_steps
        for layer in term.pretrained_layers:
            held += [(v, is_over, tf.identity(v)) for v in layer.variables]

    def release() -> None:
        values = [tf.where(holds, before, v) for v, holds, before in held]
        assign([v for v, _, _ in held], values)

    return release
