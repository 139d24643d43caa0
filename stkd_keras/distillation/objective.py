"""What the distiller does with further terms of its loss, the layers of `stkd_keras.methods`."""

from collections.abc import Sequence

import tensorflow as tf

from stkd_keras.methods import DistillationTerm


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
