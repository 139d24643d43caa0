"""A classifier's input and output: shapes, precision, logits or probabilities."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from stkd_keras.errors import InputError, first_few, one_line

KINDS = ("auto", "logits", "probabilities")
HALF = ("float16", "bfloat16")

# Last activations by the name of their layer or operation.
_ACTIVATIONS = {
    "Softmax": (keras.activations.softmax, keras.ops.softmax, tf.nn.softmax),
    "LogSoftmax": (keras.activations.log_softmax, keras.ops.log_softmax, tf.nn.log_softmax),
    "Sigmoid": (keras.activations.sigmoid, keras.ops.sigmoid, tf.nn.sigmoid),
}
# Layers that don't change a sample's logits or probabilities.
_TRANSPARENT = (
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.Identity,
    keras.layers.Reshape,
)
# Layers whose outputs are logits if their inputs are.
_LINEAR = (
    keras.layers.AveragePooling2D,
    keras.layers.BatchNormalization,
    keras.layers.GlobalAveragePooling2D,
)
_PREPROCESSING = (keras.layers.Normalization, keras.layers.Rescaling, keras.layers.Resizing)


def resolve_outputs(model: keras.Model, outputs: str, role: str) -> str:
    """Returns "logits" or "probabilities", which "auto" detects from the last layer.

    Of a single unit, they are the logit or the probability of the second of two classes.
    """
    if outputs not in KINDS:
        raise InputError(f"outputs is {outputs!r}, but must be one of {', '.join(KINDS)}")
    if outputs != "auto":
        return outputs
    argument = "outputs" if role == "teacher" else "student_outputs"
    remedy = (
        "a classifier ends in a linear layer or a softmax; for another one set "
        f'{argument}="logits" or "probabilities"'
    )
    layer = _last_layer(model)
    if layer is None:
        raise InputError(f"the last layer of the {role} {model.name!r} can't be found; {remedy}")
    kind, activation, units = _kind(layer), _activation(layer), _units(layer)
    if kind == "linear":
        before = _layer_before(layer)
        kind = "logits" if before is None or _is_unbounded(before) else None
    if units == 1 and kind == "logits":
        kind, remedy = None, f'if it is the logit of the second class, set {argument}="logits"'
    elif units == 1 and activation == "Softmax":
        kind, remedy = None, "over a single unit it is always 1: use a sigmoid"
    elif units != 1 and activation == "Sigmoid":
        remedy = "its classes don't exclude each other: end it in a linear layer or a softmax"
    if kind is None:
        name = getattr(getattr(layer, "activation", None), "__name__", type(layer).__name__)
        name = f"a single {name} unit" if units == 1 else name
        raise InputError(
            f"the {role} {model.name!r} ends in {name} (layer {layer.name!r}); {remedy}"
        )
    return kind


def main_output(outputs: Any, model: str = "the model") -> Any:
    """Returns the only output of a classifier, or the entry "logits" of a dict."""
    if isinstance(outputs, dict) and "logits" in outputs:
        return outputs["logits"]
    is_dict, is_sequence = isinstance(outputs, dict), isinstance(outputs, list | tuple)
    values = list(outputs.values()) if is_dict else outputs if is_sequence else [outputs]
    if len(values) == 1 and hasattr(values[0], "shape"):
        return values[0]
    names = f": {first_few(list(map(str, outputs)))}" if is_dict else ""
    given = f"{len(values)} outputs{names}" if len(values) > 1 else f"a {type(outputs).__name__}"
    raise InputError(
        f"{model} returns {given}, but must return one tensor (batch, classes), or a dict with it "
        'as "logits"; wrap it as keras.Model(model.inputs, that_output)'
    )


def graph_output(model: keras.Model, role: str = "model") -> keras.KerasTensor:
    """Returns the symbolic output of a model with a graph."""
    graph = model._functional if isinstance(model, keras.Sequential) else model
    return main_output(graph.output, f"the {role} {model.name!r}")


def check_one_input(model: keras.Model, role: str) -> None:
    """Raises InputError if a model is known to take several tensors."""
    shapes = (model.get_build_config() or {}).get("input_shape") or ()
    inputs = getattr(model, "inputs", None) or [s for s in shapes if isinstance(s, Sequence)]
    if len(inputs) > 1:
        raise InputError(
            f"the {role} {model.name!r} takes {len(inputs)} inputs, but must take one, the images"
        )


def logits_function(model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function from inputs to a classifier's float32 logits (B, C) in inference."""
    kind = resolve_outputs(model, "auto", "student")
    return lambda x: as_logits(model(x, training=False), kind)


def as_logits(outputs, kind: str) -> tf.Tensor:
    """Returns float32 logits (B, C) for a classifier's outputs of this kind."""
    outputs = main_output(outputs)
    if outputs.shape[-1] != 1:
        is_logits = kind == "logits"
        return tf.cast(outputs, tf.float32) if is_logits else logits_of_probabilities(outputs)
    logit = outputs
    if kind == "probabilities":
        # As in Keras's losses. Near 1, a probability is rounded too much.
        logit = getattr(outputs, "_keras_logits", None)
        if logit is None:
            logit = logits_of_probabilities(outputs) - logits_of_probabilities(1.0 - outputs)
    logit = tf.cast(logit, tf.float32)
    return tf.concat([tf.zeros_like(logit), logit], axis=-1)


def outputs_and_logits(outputs, kind: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a classifier's outputs and logits, float32 (B, C); a unit gives two classes."""
    logits = as_logits(outputs, kind)
    outputs = main_output(outputs)
    if outputs.shape[-1] == 1:
        outputs = tf.nn.softmax(logits) if kind == "probabilities" else logits
    return tf.cast(outputs, tf.float32), logits


def input_shape(model: keras.Model) -> tuple | None:
    """Returns the shape of one sample, (H, W, channels) for images, or None if it isn't known."""
    if getattr(model, "inputs", None):
        return tuple(model.inputs[0].shape[1:])
    shape = (model.get_build_config() or {}).get("input_shape")
    return tuple(shape[1:]) if isinstance(shape, Sequence) and len(shape) > 1 else None


def precision_policy(model: keras.Model) -> keras.DTypePolicy:
    """Returns the dtype policy of a model's layers.

    A functional model that was loaded, or built under another global policy, doesn't know it; its
    layers do.
    """
    for layer in model._flatten_layers(include_self=False):
        if layer.compute_dtype in HALF:
            prefix = "mixed_" if layer.variable_dtype == "float32" else ""
            return keras.DTypePolicy(prefix + layer.compute_dtype)
    return model.dtype_policy


def compute_in(model: keras.Model, policy: str) -> None:
    """Changes the precision in which a model computes, but not that of its variables.

    Preprocessing and the last layer always compute in float32: half precision would round the
    logits too much.
    """
    last = _last_layer(model)
    for layer in model._flatten_layers(include_self=False):
        is_exact = layer is last or isinstance(layer, _PREPROCESSING)
        if not isinstance(layer, keras.Model | keras.layers.InputLayer):
            layer.dtype_policy = keras.DTypePolicy("float32" if is_exact else policy)


def compatible(one: tuple, other: tuple) -> bool:
    """Whether two shapes agree; None agrees with every size."""
    return tf.TensorShape(one).is_compatible_with(other)


def num_classes(model: keras.Model, role: str, sample: tuple | None = None) -> int | None:
    """Returns a classifier's number of classes, or None if it isn't known yet.

    `sample` is the shape of one sample, if the model may not know it.
    """
    output = output_spec(model, role, sample)
    if output is None:
        return None
    shape = tuple(output.shape)
    if len(shape) != 2 or shape[1] == 0:
        raise InputError(
            f"the {role} {model.name!r} has the output shape {shape}, but a classifier's is "
            "(batch, classes)"
        )
    return 2 if shape[1] == 1 else shape[1]


def output_spec(model: keras.Model, role: str, sample: tuple | None = None) -> Any:
    """Returns something with the shape and the dtype of a model's output, or None if unknown."""
    if getattr(model, "outputs", None):
        return graph_output(model, role)
    sample = input_shape(model) or sample
    if sample is None:
        return None
    try:
        output = model.compute_output_spec(keras.KerasTensor((None, *sample)))
    except Exception:  # The user's class can't be called on a symbolic tensor.
        zeros = np.zeros((1, *(32 if size is None else size for size in sample)), "float32")
        try:
            output = model(zeros, training=False)
        except Exception as error:
            raise InputError(
                f"the {role} {model.name!r} can't be called on a batch of shape {zeros.shape}: "
                f"{one_line(error)}"
            ) from error
    return main_output(output, f"the {role} {model.name!r}")


def warn_of_rounded_probabilities(model: keras.Model, role: str) -> None:
    """Warns if a model's probabilities are in half precision."""
    output = output_spec(model, role)
    if output is not None and keras.backend.standardize_dtype(output.dtype) in HALF:
        warnings.warn(
            f"the {role} {model.name!r} returns probabilities in {output.dtype}, which rounds them "
            'too much for a good soft loss; give its last layer dtype="float32", or return logits',
            stacklevel=2,
        )


def has_keras_call(model: keras.Model) -> bool:
    """Whether a model's graph describes its computation: its class doesn't override `call`."""
    return type(model).call.__module__.startswith("keras.")


def remove_activation(model: keras.Model) -> str | None:
    """Removes a final softmax or single sigmoid in place, if that is possible.

    Returns None, or what a model recreated from the changed model's config returns.
    """
    layer = _last_layer(model)
    if layer is None or _kind(layer) != "probabilities" or len(layer._inbound_nodes) != 1:
        return None
    if hasattr(layer, "activation"):
        layer.activation = keras.activations.linear
        return "logits"
    layer.call = lambda inputs, *args, **kwargs: inputs
    return "probabilities"


def logits_of_probabilities(probabilities) -> tf.Tensor:
    """Returns logits whose softmax gives the probabilities."""
    return tf.math.log(tf.maximum(tf.cast(probabilities, tf.float32), 2.0**-126))


def _last_layer(model):
    """Returns the layer that computes the output, or None without a graph."""
    if not getattr(model, "outputs", None) or not has_keras_call(model):
        return None
    return _producer([graph_output(model)])


def _layer_before(layer):
    return _producer(layer._inbound_nodes[0].input_tensors)


def _producer(tensors):
    """Returns the layer that computes a single tensor, skipping transparent layers."""
    if len(tensors) != 1:
        return None
    layer = tensors[0]._keras_history.operation
    if isinstance(layer, keras.Model):
        return _last_layer(layer)
    is_activation = isinstance(layer, keras.layers.Activation)
    is_identity = is_activation and layer.activation is keras.activations.linear
    return _layer_before(layer) if is_identity or isinstance(layer, _TRANSPARENT) else layer


def _kind(layer) -> str | None:
    """Returns "logits", "probabilities", "linear" (like its input), or None for another kind."""
    activation = _activation(layer)
    if activation == "Softmax" or (activation == "Sigmoid" and _units(layer) == 1):
        return "probabilities"
    if activation == "LogSoftmax":
        return "logits"
    if isinstance(layer, _LINEAR):
        return "linear"
    is_linear = getattr(layer, "activation", None) is keras.activations.linear
    is_keras = type(layer).__module__.startswith("keras.")
    return "logits" if is_keras and is_linear and layer.weights else None


def _is_unbounded(layer) -> bool:
    """Whether averages of a layer's outputs can be logits. Some networks end in a ReLU."""
    activation = getattr(layer, "activation", keras.activations.linear)
    return activation in (keras.activations.linear, keras.activations.relu) and (
        _activation(layer) is None
    )


def _activation(layer) -> str | None:
    for name, functions in _ACTIVATIONS.items():
        if type(layer).__name__ == name or getattr(layer, "activation", None) in functions:
            return name
    return None


def _units(layer) -> int | None:
    return layer._inbound_nodes[0].outputs[0].shape[-1]
