"""The frozen teacher: the logits of any Keras classifier, for less than it costs as it is."""

import copy
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from stkd_keras.cost import num_parameters
from stkd_keras.errors import InputError
from stkd_keras.features import OUTPUTS, with_features
from stkd_keras.folding import fold_batch_normalization
from stkd_keras.normalization import fuse_batch_normalization, has_fused_batch_normalization
from stkd_keras.outputs import (
    NOT_DESCRIBED,
    compatible,
    compute_in,
    has_keras_call,
    input_shape,
    logits_of_probabilities,
    num_classes,
    remove_softmax,
    resolve_outputs,
)

DTYPES = ("float32", "bfloat16", "float16")
_NOT_SAVED = (
    "this teacher can't be saved within the distiller: the config of its class doesn't make it "
    "anew; save distiller.student, or use distiller.save_weights"
)


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
        """Returns the logits.

        Args:
            x: float32 tensor of shape (B, ...), what the models take (pixels in [0, 255]).

        Returns:
            float32 tensor of shape (B, C) that no gradient passes.
        """
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


class _Member:
    """One classifier of a teacher."""

    def __init__(self, model: keras.Model, outputs: str, dtype: str | None):
        _check_classifier(model)
        self.outputs, self.dtype = outputs, dtype
        self.kind = resolve_outputs(model, outputs, "teacher")
        self.num_classes = num_classes(model, "teacher")
        self.input_shape = input_shape(model)
        self.num_parameters = num_parameters(model)
        self.class_indices: list[int] | None = None
        layers = model._flatten_layers()
        self.supports_jit = all(layer.supports_jit for layer in layers)
        # Not the names of layers, which count up in a process.
        self._kinds = [type(layer).__name__ for layer in layers]
        self._precision = dtype or sorted({x.compute_dtype for x in layers} - {"float32"})
        self.snapshot = _rebuild(model)
        if self.snapshot is None and dtype is not None:
            raise InputError(
                f"the teacher {model.name!r} can't be computed in {dtype}: the config of its class "
                "doesn't make it anew; leave dtype out"
            )
        if self.snapshot is None:
            self._call, self._weights = _with_copied_weights(model)
        else:
            self._weights = self.snapshot.weights
            self._call = self.snapshot
            if outputs == "auto" and self.kind == "probabilities" and remove_softmax(self.snapshot):
                self.kind = "logits"
            if dtype is not None:
                compute_in(self.snapshot, "float32")  # Only that is folded.
            fuse_batch_normalization(self.snapshot)
        self.num_normalizations, self.num_folded = _count_normalizations(model), 0
        if self.snapshot is not None:
            self.num_folded, _ = fold_batch_normalization(self.snapshot)
            if dtype not in (None, "float32"):
                compute_in(self.snapshot, f"mixed_{dtype}")
        if self.num_normalizations and not self.num_folded:
            logging.warning(
                "none of the %d batch normalisations of the teacher %r could be folded: it is used "
                "as it is",
                self.num_normalizations,
                model.name,
            )

    def __call__(self, x):
        return self._logits(self._call(x, training=False))

    def with_features(self, names, layer_names):
        if self.snapshot is None:
            raise InputError(
                "the teacher's class can't be made anew from its config, and shows no inner "
                "features; choose a method that needs the logits only"
            )
        model = with_features(self.snapshot, names, layer_names, "teacher")

        def answer(x):
            given = model(x, training=False)
            features = {name: tf.cast(given[name], tf.float32) for name in names}
            answers = {**features, "logits": self._logits(given[OUTPUTS])}
            return tf.nest.map_structure(tf.stop_gradient, answers)

        shapes = {name: tf.TensorShape(model.output[name].shape) for name in names}
        return answer, {**shapes, "logits": tf.TensorShape([None, self.num_classes])}

    def _logits(self, answer) -> tf.Tensor:
        if self.kind == "probabilities":
            logits = logits_of_probabilities(answer)
        else:
            logits = tf.cast(answer, tf.float32)
        if self.class_indices is None:
            return logits
        return tf.gather(logits, self.class_indices, axis=1)

    def select(self, class_indices: Sequence[int]) -> "_Member":
        """The same classifier, of these classes only and in this order."""
        indices = _checked_indices(class_indices, self.num_classes)
        selected = copy.copy(self)
        before = self.class_indices
        selected.class_indices = indices if before is None else [before[i] for i in indices]
        selected.num_classes = len(indices)
        return selected

    def add_to(self, digest) -> None:
        """Adds the classifier to a hash."""
        precision = self._precision or "float32"
        facts = (self._kinds, self.kind, self.class_indices, self.input_shape, precision)
        digest.update(repr(facts).encode())
        for weight in self._weights:
            digest.update(repr(tuple(weight.shape)).encode())
            digest.update(np.ascontiguousarray(weight.numpy()).tobytes())

    def get_config(self) -> dict:
        if self.snapshot is None:
            raise InputError(_NOT_SAVED)
        model = keras.saving.serialize_keras_object(self.snapshot)
        return {
            "model": model,
            "outputs": self.outputs,
            "class_indices": self.class_indices,
            "dtype": self.dtype,
        }


def _check_classifier(model) -> None:
    if not isinstance(model, keras.Model):
        raise InputError(
            f"the teacher is a {type(model).__name__}, but must be a keras.Model, a FrozenTeacher "
            "or a list of them"
        )
    if not model.built or not model.weights:
        raise InputError(
            f"the teacher {model.name!r} has no weights yet: call it on a batch, or load the "
            "trained model"
        )
    if len(getattr(model, "outputs", None) or [None]) != 1:
        raise InputError(
            f"the teacher {model.name!r} has {len(model.outputs)} outputs, but must have one: "
            "the logits or the probabilities; wrap it as keras.Model(model.inputs, that_output)"
        )


def _checked_indices(class_indices: Any, num_classes: int | None) -> list[int]:
    """The indices as a list of ints; num_classes is None where it isn't known."""
    expected = "at least two different integers" + (
        f" from 0 to {num_classes - 1}, the teacher's outputs" if num_classes else " of at least 0"
    )
    indices = list(class_indices) if isinstance(class_indices, Sequence | np.ndarray) else []
    if len(indices) < 2 or not all(isinstance(index, int | np.integer) for index in indices):
        raise InputError(f"class_indices is {class_indices!r}, but must be {expected}")
    for position, index in enumerate(indices):
        if index < 0 or (num_classes is not None and index >= num_classes):
            raise InputError(f"class_indices has {index}, but must be {expected}")
        if index in indices[:position]:
            raise InputError(f"class_indices has {index} more than once, but must be {expected}")
    return [int(index) for index in indices]


def _rebuild(model: keras.Model) -> keras.Model | None:
    """A copy with the same answers, or None where the model's config can't make one."""
    if getattr(model, "outputs", None) and has_keras_call(model):
        # Its graph says all, also of a class whose constructor takes other arguments.
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    layers = model._flatten_layers()
    own = {type(x).__name__: type(x) for x in layers if not type(x).__module__.startswith("keras.")}
    try:
        with keras.saving.custom_object_scope(own):
            copy = type(model).from_config(model.get_config())
        if not copy.built:
            copy.build_from_config(model.get_build_config())
        copy.set_weights(model.get_weights())
        for layer in copy._flatten_layers():
            if isinstance(layer, keras.layers.Normalization):
                layer.finalize_state()
        copy.trainable = False
        if has_fused_batch_normalization(model):
            fuse_batch_normalization(copy)  # Else their answers differ by rounding.
        # A layer may leave arguments out of its config, or keep state that isn't a weight.
        return copy if _answer_alike(model, copy) else None
    except (*NOT_DESCRIBED, tf.errors.OpError) as error:
        logging.info("%s", error)
        return None


def _answer_alike(model: keras.Model, copy: keras.Model) -> bool:
    shape = [32 if size is None else size for size in input_shape(model) or ()]
    dtype = model.inputs[0].dtype if getattr(model, "inputs", None) else "float32"
    probe = np.random.default_rng(0).uniform(0, 255, (2, *shape)).astype(dtype)
    answer, expected = (np.asarray(m(probe, training=False), "float64") for m in (copy, model))
    tolerance = 1e-4 * np.abs(expected).max(initial=1e-2)
    return np.allclose(answer, expected, rtol=0, atol=tolerance, equal_nan=True)


def _with_copied_weights(model: keras.Model):
    """The model's own call, on weights that are copies, and the copies."""
    mapping = [(v, tf.Variable(v.numpy(), trainable=False, name=v.name)) for v in model.variables]

    def call(x, training):
        with keras.StatelessScope(state_mapping=[(v, copy.value()) for v, copy in mapping]):
            return model(x, training=training)

    return call, [copy for _, copy in mapping]


def _count_normalizations(model) -> int:
    layers = model._flatten_layers()
    return sum(isinstance(layer, keras.layers.BatchNormalization) for layer in layers)


def _list(values) -> str:
    return " and ".join(str(v) for v in sorted(values))
