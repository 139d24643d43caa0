"""The frozen teacher: the logits of any Keras classifier, for less than it costs as it is."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from stkd_keras.classifiers.outputs import (
    compatible,
)
from stkd_keras.errors import InputError
from stkd_keras.teacher.member import _NOT_SAVED, DTYPES, _Member


class FrozenTeacher:
    """The logits of one or several trained classifiers, which nothing changes any more.

    It is a snapshot: the models passed in aren't touched, and what happens to them later has no
    effect. It always runs in inference mode. Batch normalisation is folded into the layer before
    it where that is exact, so that a call costs less than the model's own.

    Several teachers count as one whose logits are the log of the mean of their softmaxes.

    A plain Python object on purpose: Keras saves, and sets `trainable` on, every layer that it
    finds within a model, and a teacher belongs in neither.

    Args:
        model: a built `keras.Model` that takes one tensor and gives one of shape (B, C); or a
            list of such models, or of FrozenTeachers.
        outputs: what the models give: "logits", "probabilities", or "auto" to see from the last
            layer. A final softmax that "auto" recognises is removed. Of probabilities the logits
            are log(max(p, smallest normal float32)).
        class_indices: where the models have other classes than the data, or the same in another
            order: for each class of the data the index of the models' output that means it. The
            other outputs are left out, and the softmax is over those kept. None: all, as they are.
        dtype: "bfloat16" or "float16" to compute in half precision all but the preprocessing of the
            pixels and the last layer, "float32" for none of it; None: as the models do.

    Raises:
        InputError: where a model isn't built, has several outputs, ends in something that
            `outputs="auto"` doesn't recognise, where the models differ in their number of
            classes, where `class_indices` names an output twice or one that isn't there, or where
            `dtype` is another word or a model's config can't make it anew in that precision.

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
        self._members: list[_Member] = []
        for each in models:
            members = (
                each._members
                if isinstance(each, FrozenTeacher)
                else [_Member(each, outputs, dtype)]
            )
            self._members.extend(members)
        if class_indices is not None:
            self._members = [member.select(class_indices) for member in self._members]
        counts = {m.num_classes for m in self._members} - {None}
        if len(counts) > 1:
            raise InputError(
                f"the teachers have {_list(counts)} classes, but must all have the same"
            )
        self.num_classes: int | None = counts.pop() if counts else None
        shapes = [m.input_shape for m in self._members if m.input_shape is not None]
        if any(not compatible(shapes[0], shape) for shape in shapes):
            raise InputError(
                f"the teachers take inputs of the shapes {' and '.join(map(str, shapes))}, but all "
                "see the same virtual samples; give one of them a keras.layers.Resizing"
            )
        self.input_shape: tuple | None = shapes[0] if shapes else None
        self.supports_jit = all(m.supports_jit for m in self._members)

    @property
    def num_normalizations(self) -> int:
        """How many batch normalisations the models have."""
        return sum(member.num_normalizations for member in self._members)

    @property
    def num_folded(self) -> int:
        """How many of them are folded into the layers before them."""
        return sum(member.num_folded for member in self._members)

    @property
    def num_parameters(self) -> int:
        """How many numbers training changed in the models, before anything was folded."""
        return sum(member.num_parameters for member in self._members)

    @property
    def snapshots(self) -> list[keras.Model] | None:
        """The models as they are called; None where the config of one can't make it anew."""
        models = [member.snapshot for member in self._members if member.snapshot is not None]
        return models if len(models) == len(self._members) else None

    def __call__(self, x) -> tf.Tensor:
        """Returns the logits."""
        logits = [member(x) for member in self._members]
        if len(logits) > 1:
            shares = tf.stack([tf.nn.log_softmax(each) for each in logits])
            logits = [tf.reduce_logsumexp(shares, axis=0) - np.log(len(self._members))]
        return tf.stop_gradient(logits[0])

    def with_features(
        self, names: Sequence[str], layer_names: Mapping[str, str] | None = None
    ) -> tuple[Callable[[tf.Tensor], dict[str, tf.Tensor]], dict[str, tf.TensorShape]]:
        """Returns a function that gives inner outputs beside the logits, and their shapes.

        Args:
            names: as of `stkd_keras.features.with_features`.
            layer_names: likewise.

        Returns:
            A function of x, as `__call__` takes it, that gives a dict of float32 tensors that no
            gradient passes: "logits" and the names; and the shapes by the same names.

        Raises:
            InputError: where there are several models, or one has no such features.
        """
        if len(self._members) > 1:
            raise InputError(
                f"{len(self._members)} teachers have no inner features in common; choose one of "
                "them, or a method that needs the logits only"
            )
        return self._members[0].with_features(names, layer_names)

    def fingerprint(self) -> str:
        """Returns a hash, 64 hexadecimal digits, of all that the answers depend on."""
        digest = hashlib.sha256()
        for member in self._members:
            member.add_to(digest)
        return digest.hexdigest()

    def get_config(self) -> dict:
        """Returns the architecture, without the weights.

        Raises:
            InputError: where a model can't be described by a config.
        """
        return {"members": [m.get_config() for m in self._members]}

    @classmethod
    def from_config(cls, config: dict) -> "FrozenTeacher":
        """Makes a teacher with the architecture of `get_config` and random weights."""
        members = [
            cls(
                keras.saving.deserialize_keras_object(m["model"]),
                m["outputs"],
                m["class_indices"],
                m["dtype"],
            )
            for m in config["members"]
        ]
        return cls(members)

    def save_weights(self, folder: str) -> None:
        """Writes the weights of each model into a folder."""
        for file, snapshot in self._weight_files(folder):
            snapshot.save_weights(file)

    def load_weights(self, folder: str) -> None:
        """Reads what `save_weights` of a teacher of the same architecture wrote."""
        for file, snapshot in self._weight_files(folder):
            snapshot.load_weights(file)

    def _weight_files(self, folder: str):
        for number, member in enumerate(self._members):
            if member.snapshot is None:
                raise InputError(_NOT_SAVED)
            yield os.path.join(folder, f"teacher{number}.weights.h5"), member.snapshot


def _list(values) -> str:
    return " and ".join(str(v) for v in sorted(values))
