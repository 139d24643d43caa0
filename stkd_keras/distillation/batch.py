"""The parts of a training batch."""

import types
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from stkd_keras.errors import InputError
from stkd_keras.labels import checked_soft_labels
from stkd_keras.methods import DistillationTerm
from stkd_keras.teacher.recorded import RecordedTeacher


def step_counter() -> types.SimpleNamespace:
    """Returns the step in a plain object, where Keras doesn't count it among the weights.

    A callback that restores the best weights must not turn it back.
    """
    step = keras.Variable(
        0, dtype="int64", trainable=False, aggregation="only_first_replica", name="step"
    )
    return types.SimpleNamespace(step=step)


def as_tensor(x) -> tf.Tensor:
    """Returns the inputs of a batch as one tensor (B, ...) of known rank."""
    if isinstance(x, list | tuple) and len(x) == 1:
        (x,) = x
    if isinstance(x, np.ndarray):
        x = tf.convert_to_tensor(x)
    if not isinstance(x, tf.Tensor):
        raise InputError(
            f"a batch has inputs of type {type(x).__name__}, but must be (images, labels) with one "
            "tensor (B, ...) of images"
        )
    if x.shape.rank is None:
        raise InputError(
            "the shape of the inputs is unknown; give the generator an output_signature of "
            "tf.TensorSpec with shapes"
        )
    return x


def split_targets(
    y, teacher, terms: Sequence[DistillationTerm], label_weight: float
) -> tuple[Any, dict[str, tf.Tensor], tf.Tensor | None]:
    """Returns the labels of a batch, its image indices as {"index": (B,)}, and recorded logits."""
    recorded_logits = None
    if isinstance(teacher, RecordedTeacher):
        if not isinstance(y, dict) or "teacher_logits" not in y:
            raise InputError(
                f"the teacher is the recording {teacher.path}, but the data don't have its logits; "
                "pass fit its attach(train_ds)"
            )
        y, recorded_logits = y["labels"], y["teacher_logits"]
    has_index = isinstance(y, dict) and "index" in y
    needing = [term.name for term in terms if term.needs_index]
    if needing and not has_index:
        raise InputError(
            f"{needing[0]} needs the index of each image; pass fit batches of (images, "
            '{"labels": labels, "index": indices}), such as those of '
            "pipeline(..., with_index=True)"
        )
    labels, index = (y["labels"], {"index": y["index"]}) if has_index else (y, {})
    if labels is None and label_weight > 0:
        raise InputError(
            "the data have no labels; pass batches of (images, labels), with -1 for an unlabeled "
            "image, or set label_weight=0"
        )
    return labels, index, recorded_logits


def soft_labels(labels, x: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Returns float32 soft labels (B, C); zeros if there are none."""
    if labels is None:
        return tf.zeros((size(x), num_classes))
    # `prepare` converts integers before the step, but can't for a distributed data set. XLA drops
    # the check, but a label out of range makes the loss NaN.
    return checked_soft_labels(tf.convert_to_tensor(labels), num_classes, size(x))


def size(tensor: tf.Tensor) -> tf.Tensor | int:
    """Returns the number of samples; an integer if it is known."""
    return tensor.shape[0] or tf.shape(tensor)[0]


def without_padding(sample_weight, batch_size) -> tuple[tf.Tensor | None, tf.Tensor]:
    """Returns sample weights for which Keras's mean over the batch ignores those that are 0.

    Also returns the number of the others.
    """
    if sample_weight is None:
        return None, batch_size
    sample_weight = tf.cast(sample_weight, tf.float32)
    count = tf.math.count_nonzero(sample_weight, dtype=tf.float32)
    return tf.math.divide_no_nan(sample_weight * tf.cast(batch_size, tf.float32), count), count
