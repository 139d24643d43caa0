"""The pretraining stage that some methods have."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from stkd_keras.distribution.replicas import assign
from stkd_keras.methods import DistillationTerm, PretrainedTerm


def pretraining_steps(terms: Sequence[DistillationTerm]) -> int:
    """Returns the number of pretraining steps, 0 without pretraining."""
    return max([term.pretraining_steps for term in terms], default=0)


def stage_name(term: DistillationTerm) -> str:
    """Returns the name that a term's pretraining loss is logged under."""
    return f"{term.name}_pretraining"


def freeze_during_stage(
    terms: Sequence[DistillationTerm], student: keras.Model, step: tf.Tensor
) -> Callable[[], None]:
    """Returns a function that undoes a training step's changes to frozen variables.

    Weight decay and momentum would change the variables that a stage, or the training after it,
    doesn't train.
    """
    pretrained = [t for t in terms if isinstance(t, PretrainedTerm) and t.pretraining_steps]
    frozen: list[tuple[keras.Variable, tf.Tensor, tf.Tensor]] = []
    if pretrained and not any(term.pretrains_student for term in pretrained):
        in_stage = step < pretraining_steps(pretrained)
        frozen += [(v, in_stage, tf.identity(v)) for v in student.variables]
    for term in pretrained:
        is_over = step >= term.pretraining_steps
        for layer in term.pretrained_layers:
            frozen += [(v, is_over, tf.identity(v)) for v in layer.variables]

    def restore() -> None:
        values = [tf.where(is_frozen, before, v) for v, is_frozen, before in frozen]
        assign([v for v, _, _ in frozen], values)

    return restore
