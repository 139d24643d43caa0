"""One model of a frozen teacher."""

import copy
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from stkd_keras.classifiers.features import OUTPUTS, with_features
from stkd_keras.classifiers.folding import fold_batch_normalization
from stkd_keras.classifiers.fused_batch_norm import (
    fuse_batch_normalization,
    has_fused_batch_normalization,
)
from stkd_keras.classifiers.outputs import (
    NOT_DESCRIBED,
    compute_in,
    has_keras_call,
    input_shape,
    logits_of_probabilities,
    num_classes,
    remove_softmax,
    resolve_outputs,
)
from stkd_keras.errors import InputError
from stkd_keras.evaluation.cost import num_parameters

DTYPES = ("float32", "bfloat16", "float16")
_NOT_SAVED = (
    "this teacher can't be saved within the distiller: the config of its class doesn't make it "
    "anew; save distiller.student, or use distiller.save_weights"
)


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
