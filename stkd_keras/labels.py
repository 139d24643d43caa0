"""Labels of the kinds that Keras's users have, as rows."""

import tensorflow as tf

from stkd_keras.errors import InputError


def label_rows(labels, num_classes: int, batch_size=None) -> tf.Tensor:
    """Returns labels as float32 rows (B, C).

    Args:
        labels: integers of any dtype and of shape (B,) or (B, 1), or rows (B, C). -1 stands for
            an image without label, whose row is of zeros.
        num_classes: C.
        batch_size: scalar integer tensor, B; needed where the static shape doesn't tell.

    Raises:
        InputError: where the shape is none of these.
        tf.errors.InvalidArgumentError: where an integer is no class and not -1 (not under XLA).
    """
    labels = tf.convert_to_tensor(labels)
    shape = labels.shape
    if batch_size is not None and (shape.rank is None or (shape.rank == 2 and shape[1] is None)):
        # Keras's function was traced for labels of one kind and now receives another, or the
        # data don't say of which kind they are.
        return tf.cond(
            tf.size(labels) == batch_size,
            lambda: label_rows(tf.reshape(labels, [-1]), num_classes),
            lambda: label_rows(tf.reshape(labels, [-1, num_classes]), num_classes),
        )
    if shape.rank == 2 and shape[1] in (num_classes, None):
        return tf.cast(labels, tf.float32)
    if shape.rank != 1 and not (shape.rank == 2 and shape[1] == 1):
        raise InputError(
            f"the labels have shape {shape}, but must be integers (B,) or (B, 1), or rows "
            f"(B, {num_classes}) for the student's {num_classes} classes"
        )
    # Under a strategy Keras's first batch, a mean over replicas, has labels of float64.
    indices = tf.cast(tf.reshape(labels, [-1]), tf.int32)
    inside = tf.reduce_all((indices >= -1) & (indices < num_classes))
    message = f"labels must be integers from 0 to {num_classes - 1}, or -1 for none, but were"
    with tf.control_dependencies([tf.debugging.Assert(inside, [message, indices])]):
        return tf.one_hot(indices, num_classes)


def weighted_distributions(rows: tf.Tensor, sample_weight) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns labels that sum to 1, and sample weights that make up for it.

    TensorFlow's gradient of the cross-entropy, softmax minus label, belongs to its value only where
    the label sums to 1. That of a mixture sums to the share of its images that have labels.

    Args:
        rows: float32 tensor (B, C), labels; a row of zeros is left as it is, with weight 0.
        sample_weight: None, or (B,) or (B, 1).

    Returns:
        Float32 tensors (B, C) and (B,).
    """
    share = tf.reduce_sum(rows, axis=1)
    weight = share if sample_weight is None else share * tf.reshape(sample_weight, [-1])
    return tf.math.divide_no_nan(rows, share[:, None]), weight
