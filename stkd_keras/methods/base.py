"""What every method is: a layer that compares the student with the teacher."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from stkd_keras.errors import InputError, is_number, is_positive, unknown_name

Shape = tuple[int | None, ...]


class DistillationTerm(keras.layers.Layer):
    """A further term of the distiller's loss, made of features of the student and of the teacher.

    A subclass says which features it needs, makes its trainable adapters in `build` and returns
    its loss from `call`, without `weight`: the distiller averages it over the batch, weighs it,
    trains the adapters with the student and logs it under the layer's name. All is computed in
    float32, whatever the policy. docs/add-a-method.md shows a complete one.

    Args:
        features: names of what is needed of both models, as `models.features` knows them:
            "stage1", "stage1_preactivation", ... (B, H, W, C); "embedding" (B, D); "logits" (B, C).
        weight: float, at least 0: what the distiller multiplies the term by.
        name: string, under which the term is logged.

    Call arguments:
        student: dict of float32 tensors by name, at least the `features`.
        teacher: likewise; nothing is propagated back into it.
        labels: (B, C), rows: one-hot or mixed; a row of zeros stands for no label.
        training: whether the adapters' batch normalisation uses the batch's own statistics.

    Raises:
        InputError: from the constructor or `build`, where arguments or features don't fit.
    """

    # Why the method isn't defined on mixtures of images; None where it is.
    refuses_mixing: str | None = None
    # Whether `call` takes `index=`, (B,), the number of each image in the training data.
    needs_index = False
    # Whether the term keeps a state that several replicas would change at once.
    needs_one_replica = False
    # Whether a recording of the teacher's logits is enough.
    uses_logits_only = False
    # Steps at the start of the training in which `pretraining_loss` is the only loss.
    pretraining_steps = 0
    # The learning rate of these steps, where the training's may be too high for them.
    highest_pretraining_learning_rate: float | None = None
    # Whether the term adds nothing to the loss once those steps are over.
    only_in_pretraining = False
    # The number of axes of each feature; None where any will do.
    feature_rank: int | None = None

    def __init__(self, features: Sequence[str], weight: float, name: str, **kwargs: Any):
        # Under mixed precision float16 would overflow in squares and sums over whole maps.
        super().__init__(name=name, **{**kwargs, "dtype": "float32"})
        if isinstance(features, str) or not features:
            raise InputError(
                f"features of {name} is {features!r}; expected a sequence of at least one name, "
                "such as ('stage1', 'stage2')"
            )
        self.features = tuple(features)
        self.weight = checked_weight("weight", weight)

    def build(
        self, student_shape: dict[str, Shape], teacher_shape: dict[str, Shape], labels_shape: Shape
    ) -> None:
        """Checks the features and makes the adapters.

        Args:
            student_shape: shapes by name, at least those of `features`.
            teacher_shape: likewise.
            labels_shape: (B, C).
        """
        for model, shapes in (("student", student_shape), ("teacher", teacher_shape)):
            for feature in self.features:
                if feature not in shapes:
                    raise unknown_name(f"feature of the {model} for {self.name}", feature, shapes)
                self._check_feature(model, feature, tuple(shapes[feature]))

    def call(
        self,
        student: dict[str, tf.Tensor],
        teacher: dict[str, tf.Tensor],
        labels: tf.Tensor,
    ) -> tf.Tensor:
        """Returns the loss: (B,), or a scalar where it is of pairs or of whole batches."""
        raise NotImplementedError

    def get_config(self) -> dict:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "features": list(self.features), "weight": self.weight}

    def pairs(
        self, student: dict[str, tf.Tensor], teacher: dict[str, tf.Tensor]
    ) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """Gives each feature of the student with the teacher's, as a constant."""
        for feature in self.features:
            yield student[feature], tf.stop_gradient(teacher[feature])

    def shape_pairs(
        self, student_shape: dict[str, Shape], teacher_shape: dict[str, Shape]
    ) -> Iterator[tuple[str, Shape, Shape]]:
        """Gives each feature's name with the student's and the teacher's shape."""
        for feature in self.features:
            yield feature, tuple(student_shape[feature]), tuple(teacher_shape[feature])

    def _check_feature(self, model: str, feature: str, shape: Shape) -> None:
        rank = self.feature_rank
        if (rank is not None and len(shape) != rank) or None in shape[1:]:
            expected = {2: "(batch, values)", 4: "(batch, height, width, channels)"}.get(
                rank or 0, "known sizes"
            )
            raise InputError(
                f"{feature} of the {model} has shape {shape}, but {self.name} expects {expected} "
                "with known sizes; name another feature or give the model a fixed input shape"
            )


class PretrainedTerm(DistillationTerm):
    """A term with a stage of its own before the main training.

    In the first `pretraining_steps` steps `pretraining_loss` is the only loss, without `weight`;
    afterwards the term counts as any other or, where the stage trains the student by the term
    itself, not at all.

    Args:
        features: as of `DistillationTerm`.
        weight: likewise.
        pretraining_steps: integer, at least 0; with 0 the stage is skipped, and the term counts
            in every step.
        name: as of `DistillationTerm`.
    """

    # Whether the stage trains the student, by the term itself; otherwise the student stays as it is
    # until the stage is over.
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
        self,
        student: dict[str, tf.Tensor],
        teacher: dict[str, tf.Tensor],
        labels: tf.Tensor,
    ) -> tf.Tensor:
        """Returns the loss of the stage, (B,) or a scalar; the layer has to be built.

        The term itself, unless a subclass trains something else first.
        """
        return self(student, teacher, labels, training=True)

    @property
    def only_in_pretraining(self) -> bool:  # type: ignore[override]
        """Whether the term adds nothing once its stage is over."""
        return self.pretrains_student and self.pretraining_steps > 0

    @property
    def pretrained_layers(self) -> tuple[keras.layers.Layer, ...]:
        """What only the stage trains: it stays as it is once the stage is over."""
        return ()

    def get_config(self) -> dict:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "pretraining_steps": self.pretraining_steps}


def checked_weight(name: str, value: Any) -> float:
    """Returns a number of at least 0."""
    if not is_number(value) or value < 0:
        raise InputError(f"{name} is {value!r}; expected a number of at least 0")
    return float(value)


def checked_positive(name: str, value: Any) -> float:
    """Returns a number above 0."""
    if not is_positive(value):
        raise InputError(f"{name} is {value!r}; expected a number above 0")
    return float(value)


def checked_count(name: str, value: Any, smallest: int = 1) -> int:
    """Returns an integer of at least `smallest`."""
    if not is_number(value) or value != int(value) or value < smallest:
        raise InputError(f"{name} is {value!r}; expected an integer of at least {smallest}")
    return int(value)


def feature_names(terms: Sequence[DistillationTerm]) -> list[str]:
    """Returns the names of all inner features that terms need; the logits are always there."""
    return sorted({name for term in terms for name in term.features} - {"logits"})
