"""Checks of the distiller's arguments and data."""

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from stkd_keras.classifiers.outputs import (
    check_one_input,
    compatible,
    graph_output,
    input_shape,
)
from stkd_keras.distribution.strategy import check_compile_options
from stkd_keras.errors import LARGEST, SMALLEST, InputError, is_positive, unknown_name
from stkd_keras.methods import DistillationTerm
from stkd_keras.methods.base import feature_names
from stkd_keras.teacher.recorded import RecordedTeacher

SOFT_TARGETS = ("virtual", "mixed")
# The names of other values that `fit` logs.
_LOGGED = {"loss", "soft_loss", "label_loss", "teacher_agreement"}


def check_settings(
    mixing, mixing_steps, temperature, soft_weight, label_weight, label_smoothing=0.0,
    has_terms: bool = False,
) -> None:  # fmt: skip
    """Raises InputError if an argument of the distiller is out of range."""
    if mixing is not None and (isinstance(mixing, type) or not callable(mixing)):
        raise InputError(f"mixing is {mixing!r}, but must be a stkd_keras.Mixup, or None")
    if mixing_steps is not None and not 0 <= mixing_steps < 2**63:
        raise InputError(
            f"mixing_steps is {mixing_steps}, but must be 0 or more, an int64, or None"
        )
    numbers = f"from {SMALLEST:g} to {LARGEST:g}"
    if not is_positive(temperature):
        raise InputError(f"temperature is {temperature!r}, but must be a number {numbers}")
    weights = {"soft_weight": soft_weight, "label_weight": label_weight}
    for name, weight in weights.items():
        if not (weight == 0 or is_positive(weight)):
            raise InputError(f"{name} is {weight!r}, but must be 0 or a number {numbers}")
    if not 0 <= label_smoothing < 1:
        raise InputError(
            f"label_smoothing is {label_smoothing}, but must be at least 0 and less than 1"
        )
    if not any(weights.values()) and not has_terms:
        raise InputError(
            "soft_weight and label_weight are both 0, so there is nothing to learn; make one of "
            "them positive"
        )


def check_soft_target(soft_target: str, mixing) -> None:
    """Raises InputError for an unknown soft target or one that needs another mixing."""
    if soft_target not in SOFT_TARGETS:
        raise unknown_name("soft target", str(soft_target), SOFT_TARGETS)
    if soft_target == "mixed" and mixing is None:
        raise InputError(
            'soft_target is "mixed", but nothing is mixed; leave it out, or choose a mixing'
        )
    if soft_target == "mixed" and not hasattr(mixing, "mix_outputs"):
        raise InputError(
            f'soft_target is "mixed", but mixing is {mixing!r}, which mixes no outputs; pass a '
            "stkd_keras.Mixup or CutMix"
        )


def check_student(student) -> None:
    """Raises InputError unless the student is a Keras model with one input and one output."""
    if not isinstance(student, keras.Model):
        raise InputError(
            f"the student is a {type(student).__name__}, but must be a keras.Model that classifies"
        )
    check_one_input(student, "student")
    if getattr(student, "outputs", None):
        graph_output(student, "student")


def check_teacher(teacher, student: keras.Model, num_classes: int | None) -> None:
    """Raises InputError if a frozen or recorded teacher doesn't fit the built student."""
    if None not in (teacher.num_classes, num_classes) and teacher.num_classes != num_classes:
        raise InputError(
            f"the student has {num_classes} classes and the teacher {teacher.num_classes}, but "
            "both must have the same, in the same order; FrozenTeacher's class_indices select and "
            "order the teacher's"
        )
    mine, its = input_shape(student), teacher.input_shape
    if mine and its and not compatible(mine, its):
        raise InputError(
            f"the student takes inputs of shape {mine} and the teacher {its}, but both receive the "
            "same virtual samples; give one of them a keras.layers.Resizing"
        )


def check_losses(terms: Sequence[keras.layers.Layer], teacher, soft_weight, mixing) -> None:
    """Raises InputError for losses that lack a teacher or that the mixing doesn't allow."""
    names = [term.name for term in terms if isinstance(term, DistillationTerm)]
    for term in terms:
        if not isinstance(term, DistillationTerm):
            raise InputError(
                f"terms has {term!r}, but must contain layers of stkd_keras.methods, or of other "
                "subclasses of its DistillationTerm"
            )
        if term.name in _LOGGED or names.count(term.name) > 1:
            raise InputError(
                f"the name {term.name!r} of a loss term is already taken; pass it another name="
            )
        if teacher is None:
            raise InputError(f"{term.name} compares with a teacher, but there is none; pass one")
        if mixing is not None and term.refuses_mixing:
            raise InputError(
                f"{term.name} isn't defined on mixed images: {term.refuses_mixing}; pass "
                "mixing=None, or choose another method"
            )
    if teacher is None and soft_weight > 0:
        raise InputError(
            f"soft_weight is {soft_weight}, but there is no teacher; pass teacher=, or "
            "soft_weight=0 to train without one"
        )
    needed = feature_names(terms)
    if needed and isinstance(teacher, RecordedTeacher):
        raise InputError(
            f"the recording {teacher.path} only has the teacher's logits, but {', '.join(names)} "
            f"needs its {', '.join(needed)}; pass the teacher itself"
        )


def check_compile(
    strategy, terms: Sequence[DistillationTerm], optimizer, loss=None, loss_weights=None,
    steps_per_execution=1, **_: Any,
) -> None:  # fmt: skip
    """Raises InputError for arguments of `compile` that the distiller or Keras doesn't support."""
    if loss is not None or loss_weights is not None:
        given = f"loss={loss!r}" if loss is not None else f"loss_weights={loss_weights!r}"
        raise InputError(
            f"compile received {given}, but the method determines the losses: the soft loss and "
            "the cross-entropy with the mixed labels; leave it out, and set soft_weight and "
            "label_weight"
        )
    check_compile_options(strategy, optimizer, steps_per_execution)
    for term in terms:
        if term.needs_one_replica and strategy.num_replicas_in_sync > 1:
            raise InputError(
                f"{term.name} keeps a memory of all images, and can't be trained on several "
                "replicas; train on one device"
            )


def check_training_data(
    x, batch_size: int | None, student: keras.Model, strategy, validation_split=0.0,
    validation_data=None, **_: Any,
) -> None:  # fmt: skip
    """Raises InputError for data that `fit` can't train on; warns of a small last batch."""
    if validation_data is not None:
        validation_split = 0.0
    check_not_empty(x)
    replicas = strategy.num_replicas_in_sync
    if replicas > 1:
        _check_first_batch(x, batch_size, validation_split, replicas)
    _warn_of_small_last_batch(x, batch_size, validation_split, student, replicas)


def check_recorded_batches(
    teacher, x, step: int, epochs: int, initial_epoch=0, steps_per_epoch=None, **_: Any
) -> None:
    """Raises InputError unless the batches for `fit` have the recorded logits of the next steps."""
    if not isinstance(teacher, RecordedTeacher):
        return
    first = getattr(x, "first_step", None)  # Set by RecordedTeacher.attach.
    if first is None:
        raise InputError(
            f"the teacher is the recording {teacher.path}, but the data don't have its logits; "
            "pass fit its attach(train_ds), without map, take and the like"
        )
    if first != step:
        raise InputError(
            f"the recorded batches begin with step {first}, but the next step is {step}; pass "
            f"attach a pipeline with start_step={step}"
        )
    epochs -= initial_epoch
    if epochs > 1 and steps_per_epoch is None:
        raise InputError(
            f"{epochs} epochs of a recording need steps_per_epoch; pass fit "
            "stkd_keras.data.steps_per_epoch(split, batch_size)"
        )
    left = int(x.cardinality())
    if epochs * (steps_per_epoch or 0) > left:
        raise InputError(
            f"{epochs} epochs of {steps_per_epoch} steps need more than the recording's {left} "
            "batches; record more steps, or train for fewer"
        )


def check_recorded_batch(y, step: int) -> None:
    """Raises InputError if a batch has the recorded logits of another step."""
    recorded = y.get("step") if isinstance(y, dict) else None
    if recorded is not None and np.any(np.asarray(recorded) != step):
        raise InputError(
            f"the batch has the recorded logits of step {np.asarray(recorded).flat[0]}, but the "
            f"next step is {step}; pass the batches of attach(train_ds) in order"
        )


def check_not_empty(x) -> None:
    """Raises InputError if an array or a data set is known to be empty."""
    if isinstance(x, tf.data.Dataset):
        is_empty = int(x.cardinality()) == 0
    else:
        is_empty = hasattr(x, "shape") and len(x.shape) > 0 and x.shape[0] == 0
    if is_empty:
        raise InputError(
            "the data are empty; pass at least one batch (drop_remainder=True leaves out a batch "
            "that isn't full)"
        )


def check_inputs(x, student: keras.Model) -> None:
    """Raises InputError if the student doesn't take inputs of this shape."""
    shape = input_shape(student)
    if shape and not compatible(tuple(x.shape[1:]), shape):
        raise InputError(
            f"the data have inputs of shape {tuple(x.shape[1:])}, but the student takes {shape}"
        )


def _check_first_batch(x, batch_size: int | None, validation_split: float, replicas: int) -> None:
    size = 0
    if isinstance(x, tf.data.Dataset):
        first = tf.nest.flatten(x.element_spec)[:1]
        if first and first[0].shape[0] is None:  # Not static: the first batch says it.
            first = tf.nest.flatten(next(iter(x.take(1)), ()))[:1]
        size = first[0].shape[0] if first else 0
    elif getattr(x, "shape", None):
        size = min(batch_size or 32, int(x.shape[0] * (1 - validation_split)))
    if size % replicas:
        raise InputError(
            f"the first batch has {size} examples, which don't split evenly over {replicas} "
            f"replicas; choose a batch size that is a multiple of {replicas}"
        )


def _warn_of_small_last_batch(
    x, batch_size: int | None, validation_split: float, student: keras.Model, replicas: int
) -> None:
    # With 4 of 900 images in the last batch, a student lost 4 points (docs/decisions/0005).
    normalizes = any(
        isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        for layer in student._flatten_layers()
    )
    count, size = _count_and_batch_size(x, batch_size, validation_split) if normalizes else (0, 1)
    if count < size or not 0 < count % size < size / 4:
        return
    sizes = range(size // replicas * replicas, 0, -replicas)
    better = next((b for b in sizes if count % b == 0 or 2 * (count % b) >= b), replicas)
    left = count % better or better
    warnings.warn(
        f"{count:,} examples in batches of {size} leave a last batch of {count % size}, too few "
        f"for batch normalization; with batch_size={better} the last batch has {left}",
        stacklevel=4,
    )


def _count_and_batch_size(x, batch_size: int | None, validation_split: float) -> tuple[int, int]:
    """Returns the number of examples and the batch size; (0, 1) if they aren't known."""
    if isinstance(x, tf.data.Dataset):
        return _of_batched(x)
    if isinstance(x, keras.utils.PyDataset) and x.num_batches:
        size, last = (len(tf.nest.flatten(x[n])[0]) for n in (0, x.num_batches - 1))
        return (x.num_batches - 1) * size + last, size
    if not getattr(x, "shape", None):
        return 0, 1
    return int(x.shape[0] * (1 - validation_split)), batch_size or 32


def _of_batched(dataset: tf.data.Dataset) -> tuple[int, int]:
    batched = dataset
    while not hasattr(batched, "_batch_size"):  # Keras recognizes batched data sets by it, too.
        if not batched._inputs():
            return 0, 1
        batched = batched._inputs()[0]
    if tf.get_static_value(batched._drop_remainder):
        return 0, 1
    size, count = int(batched._batch_size), int(batched._inputs()[0].cardinality())
    # The batches may be repeated; if some are left out, the last one isn't known.
    batches = int(dataset.cardinality())
    is_known = batches == tf.data.INFINITE_CARDINALITY or 0 < batches == -(-count // size)
    return (count, size) if count > 0 and is_known else (0, 1)
