"""The base classes of the distillation methods."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from stkd_keras.errors import InputError, is_number, is_positive, unknown_name

MISSING = object()
Shape = tuple[int | None, ...]
Features = dict[str, tf.Tensor]
Shapes = dict[str, Shape]


class DistillationTerm(keras.layers.Layer):
    """Base class of loss terms that compare features of the student and the teacher.

    A subclass names the features it needs, creates its trainable adapters in `build`, and returns
    its loss from `call`. The distiller averages the loss over the batch, multiplies it by
    `weight`, trains the adapters together with the student, and logs the loss under the layer's
    name. Terms compute in float32 under any dtype policy. docs/add-a-method.md has a complete
    example.

    Args:
        features: sequence of feature names, taken from both models as in `models.features`:
            "stage1", "stage1_preactivation", ... (B, H, W, C); "embedding" (B, D); "logits" (B, C).
        weight: float, at least 0, the factor that the distiller applies to the loss.
        name: string, the name that the loss is logged under.

    Call arguments:
        student: dict of float32 tensors by name, with at least the `features`.
        teacher: dict of the same kind; no gradient flows into it.
        labels: (B, C), one-hot or mixed labels; all zeros for an unlabeled image.
        training: whether the adapters' batch normalization uses batch statistics.

    Raises:
        InputError: from the constructor or `build`, if arguments or features don't fit.
    """

    # Why the method isn't defined on mixed images, or None.
    refuses_mixing: str | None = None
    # What the method loses with two classes, or None.
    two_classes: str | None = None
    # Whether `call` takes `index=`, (B,), the number of each image in the training data.
    needs_index = False
    # Whether the term keeps a state that several replicas can't share.
    needs_one_replica = False
    # Whether the term needs only the teacher's logits, so that a recording is enough.
    uses_logits_only = False
    # The number of steps at the start of training in which only `pretraining_loss` counts.
    pretraining_steps = 0
    # Upper bound on the learning rate during these steps, or None.
    highest_pretraining_learning_rate: float | None = None
    # Whether the term adds nothing to the loss after these steps.
    only_in_pretraining = False
    # The number of axes of each feature, or None for any.
    feature_rank: int | None = None
    # Whether the last axis of each feature has the same size in both models.
    same_last_size = False

    def __init__(self, features: Sequence[str], weight: float, name: str, **kwargs: Any):
        # In float16, squares and sums over whole maps would overflow.
        super().__init__(name=name, **{**kwargs, "dtype": "float32"})
        if isinstance(features, str) or not features:
            raise InputError(
                f"features of {name} is {features!r}; expected a sequence of at least one name, "
                "such as ('stage1', 'stage2')"
            )
        self.features = tuple(features)
        self.weight = checked_weight("weight", weight)

    def build(self, student_shape: Shapes, teacher_shape: Shapes, labels_shape: Shape) -> None:
        for model, shapes in (("student", student_shape), ("teacher", teacher_shape)):
            for feature in self.features:
                if feature not in shapes:
                    raise unknown_name(f"feature of the {model} for {self.name}", feature, shapes)
                self._check_feature(model, feature, tuple(shapes[feature]))
        for feature, student, teacher in self.shape_pairs(student_shape, teacher_shape):
            if self.same_last_size and student[-1] != teacher[-1]:
                raise InputError(
                    f"the last axis of {feature} has size {student[-1]} in the student and "
                    f"{teacher[-1]} in the teacher, but {self.name} expects equal sizes; choose "
                    "other models or another method"
                )

    def call(self, student: Features, teacher: Features, labels: tf.Tensor) -> tf.Tensor:
        """Returns the loss: (B,), or a scalar if it compares the samples of a batch.

        By default, sums `pair_loss` over the features.
        """
        return sum(self.pair_loss(s, t) for s, t in self.pairs(student, teacher))

    def pair_loss(self, student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
        """Returns the loss of one feature. A subclass defines this or `call`."""
        raise NotImplementedError

    def get_config(self) -> dict:
        """Returns the constructor's arguments, which are attributes of the same names."""
        arguments = {
            name: list(value) if isinstance(value, tuple) else value
            for name in inspect.signature(type(self)).parameters
            if (value := getattr(self, name, MISSING)) is not MISSING
        }
        return {**super().get_config(), **arguments}

    def pairs(self, student: Features, teacher: Features) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """Yields each feature of the student and of the teacher, the latter as a constant."""
        for feature in self.features:
            yield student[feature], tf.stop_gradient(teacher[feature])

    def shape_pairs(
        self, student_shape: Shapes, teacher_shape: Shapes
    ) -> Iterator[tuple[str, Shape, Shape]]:
        """Yields each feature's name with its shape in the student and in the teacher."""
        for feature in self.features:
            yield feature, tuple(student_shape[feature]), tuple(teacher_shape[feature])

    def _check_feature(self, model: str, feature: str, shape: Shape) -> None:
        rank = self.feature_rank
        if (rank is not None and len(shape) != rank) or None in shape[1:]:
            expected = {2: "(batch, values) ", 4: "(batch, height, width, channels) "}
            raise InputError(
                f"{feature} of the {model} has shape {shape}, but {self.name} expects "
                f"{expected.get(rank or 0, '')}with known sizes; choose another feature or give "
                "the model a fixed input shape"
            )


class PretrainedTerm(DistillationTerm):
    """Base class of terms with a pretraining stage before the main training.

    In the first `pretraining_steps` steps, `pretraining_loss` (without `weight`) is the only loss.
    After that the term counts like any other, or not at all if the stage trained the student with
    the term itself.

    Args:
        features: see `DistillationTerm`, also for `weight` and `name`.
        pretraining_steps: integer, at least 0. With 0 there is no such stage, and the term counts
            in every step.
    """

    # Whether the stage trains the student, with the term itself. Otherwise the student is frozen
    # during the stage.
    pretrains_student = True

    def __init__(
        self,
        features: Sequence[str],
        weight: float,
        pretraining_steps: int,
        name: str,
        **kwargs: Any,
    ):
        super().__init__(features, weight, name, **kwargs)
        self.pretraining_steps = checked_count("pretraining_steps", pretraining_steps, smallest=0)

    def pretraining_loss(
        self, student: Features, teacher: Features, labels: tf.Tensor
    ) -> tf.Tensor:
        """Returns the loss of the pretraining stage, (B,) or a scalar. The layer must be built."""
        return self(student, teacher, labels, training=True)

    @property
    def only_in_pretraining(self) -> bool:  # type: ignore[override]
        """Whether the term adds nothing to the loss after the pretraining stage."""
        return self.pretrains_student and self.pretraining_steps > 0

    @property
    def pretrained_layers(self) -> tuple[keras.layers.Layer, ...]:
        """The layers that are trained in the pretraining stage only, and frozen afterwards."""
        return ()


def checked_weight(name: str, value: Any) -> float:
    """Returns a number of at least 0 as a float."""
    if not is_number(value) or value < 0:
        raise InputError(f"{name} is {value!r}; expected a number of at least 0")
    return float(value)


def checked_positive(name: str, value: Any) -> float:
    """Returns a positive number as a float."""
    if not is_positive(value):
        raise InputError(f"{name} is {value!r}; expected a number above 0")
    return float(value)


def checked_count(name: str, value: Any, smallest: int = 1) -> int:
    """Returns an integer of at least `smallest`."""
    if not is_number(value) or value != int(value) or value < smallest:
        raise InputError(f"{name} is {value!r}; expected an integer of at least {smallest}")
    return int(value)


def feature_names(terms: Sequence[DistillationTerm]) -> list[str]:
    """Returns the names of all features that terms need, apart from the logits."""
    return sorted({name for term in terms for name in term.features} - {"logits"})
