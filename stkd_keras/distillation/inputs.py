"""Prepares the data that `fit` and `evaluate` receive: labels become soft labels on the CPU.

The compiled step must not depend on the kind of labels, and XLA can't check their values.
"""

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from stkd_keras.errors import InputError
from stkd_keras.labels import checked_soft_labels, label_error, soft_labels

_unpack, _pack = keras.utils.unpack_x_y_sample_weight, keras.utils.pack_x_y_sample_weight
_NumClasses = Callable[[tf.TensorShape | tuple], int]


def prepare(
    num_classes: _NumClasses, x, y=None, sample_weight=None, class_weight=None
) -> tuple[Any, Any, Any]:
    """Returns (x, y, sample_weight) for Keras with float32 soft labels (B, C).

    Args:
        num_classes: returns the number of classes for the shape of a batch of inputs.
        x: as in `fit`.
        y: as in `fit`.
        sample_weight: as in `fit`.
        class_weight: as in `fit`.

    Raises:
        InputError: if labels have a wrong shape, or are out of range. Those of data sets are
            checked when they are read; see `label_errors`.
    """
    if class_weight and sample_weight is not None:
        raise InputError("sample_weight and class_weight are both given; pass one of them")

    def convert(data):
        return _pack(*_with_soft_labels(num_classes, class_weight, *_unpack(data)))

    if isinstance(x, tf.data.Dataset):
        return _converted(num_classes, class_weight, x), y, sample_weight
    if isinstance(x, keras.utils.PyDataset):
        return _ConvertedPyDataset(x, convert), y, sample_weight
    if isinstance(x, types.GeneratorType):
        return (convert(batch) for batch in x), y, sample_weight
    if y is None or not hasattr(_first(x), "shape"):
        return x, y, sample_weight
    return _with_soft_labels(num_classes, class_weight, x, y, sample_weight)


@contextlib.contextmanager
def label_errors(distiller) -> Iterator[None]:
    """Turns TensorFlow's errors for labels out of range in a data set into an InputError."""
    try:
        yield
    except tf.errors.OpError as error:
        raise label_error(error, distiller.num_classes) or error from None


def _with_soft_labels(num_classes: _NumClasses, class_weight, x, y, sample_weight):
    if y is None:
        return x, y, sample_weight
    classes = num_classes(np.shape(_first(x)))
    labels = soft_labels(y["labels"] if isinstance(y, dict) else y, classes)
    if class_weight:
        sample_weight = _weights(labels, class_weight, classes)
    return x, {**y, "labels": labels} if isinstance(y, dict) else labels, sample_weight


def _converted(num_classes: _NumClasses, class_weight, dataset: tf.data.Dataset):
    spec_x, spec_y, _ = _unpack(dataset.element_spec)
    spec = spec_y.get("labels") if isinstance(spec_y, dict) else spec_y
    if not isinstance(spec, tf.TensorSpec):
        return dataset
    classes = num_classes(_first(spec_x).shape)
    is_converted = spec.dtype == tf.float32 and spec.shape.rank == 2 and spec.shape[1] == classes
    if is_converted and not class_weight:
        return dataset

    def convert(x, y, sample_weight=None):
        size = tf.shape(_first(x))[0]
        labels = checked_soft_labels(y["labels"] if isinstance(y, dict) else y, classes, size)
        labels = tf.ensure_shape(labels, (_first(x).shape[0], classes))
        if class_weight:
            sample_weight = _weights(labels, class_weight, classes)
        return _pack(x, {**y, "labels": labels} if isinstance(y, dict) else labels, sample_weight)

    convert = tf.autograph.experimental.do_not_convert(convert)
    parallel = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
    return dataset.map(convert, **parallel).prefetch(tf.data.AUTOTUNE)


class _ConvertedPyDataset(keras.utils.PyDataset):
    def __init__(self, base: keras.utils.PyDataset, convert: Callable):
        super().__init__(base.workers, base.use_multiprocessing, base.max_queue_size)
        self._base, self._convert = base, convert

    def __getitem__(self, index):
        return self._convert(self._base[index])

    @property
    def num_batches(self):
        return self._base.num_batches

    def on_epoch_begin(self):
        self._base.on_epoch_begin()

    def on_epoch_end(self):
        self._base.on_epoch_end()


def _weights(labels, class_weight: dict[int, float], num_classes: int):
    """Returns the weight of each label's class; Keras would give unlabeled images that of class 0."""
    # One more class, of the unlabeled images.
    by_class = np.float32([class_weight.get(c, 1.0) for c in range(num_classes)] + [1.0])
    if isinstance(labels, tf.Tensor):
        classes = tf.where(tf.reduce_any(labels > 0, 1), tf.argmax(labels, 1), num_classes)
        return tf.gather(by_class, classes)
    return by_class[np.where((labels > 0).any(1), labels.argmax(1), num_classes)]


def _first(x):
    return x[0] if isinstance(x, list | tuple) and len(x) == 1 else x
