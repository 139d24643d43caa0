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
