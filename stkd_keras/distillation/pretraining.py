"""The stage before training that some methods have."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from stkd_keras.distribution.replicas import assign
from stkd_keras.methods import DistillationTerm, PretrainedTerm


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
