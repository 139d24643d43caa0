"""A frozen snapshot of one or several trained classifiers."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from stkd_keras.classifiers.outputs import compatible
from stkd_keras.errors import InputError
from stkd_keras.teacher.member import DTYPES, Member


class FrozenTeacher:
    """Logits of one or several trained classifiers in inference mode.

    The teacher is a snapshot: the given models aren't modified, and later changes to them have no
    effect. Batch normalization is folded into the preceding layer where that is exact, which makes
    a call cheaper than one of the original model.

    Several models count as one teacher. Its logits are the log of the mean of their softmaxes.

    A FrozenTeacher isn't a Keras layer, so a model that holds one neither trains nor saves it.

    Args:
        model: a built `keras.Model` that takes one tensor and returns one of shape (B, C), or a
            dict with that as "logits"; or a list of such models or FrozenTeachers. A single unit
            with a sigmoid, (B, 1), counts as two classes, of which it is the probability of the
            second.
        outputs: what the models return: "logits", "probabilities", or "auto" to detect it from
            the last layer. A final softmax that can be recognized is removed. The logits of other
            probabilities p are log(max(p, smallest normal float32)).
        class_indices: for each class of the data, the index of the model's output for it, if the
            model was trained on other classes or in another order. The softmax is over these
            outputs only. None keeps all outputs in their order.
        dtype: "bfloat16" or "float16" computes in half precision, except for the preprocessing of
            the pixels and the last layer; "float32" in single precision; None as the models do.

    Raises:
        InputError: if a model isn't built or has several outputs, if `outputs="auto"` doesn't
            recognize its last layer, if the models differ in their number of classes or their
            input shape, if `class_indices` repeats an output or names a missing one, or if `dtype`
            is unknown or the config of a model's class can't recreate it in that precision.

    Attributes:
        num_classes: number of classes, or None if it isn't known.
        num_normalizations: number of batch normalization layers in the models.
        num_folded: number of them folded into the layers before them.
        num_parameters: number of trainable parameters of the models before folding.

    Example:

    ```python
    teacher = stkd_keras.FrozenTeacher(keras.saving.load_model("teacher.keras"))
    logits = teacher(images)
    ```
    """

    def __init__(
        self,
        model,
        outputs: str = "auto",
        class_indices: Sequence[int] | None = None,
        dtype: str | None = None,
    ):
        if dtype not in (None, *DTYPES):
            raise InputError(f"dtype is {dtype!r}, but must be {', '.join(DTYPES)} or None")
        models = list(model) if isinstance(model, list | tuple) else [model]
        if not models:
            raise InputError("the list of teachers is empty; give at least one classifier")
        self._members: list[Member] = []
        for each in models:
            is_frozen = isinstance(each, FrozenTeacher)
            self._members += each._members if is_frozen else [Member(each, outputs, dtype)]
        if class_indices is not None:
            self._members = [member.select(class_indices) for member in self._members]
        counts = sorted({m.num_classes for m in self._members if m.num_classes is not None})
        if len(counts) > 1:
            raise InputError(
                f"the teachers have {' and '.join(map(str, counts))} classes, but must all have "
                "the same number"
            )
        shapes = [m.input_shape for m in self._members if m.input_shape is not None]
        if any(not compatible(shapes[0], shape) for shape in shapes):
            raise InputError(
                f"the teachers take inputs of shape {' and '.join(map(str, shapes))}, but must "
                "take the same images; add a keras.layers.Resizing to one of them"
            )
        self.num_classes: int | None = counts[0] if counts else None
        self.input_shape: tuple | None = shapes[0] if shapes else None
        self.supports_jit = all(m.supports_jit for m in self._members)
        self.num_normalizations = sum(m.num_normalizations for m in self._members)
        self.num_folded = sum(m.num_folded for m in self._members)
        self.num_parameters = sum(m.num_parameters for m in self._members)

    @property
    def snapshots(self) -> list[keras.Model] | None:
        """The frozen copies of the models, or None if one can't be recreated from its config."""
        models = [m.snapshot for m in self._members if m.snapshot is not None]
        return models if len(models) == len(self._members) else None

    def __call__(self, x) -> tf.Tensor:
        """Returns float32 logits (B, C), through which no gradient flows."""
        logits = [member(x) for member in self._members]
        if len(logits) > 1:
            log_probabilities = tf.stack([tf.nn.log_softmax(each) for each in logits])
            logits = [tf.reduce_logsumexp(log_probabilities, axis=0) - np.log(len(self._members))]
        return tf.stop_gradient(logits[0])

    def with_features(
        self, names: Sequence[str], layer_names: Mapping[str, str] | None = None
    ) -> tuple[Callable[[tf.Tensor], dict[str, tf.Tensor]], dict[str, tf.TensorShape]]:
        """Returns a function that computes the logits and inner outputs, and their shapes.

        Args:
            names: the features: names of layers, or "embedding" for the input of the last dense
                layer.
            layer_names: the layer of each feature that isn't named like its layer.

        Returns:
            A function from x, as in `__call__`, to a dict of float32 tensors with the keys
            "logits" and `names`, through which no gradient flows; and a dict of their shapes.

        Raises:
            InputError: if there are several models, or the model lacks such a layer.
        """
        if len(self._members) > 1:
            raise InputError(
                f"{len(self._members)} teachers have no inner features in common; choose one of "
                "them, or a method that needs only the logits"
            )
        return self._members[0].with_features(names, layer_names)

    def fingerprint(self) -> str:
        """Returns a hash (64 hexadecimal digits) of everything the logits depend on."""
        digest = hashlib.sha256()
        for member in self._members:
            member.update_digest(digest)
        return digest.hexdigest()

    def get_config(self) -> dict:
        return {"members": [m.get_config() for m in self._members]}

    @classmethod
    def from_config(cls, config: dict) -> "FrozenTeacher":
        deserialize = keras.saving.deserialize_keras_object
        members = [
            cls(deserialize(m["model"]), m["outputs"], m["class_indices"], m["dtype"])
            for m in config["members"]
        ]
        return cls(members)

    def save_weights(self, folder: str) -> None:
        """Writes the weights of each model to a folder."""
        for file, snapshot in self._weight_files(folder):
            snapshot.save_weights(file)

    def load_weights(self, folder: str) -> None:
        """Loads the weights that `save_weights` wrote for the same architecture."""
        for file, snapshot in self._weight_files(folder):
            snapshot.load_weights(file)

    def _weight_files(self, folder: str):
        for number, member in enumerate(self._members):
            yield os.path.join(folder, f"teacher{number}.weights.h5"), member.snapshot_to_save()
