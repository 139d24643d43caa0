"""A classifier's input and output: shapes, precision, logits or probabilities."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from stkd_keras.errors import InputError

KINDS = ("auto", "logits", "probabilities")

_SOFTMAX_FUNCTIONS = (keras.activations.softmax, keras.ops.softmax, tf.nn.softmax)
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
    """Returns "logits" or "probabilities", which "auto" detects from the last layer."""
    if outputs not in KINDS:
        raise InputError(f"outputs is {outputs!r}, but must be one of {', '.join(KINDS)}")
    if outputs != "auto":
        return outputs
    remedy = (
        "a classifier ends in a linear layer or a softmax; for another one set "
        f"{'outputs' if role == 'teacher' else 'student_outputs'}="
        '"logits" or "probabilities"'
    )
    layer = _last_layer(model)
    if layer is None:
        raise InputError(f"the last layer of the {role} {model.name!r} can't be found; {remedy}")
    kind = _kind(layer)
    if kind == "linear":
        before = _layer_before(layer)
        kind = "logits" if before is None or _is_unbounded(before) else None
    if kind is None:
        name = getattr(getattr(layer, "activation", None), "__name__", type(layer).__name__)
        raise InputError(
            f"the {role} {model.name!r} ends in {name} (layer {layer.name!r}); {remedy}"
        )
    return kind


def logits_function(model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function from inputs to a classifier's float32 logits (B, C) in inference."""
    kind = resolve_outputs(model, "auto", "student")
    return lambda x: as_logits(model(x, training=False), kind)


def as_logits(outputs, kind: str) -> tf.Tensor:
    """Returns float32 logits for a classifier's outputs of this kind."""
    if kind == "probabilities":
        return logits_of_probabilities(outputs)
    return tf.cast(outputs, tf.float32)


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
        if layer.compute_dtype in ("float16", "bfloat16"):
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


def num_classes(model: keras.Model, role: str) -> int | None:
    """Returns a classifier's number of classes, or None if it isn't known yet."""
    if getattr(model, "outputs", None):
        output = tuple(model.outputs[0].shape)
    elif (sample := input_shape(model)) is not None:
        try:
            output = tuple(model.compute_output_spec(keras.KerasTensor((None, *sample))).shape)
        except Exception:  # The user's class can't compute its output shape.
            return None
    else:
        return None
    if len(output) != 2 or (output[1] or 2) < 2:
        raise InputError(
            f"the {role} {model.name!r} has the output shape {output}, but a classifier's is "
            "(batch, classes) with at least two classes"
        )
    return output[1]


def has_keras_call(model: keras.Model) -> bool:
    """Whether a model's graph describes its computation: its class doesn't override `call`."""
    return type(model).call.__module__.startswith("keras.")


def remove_softmax(model: keras.Model) -> bool:
    """Removes a model's final softmax in place, and returns whether that was possible."""
    layer = _last_layer(model)
    if layer is None or _kind(layer) != "probabilities" or len(layer._inbound_nodes) != 1:
        return False
    if _has_softmax_activation(layer):
        layer.activation = keras.activations.linear
    else:
        layer.call = lambda inputs, *args, **kwargs: inputs
    return True


def logits_of_probabilities(probabilities) -> tf.Tensor:
    """Returns logits whose softmax gives the probabilities."""
    return tf.math.log(tf.maximum(tf.cast(probabilities, tf.float32), 2.0**-126))


def _last_layer(model):
    """Returns the layer that computes the output, or None without a graph."""
    if not getattr(model, "outputs", None) or not has_keras_call(model):
        return None
    return _producer(model.outputs)


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
    if _has_softmax_activation(layer) or type(layer).__name__ == "Softmax":
        return "probabilities"
    if isinstance(layer, _LINEAR):
        return "linear"
    is_linear = getattr(layer, "activation", None) is keras.activations.linear
    is_keras = type(layer).__module__.startswith("keras.")
    return "logits" if is_keras and is_linear and layer.weights else None


def _is_unbounded(layer) -> bool:
    """Whether averages of a layer's outputs can be logits. Some networks end in a ReLU."""
    activation = getattr(layer, "activation", keras.activations.linear)
    return activation in (keras.activations.linear, keras.activations.relu) and (
        type(layer).__name__ != "Softmax"
    )


def _has_softmax_activation(layer) -> bool:
    return getattr(layer, "activation", None) in _SOFTMAX_FUNCTIONS
