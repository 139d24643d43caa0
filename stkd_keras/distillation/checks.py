"""What the distiller refuses before anything is trained."""

import warnings
from collections.abc import Sequence

import keras
import tensorflow as tf

from stkd_keras.classifiers.outputs import compatible, input_shape
from stkd_keras.errors import LARGEST, SMALLEST, InputError, is_positive, unknown_name
from stkd_keras.methods import DistillationTerm
from stkd_keras.methods.base import feature_names
from stkd_keras.teacher.recorded import RecordedTeacher

# Names of what else `fit` logs.
_TAKEN = {"loss", "soft_loss", "label_loss", "teacher_agreement"}


SOFT_TARGETS = ("virtual", "mixed")


def check_settings(
    mixing,
    mixing_steps,
    temperature,
    soft_weight,
    label_weight,
    has_terms: bool = False,
) -> None:
    """Refuses arguments of the distiller that are outside their ranges.

    Raises:
        InputError: with what was given, what was expected, and what to do.
    """
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
    if not any(weights.values()) and not has_terms:
        raise InputError(
            "soft_weight and label_weight are both 0, so there is nothing to learn; make one of "
            "them positive"
        )


def check_soft_target(soft_target: str, mixing) -> None:
    """Refuses targets that the rest of a distiller's settings doesn't allow.

    Raises:
        InputError: likewise.
    """
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
    """Refuses what can't be a student.

    Raises:
        InputError: likewise.
    """
    if not isinstance(student, keras.Model):
        raise InputError(
            f"the student is a {type(student).__name__}, but must be a keras.Model that classifies"
        )
    if len(getattr(student, "outputs", None) or [None]) != 1:
        raise InputError(
            f"the student {student.name!r} has {len(student.outputs)} outputs, but must have one: "
            "the logits or the probabilities"
        )


def check_teacher(teacher, student: keras.Model, num_classes: int | None) -> None:
    """Refuses a teacher that doesn't fit the student.

    Args:
        teacher: a FrozenTeacher.
        student: the built student.
        num_classes: the student's number of classes.

    Raises:
        InputError: likewise.
    """
    if None not in (teacher.num_classes, num_classes) and teacher.num_classes != num_classes:
        raise InputError(
            f"the student has {num_classes} classes and the teacher {teacher.num_classes}, but "
            "both must have the same, in the same order; FrozenTeacher's class_indices pick and "
            "order the teacher's"
        )
    mine, its = input_shape(student), teacher.input_shape
    if mine and its and not compatible(mine, its):
        raise InputError(
            f"the student takes inputs of shape {mine} and the teacher {its}, but both see the "
            "same virtual samples; give one of them a keras.layers.Resizing"
        )


def check_inputs(x, student: keras.Model) -> None:
    """Refuses a batch of inputs that the student doesn't take.

    Raises:
        InputError: likewise.
    """
    shape = input_shape(student)
    if shape and not compatible(tuple(x.shape[1:]), shape):
        raise InputError(
            f"the data have inputs of shape {tuple(x.shape[1:])}, but the student takes {shape}"
        )


def warn_of_a_small_last_batch(
    x, batch_size: int | None, validation_split: float, student: keras.Model, replicas: int
) -> None:
    """Warns where batch normalisation would see an epoch's last batch with next to nothing in it.

    With 4 of 900 images in it a student lost 4 points (docs/decisions/0005).

    Args:
        x: what was passed to `fit`: an array, or something else, which isn't looked at.
        batch_size: what was passed to `fit`.
        validation_split: what was passed to `fit`.
        student: the student.
        replicas: what a batch size has to be a multiple of.
    """
    normalizes = any(
        isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        for layer in student._flatten_layers()
    )
    if not normalizes or not getattr(x, "shape", ()):
        return
    count, size = int(x.shape[0] * (1 - validation_split)), batch_size or 32
    if count < size or not 0 < count % size < size / 4:
        return
    sizes = range(size // replicas * replicas, 0, -replicas)
    better = next((b for b in sizes if count % b == 0 or 2 * (count % b) >= b), replicas)
    left = count % better or better
    warnings.warn(
        f"{count:,} examples in batches of {size} leave a last batch of {count % size}, too few "
        f"for batch normalisation; with batch_size={better} the last batch has {left}",
        stacklevel=3,
    )


def check_terms(terms: Sequence[keras.layers.Layer], teacher, mixing) -> None:
    """Refuses terms that the rest of a distiller's settings doesn't allow.

    Raises:
        InputError: with what was given, what was expected, and what to do.
    """
    names = [term.name for term in terms if isinstance(term, DistillationTerm)]
    for term in terms:
        if not isinstance(term, DistillationTerm):
            raise InputError(
                f"terms has {term!r}, but must hold layers of stkd_keras.methods, or others that "
                "subclass its DistillationTerm"
            )
        if term.name in _TAKEN or names.count(term.name) > 1:
            raise InputError(
                f"a term is called {term.name!r}, as something else that is logged; pass it name="
            )
        if teacher is None:
            raise InputError(f"{term.name} compares with a teacher, but there is none; pass one")
        if mixing is not None and term.refuses_mixing:
            raise InputError(
                f"{term.name} isn't defined on mixed images: {term.refuses_mixing}; leave mixing "
                "out (mixing=None, --mixing=none), or choose another method"
            )
    needed = feature_names(terms)
    if needed and isinstance(teacher, RecordedTeacher):
        raise InputError(
            f"the recording {teacher.path} holds the teacher's logits, but {', '.join(names)} "
            f"needs its {', '.join(needed)}; take the teacher itself (without --replay)"
        )


def check_not_empty(x) -> None:
    """Refuses data that are known to be empty.

    Args:
        x: what was passed to `fit` or `evaluate`: an array, a tf.data.Dataset, or anything else.

    Raises:
        InputError: where there is no example.
    """
    if isinstance(x, tf.data.Dataset):
        is_empty = int(x.cardinality()) == 0
    else:
        is_empty = hasattr(x, "shape") and len(x.shape) > 0 and x.shape[0] == 0
    if is_empty:
        raise InputError("the data are empty; give at least one batch")


def check_first_batch(
    x, batch_size: int | None, validation_split: float, strategy: tf.distribute.Strategy
) -> None:
    """Refuses training data whose full batches don't split evenly over the replicas.

    Args:
        x: what was passed to `fit`: an array, a tf.data.Dataset, or anything else.
        batch_size: what was passed to `fit`.
        validation_split: what was passed to `fit`.
        strategy: the strategy of the model.

    Raises:
        InputError: with the numbers, and what to change.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return
    # What `stkd_keras.data` cuts can begin with one of an epoch's last two batches.
    given = getattr(x, "batch_size", None) or getattr(
        getattr(x, "source", None), "batch_size", None
    )
    if given:
        size = given
    elif isinstance(x, tf.data.Dataset):
        first = next(iter(x.take(1)), None)
        size = keras.tree.flatten(first)[0].shape[0] if first is not None else None
    elif hasattr(x, "shape") and len(x.shape) > 0:
        size = min(batch_size or 32, int(x.shape[0] * (1 - validation_split)))
    else:
        size = None
    if size is not None and size % replicas:
        raise InputError(
            f"the first batch has {size} examples, which don't split evenly over {replicas} "
            f"replicas; choose a batch size that is a multiple of {replicas}"
        )
