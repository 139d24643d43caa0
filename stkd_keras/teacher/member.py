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
    HALF,
    as_logits,
    check_one_input,
    compute_in,
    graph_output,
    has_keras_call,
    input_shape,
    main_output,
    num_classes,
    remove_activation,
    resolve_outputs,
    warn_of_rounded_probabilities,
)
from stkd_keras.errors import InputError, one_line
from stkd_keras.evaluation.cost import num_parameters

DTYPES = ("float32", "bfloat16", "float16")


class Member:
    """A frozen copy of one classifier.

    `snapshot` is None if the classifier can't be recreated from its config. It then keeps its own
    code, on copies of its weights.
    """

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
        # For the fingerprint. Layer names depend on how many layers the process made before.
        self._layer_types = [type(layer).__name__ for layer in layers]
        self._precision = dtype or sorted({x.compute_dtype for x in layers} - {"float32"})
        self.num_normalizations = sum(
            isinstance(layer, keras.layers.BatchNormalization) for layer in layers
        )
        self.num_folded = 0
        self.snapshot = _rebuild(model)
        if self.snapshot is not None:
            self._call, self._weights = self.snapshot, self.snapshot.weights
            self._speed_up(self.snapshot)
        elif dtype is None:
            self._call, self._weights = _with_copied_weights(model)
        else:
            raise InputError(
                f"the teacher {model.name!r} can't compute in {dtype}: its class can't be "
                "recreated from its config; leave dtype out"
            )
        if self.kind == "probabilities":
            warn_of_rounded_probabilities(self.snapshot or model, "teacher")
        if self.num_normalizations and not self.num_folded:
            logging.warning(
                "none of the %d batch normalizations of the teacher %r could be folded",
                self.num_normalizations,
                model.name,
            )

    def __call__(self, x) -> tf.Tensor:
        return self._logits(self._call(x, training=False))

    def with_features(self, names, layer_names):
        if self.snapshot is None:
            raise InputError(
                "the teacher's class can't be recreated from its config, so its inner features "
                "aren't available; choose a method that needs only the logits"
            )
        model = with_features(self.snapshot, names, layer_names, "teacher")

        def logits_and_features(x):
            outputs = model(x, training=False)
            features = {name: tf.cast(outputs[name], tf.float32) for name in names}
            return tf.nest.map_structure(
                tf.stop_gradient, {**features, "logits": self._logits(outputs[OUTPUTS])}
            )

        shapes = {name: tf.TensorShape(model.output[name].shape) for name in names}
        shapes["logits"] = tf.TensorShape([None, self.num_classes])
        return logits_and_features, shapes

    def select(self, class_indices: Sequence[int]) -> "Member":
        """Returns the classifier restricted to these classes, in this order."""
        indices = _checked_indices(class_indices, self.num_classes)
        selected = copy.copy(self)
        before = self.class_indices
        selected.class_indices = indices if before is None else [before[i] for i in indices]
        selected.num_classes = len(indices)
        return selected

    def update_digest(self, digest) -> None:
        """Adds everything the logits depend on to a hash."""
        precision = self._precision or "float32"
        facts = (self._layer_types, self.kind, self.class_indices, self.input_shape, precision)
        digest.update(repr(facts).encode())
        for weight in self._weights:
            digest.update(repr(tuple(weight.shape)).encode())
            digest.update(np.ascontiguousarray(weight.numpy()).tobytes())

    def get_config(self) -> dict:
        return {
            "model": keras.saving.serialize_keras_object(self.snapshot_to_save()),
            "outputs": self.outputs,
            "class_indices": self.class_indices,
            "dtype": self.dtype,
        }

    def snapshot_to_save(self) -> keras.Model:
        """Returns the snapshot, or raises InputError if there is none to save."""
        if self.snapshot is None:
            raise InputError(
                "this teacher can't be saved with the distiller: its class can't be recreated from "
                "its config; save distiller.student, or use distiller.save_weights"
            )
        return self.snapshot

    def _speed_up(self, snapshot: keras.Model) -> None:
        if self.outputs != "logits" and (in_config := remove_activation(snapshot)):
            self.kind, self.outputs = "logits", in_config
        layers = snapshot._flatten_layers(include_self=False)
        policies = [(x, x.dtype_policy) for x in layers if x.compute_dtype in HALF]
        if policies or self.dtype is not None:
            compute_in(snapshot, "float32")  # Only float32 layers are folded.
        fuse_batch_normalization(snapshot)
        self.num_folded = fold_batch_normalization(snapshot)
        if self.dtype in HALF:
            compute_in(snapshot, f"mixed_{self.dtype}")
        elif self.dtype is None:
            for layer, policy in policies:
                layer.dtype_policy = policy

    def _logits(self, outputs) -> tf.Tensor:
        logits = as_logits(outputs, self.kind)
        if self.class_indices is None:
            return logits
        return tf.gather(logits, self.class_indices, axis=1)


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
    check_one_input(model, "teacher")


def _checked_indices(class_indices: Any, num_classes: int | None) -> list[int]:
    indices = list(class_indices) if isinstance(class_indices, Sequence | np.ndarray) else []
    are_valid = all(isinstance(index, int | np.integer) and index >= 0 for index in indices)
    is_outside = are_valid and num_classes is not None and max(indices, default=0) >= num_classes
    if not are_valid or is_outside or len(set(indices)) < max(2, len(indices)):
        limits = f"from 0 to {num_classes - 1}" if num_classes else "of at least 0"
        raise InputError(
            f"class_indices is {one_line(class_indices)}, but must be at least two different "
            f"integers {limits}, the indices of the teacher's outputs"
        )
    return [int(index) for index in indices]


def _rebuild(model: keras.Model) -> keras.Model | None:
    """Returns a frozen copy with the same outputs, or None if the config can't recreate one.

    Its variables are float32, even if the model's aren't.
    """
    if getattr(model, "outputs", None) and has_keras_call(model):
        # The graph describes the model completely, even if its class has its own constructor.
        model = keras.Model(model.inputs[0], graph_output(model), name=model.name)
    try:
        rebuilt = _copied(model, model.get_config())
        # A layer may omit arguments from its config, or keep state that isn't a weight.
        if not _have_same_outputs(rebuilt, model):
            return None
        if any(weight.dtype in HALF for weight in model.weights):
            rebuilt = _copied(model, _with_float32_variables(model.get_config()))
        return rebuilt
    except Exception as error:  # The user's class can't be recreated from its config.
        logging.info("%s", error)
        return None


def _copied(model: keras.Model, config: dict) -> keras.Model:
    """Returns a frozen copy of a model, built from a config."""
    layers = model._flatten_layers()
    own = {type(x).__name__: type(x) for x in layers if not type(x).__module__.startswith("keras.")}
    with keras.saving.custom_object_scope(own):
        copied = type(model).from_config(config)
    if not copied.built:
        copied.build_from_config(model.get_build_config())
    copied.set_weights(
        [np.asarray(w, np.float32) if w.dtype.kind == "V" else w for w in model.get_weights()]
    )
    for layer in copied._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    copied.trainable = False
    if has_fused_batch_normalization(model):
        fuse_batch_normalization(copied)  # Otherwise the outputs differ by rounding.
    return copied


def _with_float32_variables(config: Any) -> Any:
    """Replaces the policies float16 and bfloat16 in a model's config by their mixed ones."""
    if isinstance(config, list | tuple):
        return type(config)(map(_with_float32_variables, config))
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "DTypePolicy" and config["config"]["name"] in HALF:
        return {**config, "config": {"name": f"mixed_{config['config']['name']}"}}
    return {key: _with_float32_variables(value) for key, value in config.items()}


def _have_same_outputs(rebuilt: keras.Model, model: keras.Model) -> bool:
    shape = [32 if size is None else size for size in input_shape(model) or ()]
    dtype = model.inputs[0].dtype if getattr(model, "inputs", None) else "float32"
    probe = np.random.default_rng(0).uniform(0, 255, (2, *shape)).astype(dtype)
    given, expected = (
        np.asarray(main_output(m(probe, training=False)), "float64") for m in (rebuilt, model)
    )
    tolerance = 1e-4 * np.abs(expected).max(initial=1e-2)
    return np.allclose(given, expected, rtol=0, atol=tolerance, equal_nan=True)


def _with_copied_weights(model: keras.Model):
    """Returns the model's call on copies of its weights, and the copies."""
    mapping = [(v, tf.Variable(v.numpy(), trainable=False, name=v.name)) for v in model.variables]

    def call(x, training):
        with keras.StatelessScope(state_mapping=[(v, copy.value()) for v, copy in mapping]):
            return model(x, training=training)

    return call, [copy for _, copy in mapping]
