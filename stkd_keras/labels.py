"""Converts integer, one-hot and soft labels to soft labels."""

import tensorflow as tf

from stkd_keras.errors import InputError


def as_soft_labels(labels, num_classes: int, batch_size: tf.Tensor | None = None) -> tf.Tensor:
    """Converts labels to float32 soft labels (B, C); labels of None or -1 become zeros."""
    if labels is None:
        return tf.zeros((batch_size, num_classes))
    labels = tf.convert_to_tensor(labels)
    shape = labels.shape
    if batch_size is not None and (shape.rank is None or (shape.rank == 2 and shape[1] is None)):
        # The static shape is unknown: Keras saw other kinds of labels, or the data don't define it.
        return tf.cond(
            tf.size(labels) == batch_size,
            lambda: as_soft_labels(tf.reshape(labels, [-1]), num_classes),
            lambda: as_soft_labels(tf.reshape(labels, [-1, num_classes]), num_classes),
        )
    if shape.rank == 2 and shape[1] in (num_classes, None):
        return tf.cast(labels, tf.float32)
    if shape.rank != 1 and not (shape.rank == 2 and shape[1] == 1):
        raise InputError(
            f"the labels have shape {shape}, but must be integers (B,) or (B, 1), or soft labels "
            f"(B, {num_classes}) for the student's {num_classes} classes"
        )
    # Under a strategy, Keras's first batch has float64 labels.
    indices = tf.cast(tf.reshape(labels, [-1]), tf.int32)
    is_valid = tf.reduce_all((indices >= -1) & (indices < num_classes))
    message = f"labels must be integers from 0 to {num_classes - 1}, or -1 for none, but were"
    with tf.control_dependencies([tf.debugging.Assert(is_valid, [message, indices])]):
        return tf.one_hot(indices, num_classes)


def normalize_soft_labels(soft_labels: tf.Tensor, sample_weight) -> tuple[tf.Tensor, tf.Tensor]:
    """Scales labels to sum to 1, and multiplies the sample weights by the original sums.

    TensorFlow's gradient of the cross-entropy, softmax minus label, is right only for labels that
    sum to 1. A mixed label sums to the share of its labeled images.
    """
    share = tf.reduce_sum(soft_labels, axis=1)
    weight = share if sample_weight is None else share * tf.reshape(sample_weight, [-1])
    return tf.math.divide_no_nan(soft_labels, share[:, None]), weight
