"""Prepares the data that `fit` and `evaluate` receive: labels become soft labels on the CPU.

The compiled step must not depend on the kind of labels, and XLA can't check their values.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from stkd_keras.data.sources.threads import weak_method
from stkd_keras.distillation.batch import as_tensor
from stkd_keras.distillation.checks import check_inputs
from stkd_keras.errors import InputError, is_number, one_line
from stkd_keras.labels import checked_soft_labels, label_error, soft_labels

_unpack, _pack = keras.utils.unpack_x_y_sample_weight, keras.utils.pack_x_y_sample_weight
_NumClasses = Callable[[tf.TensorShape | tuple], int]
# Iterables that aren't batches.
_NOT_BATCHES = (list, tuple, dict, str, bytes)


class PreparedInputs(keras.Model):
    """Base class of the distiller: converts the labels in all methods that take data."""

    num_classes: int

    def fit(
        self, x, y, batch_size, epochs, verbose, callbacks, validation_split=0.0,
        validation_data=None, shuffle=True, class_weight=None, sample_weight=None, **kwargs,
    ):  # fmt: skip
        with self._label_errors():
            is_iterated_anew = kwargs.get("steps_per_epoch") is None
            x, y, sample_weight = self.prepare(x, y, sample_weight, class_weight, is_iterated_anew)
            if isinstance(validation_data, list | tuple):
                validation_data = self.prepare(*validation_data)
            elif validation_data is not None:
                validation_data, _, _ = self.prepare(validation_data)
            elif class_weight and validation_split and sample_weight is not None:
                # Keras takes the last samples for validation, where the classes weigh the same.
                sample_weight[math.floor(len(sample_weight) * (1.0 - validation_split)) :] = 1.0
            return super().fit(
                x, y, batch_size, epochs, verbose, callbacks, validation_split, validation_data,
                shuffle, sample_weight=sample_weight, **kwargs,
            )  # fmt: skip

    def evaluate(
        self, x=None, y=None, batch_size=None, verbose="auto", sample_weight=None, **kwargs
    ):
        with self._label_errors():
            if not kwargs.get("_use_cached_eval_dataset"):  # Set by Keras's `fit`.
                x, y, sample_weight = self.prepare(x, y, sample_weight)
            return super().evaluate(x, y, batch_size, verbose, sample_weight, **kwargs)

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, return_dict=False):
        x, y, sample_weight = self.prepare(x, y, sample_weight, class_weight)
        return super().train_on_batch(x, y, sample_weight, return_dict=return_dict)

    def test_on_batch(self, x, y=None, sample_weight=None, return_dict=False):
        """Evaluates a batch of arrays like `keras.Model.test_on_batch`; labels as in `fit`."""
        x, y, sample_weight = self.prepare(x, y, sample_weight)
        return super().test_on_batch(x, y, sample_weight, return_dict=return_dict)

    def prepare(
        self, x, y=None, sample_weight=None, class_weight=None, is_iterated_anew=True
    ) -> tuple[Any, Any, Any]:
        """Returns the arguments of `fit` as (x, y, sample_weight), with float32 labels (B, C).

        Keras iterates over data anew in each epoch, but not if it knows the steps of an epoch.

        Raises InputError if labels have a wrong shape or are out of range; those in data sets are
        checked when they are read.
        """
        if class_weight and sample_weight is not None:
            raise _two_weights()

        num_classes = weak_method(self._num_classes_for)  # Keras keeps each `PyDataset`.

        def convert(data):
            data = _pack(*_with_soft_labels(num_classes, class_weight, *_unpack(data)))
            return data if isinstance(data, tuple) else (data,)

        if isinstance(x, tf.distribute.DistributedDataset):
            if class_weight:
                raise InputError(
                    "class_weight is given with a distributed data set; pass the data set that it "
                    "was made of, or batches of (images, labels, weights)"
                )
            return x, y, sample_weight
        if isinstance(x, keras.utils.PyDataset):
            return _ConvertedPyDataset(x, convert), y, sample_weight
        if isinstance(x, Iterator):
            return (convert(batch) for batch in x), y, sample_weight
        if hasattr(_first(x), "shape"):
            return _with_soft_labels(self._num_classes_for, class_weight, x, y, sample_weight)
        if isinstance(x, Iterable) and not isinstance(x, _NOT_BATCHES):
            if not isinstance(x, tf.data.Dataset):
                x = _as_dataset(x) if is_iterated_anew else _as_dataset(x).repeat()
            return _converted(self._num_classes_for, class_weight, x), y, sample_weight
        raise InputError(
            f"the data are a {type(x).__name__}, but must be an array (B, ...), a tf.data.Dataset, "
            "a keras.utils.PyDataset, or a generator or other iterable of batches (images, "
            "labels), such as a DataLoader of PyTorch or Grain; convert lists with numpy.array"
        )

    def checked_inputs(self, x) -> tf.Tensor:
        """Returns the inputs of a batch as float32; builds the model for the first batch."""
        x = as_tensor(x)
        if not self.built:
            self.build(tuple(x.shape))
        check_inputs(x, self.student)
        return tf.cast(x, tf.float32)

    def _num_classes_for(self, input_shape) -> int:
        if not self.built:
            with self.distribute_strategy.scope():
                self.build(tuple(input_shape))
        return self.num_classes

    @contextlib.contextmanager
    def _label_errors(self) -> Iterator[None]:
        """Turns TensorFlow's errors for labels out of range in a data set into an InputError."""
        try:
            yield
        except tf.errors.OpError as error:
            raise label_error(error, self.num_classes) or error from None


def _with_soft_labels(num_classes: _NumClasses, class_weight, x, y, sample_weight):
    if y is None:
        return x, y, sample_weight
    classes = num_classes(np.shape(_first(x)))
    labels = soft_labels(y["labels"] if isinstance(y, dict) else y, classes)
    if class_weight:
        if sample_weight is not None:
            raise _two_weights()
        by_class = _by_class(class_weight, classes)
        sample_weight = labels @ by_class + (1.0 - labels.sum(1))
    return x, {**y, "labels": labels} if isinstance(y, dict) else labels, sample_weight


def _converted(num_classes: _NumClasses, class_weight, dataset: tf.data.Dataset):
    spec_x, spec_y, spec_weight = _unpack(dataset.element_spec)
    spec = spec_y.get("labels") if isinstance(spec_y, dict) else spec_y
    if not isinstance(spec, tf.TensorSpec):
        return dataset
    classes = num_classes(_first(spec_x).shape)
    is_converted = spec.dtype == tf.float32 and spec.shape.rank == 2 and spec.shape[1] == classes
    if is_converted and not class_weight:
        return dataset
    if class_weight and spec_weight is not None:
        raise _two_weights()
    by_class = _by_class(class_weight or {}, classes)

    def convert(x, y, sample_weight=None):
        size = tf.shape(_first(x))[0]
        labels = checked_soft_labels(y["labels"] if isinstance(y, dict) else y, classes, size)
        labels = tf.ensure_shape(labels, (_first(x).shape[0], classes))
        if class_weight:
            unlabeled = 1.0 - tf.reduce_sum(labels, 1)
            sample_weight = tf.linalg.matvec(labels, by_class) + unlabeled
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


def _by_class(class_weight: Any, num_classes: int) -> np.ndarray:
    """Returns the weights of all classes, float32 (C,)."""
    is_dict = isinstance(class_weight, dict) and set(class_weight) <= set(range(num_classes))
    if not is_dict or not all(is_number(w) and w >= 0 for w in class_weight.values()):
        raise InputError(
            f"class_weight is {one_line(class_weight)}, but must be a dict from class indices (0 "
            f"to {num_classes - 1}) to weights of at least 0"
        )
    return np.array([class_weight.get(c, 1.0) for c in range(num_classes)], np.float32)


def _as_dataset(batches: Iterable) -> tf.data.Dataset:
    """Returns a data set of batches of NumPy arrays or PyTorch tensors."""
    arrays = _Arrays(batches)
    first = next(arrays.each(), None)
    if first is None:
        raise InputError("the data are empty; pass at least one batch")
    if any(np.ndim(array) == 0 for array in tf.nest.flatten(first)):
        raise InputError("the data are single images, but must be batches; set a batch size")
    signature = tf.nest.map_structure(
        lambda array: tf.TensorSpec([None, *array.shape[1:]], array.dtype), first
    )
    dataset = tf.data.Dataset.from_generator(weak_method(arrays.each), output_signature=signature)
    dataset.source = arrays  # Keeps it alive.
    return dataset


class _Arrays:
    def __init__(self, batches: Iterable):
        self._batches = batches

    def each(self) -> Iterator:
        for batch in self._batches:
            batch = tuple(batch) if isinstance(batch, list) else batch
            yield tf.nest.map_structure(
                lambda t: np.asarray(t.cpu() if hasattr(t, "cpu") else t), batch
            )


def _two_weights() -> InputError:
    return InputError("sample_weight and class_weight are both given; pass one of them")


def _first(x):
    return x[0] if isinstance(x, list | tuple) and len(x) == 1 else x
