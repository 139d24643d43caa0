"""Converts integer, one-hot and soft labels to soft labels."""

import re
from typing import Any

import numpy as np
import tensorflow as tf

from stkd_keras.errors import InputError

_BAD_LABEL = "label out of range"


def soft_labels(labels, num_classes: int) -> np.ndarray:
    """Converts labels (B,), (B, 1) or (B, C) to float32 soft labels (B, C); -1 becomes zeros.

    Raises an InputError if the labels have another shape, or an integer is out of range.
    """
    labels = np.asarray(labels)
    if not _are_integers(labels.shape, num_classes):
        return labels.astype(np.float32, copy=False)
    indices = labels.reshape(-1)
    bad = indices[~_is_valid(indices, num_classes)]
    if bad.size:
        raise _out_of_range(bad[0], num_classes)
    one_hot = np.zeros((len(indices), num_classes), np.float32)
    labeled = indices >= 0
    one_hot[np.flatnonzero(labeled), indices[labeled].astype(np.int64)] = 1
    return one_hot


def checked_soft_labels(labels: tf.Tensor, num_classes: int, batch_size: tf.Tensor) -> tf.Tensor:
    """Like `soft_labels`, for a tf.data function: also takes labels of unknown shape.

    A label out of range fails there with an error that `label_error` recognizes.
    """
    if labels.shape.rank is None or (labels.shape.rank == 2 and labels.shape[1] is None):
        return tf.cond(
            tf.size(labels) == batch_size,
            lambda: checked_soft_labels(tf.reshape(labels, [-1]), num_classes, batch_size),
            lambda: as_soft_labels(tf.reshape(labels, [-1, num_classes]), num_classes),
        )
    if not _are_integers(labels.shape, num_classes):
        return tf.cast(labels, tf.float32)
    indices = tf.reshape(labels, [-1])
    is_valid = _is_valid(indices, num_classes)
    bad = tf.boolean_mask(indices, ~is_valid)[:1]
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(is_valid), [_BAD_LABEL, bad])]):
        return as_soft_labels(indices, num_classes)


def as_soft_labels(labels: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Converts labels of known rank to float32 soft labels (B, C); those out of range to NaN."""
    if not _are_integers(labels.shape, num_classes):
        return tf.cast(labels, tf.float32)
    indices = tf.reshape(labels, [-1])
    one_hot = tf.one_hot(tf.cast(indices, tf.int32), num_classes)
    return tf.where(_is_valid(indices, num_classes)[:, None], one_hot, float("nan"))


def label_error(error: tf.errors.OpError, num_classes: int) -> InputError | None:
    """Returns the InputError for the failure of a check in `checked_soft_labels`, if it is one."""
    match = re.search(rf"\[{_BAD_LABEL}\] \[([^\]]*)\]", str(error))
    return _out_of_range(match[1], num_classes) if match else None


def _are_integers(shape, num_classes: int) -> bool:
    """Whether labels of this shape are integers; otherwise they are soft labels."""
    if len(shape) == 2 and shape[1] == num_classes:
        return False
    if len(shape) == 1 or (len(shape) == 2 and shape[1] == 1):
        return True
    raise InputError(
        f"the labels have shape {shape}, but must be integers (B,) or (B, 1), or soft labels "
        f"(B, {num_classes}) for the student's {num_classes} classes"
    )


def _is_valid(indices, num_classes: int):
    # A float label that isn't an integer is no valid label either.
    return (indices >= -1) & (indices < num_classes) & (indices == indices // 1)


def _out_of_range(label: Any, num_classes: int) -> InputError:
    return InputError(
        f"the labels have a {label}, but must be integers from 0 to {num_classes - 1}, or -1 for "
        "an unlabeled image"
    )
