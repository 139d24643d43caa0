"""What a classifier takes and gives: its shapes, and whether its outputs are logits."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from stkd_keras.errors import InputError

KINDS = ("auto", "logits", "probabilities")

# What a user's own class raises when asked for a config or a shape that it can't give.
NOT_DESCRIBED = (
    AttributeError,
    ImportError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)

_SOFTMAX_FUNCTIONS = (keras.activations.softmax, keras.ops.softmax, tf.nn.softmax)
# Layers that leave a row of numbers the row of numbers that it was.
_TRANSPARENT = (
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.Identity,
    keras.layers.Reshape,
)
# Layers without an activation of their own that keep logits what they are, but would make
# something else of probabilities.
_LINEAR = (
    keras.layers.AveragePooling2D,
    keras.layers.BatchNormalization,
    keras.layers.GlobalAveragePooling2D,
)
_PREPROCESSING = (
    keras.layers.Normalization,
    keras.layers.Rescaling,
    keras.layers.Resizing,
)


def resolve_outputs(model: keras.Model, outputs: str, role: str) -> str:
    """Finds out what a classifier's outputs are."""
    if outputs not in KINDS:
        raise InputError(f"outputs is {outputs!r}, but must be one of {', '.join(KINDS)}")
    if outputs != "auto":
        return outputs
    remedy = (
        "a classifier ends in a linear layer or in a softmax; if these outputs are one or the "
        f"other, say so: {'outputs' if role == 'teacher' else 'student_outputs'}="
        '"logits" or "probabilities"'
    )
    layer = _last_layer(model)
    if layer is None:
        raise InputError(f"the last layer of the {role} {model.name!r} can't be found; {remedy}")
    kind = _kind(layer)
    if kind == "linear":
        behind = _layer_before(layer)
        kind = "logits" if behind is None or _is_unbounded(behind) else None
    if kind is None:
        name = getattr(getattr(layer, "activation", None), "__name__", type(layer).__name__)
        raise InputError(
            f"the {role} {model.name!r} ends in {name} (layer {layer.name!r}); {remedy}"
        )
    return kind


def logits_function(model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the function from inputs to float32 logits (B, C) of a classifier in inference."""
    kind = resolve_outputs(model, "auto", "student")

    return lambda x: as_logits(model(x, training=False), kind)


def as_logits(outputs, kind: str) -> tf.Tensor:
    """Returns float32 logits for outputs of a kind that `resolve_outputs` found."""
    if kind == "probabilities":
        return logits_of_probabilities(outputs)
    return tf.cast(outputs, tf.float32)


def input_shape(model: keras.Model) -> tuple | None:
    """Returns the shape of one sample, (H, W, channels) of an image, or None if not known."""
    if getattr(model, "inputs", None):
        return tuple(model.inputs[0].shape[1:])
    shape = (model.get_build_config() or {}).get("input_shape")
    return tuple(shape[1:]) if isinstance(shape, Sequence) and len(shape) > 1 else None


def precision_policy(model: keras.Model) -> keras.DTypePolicy:
    """Returns the dtype policy that a model trains under."""
    for layer in model._flatten_layers(include_self=False):
        if layer.compute_dtype in ("float16", "bfloat16"):
            prefix = "mixed_" if layer.variable_dtype == "float32" else ""
            return keras.DTypePolicy(prefix + layer.compute_dtype)
    return model.dtype_policy


def compute_in(model: keras.Model, policy: str) -> None:
    """Makes a model of our own compute in another precision; its variables stay as they are."""
    last = _last_layer(model)
    for layer in model._flatten_layers(include_self=False):
        is_exact = layer is last or isinstance(layer, _PREPROCESSING)
        if not isinstance(layer, keras.Model | keras.layers.InputLayer):
            layer.dtype_policy = keras.DTypePolicy("float32" if is_exact else policy)


def compatible(one: tuple, other: tuple) -> bool:
    """Whether two shapes agree, where None agrees with every size."""
    return len(one) == len(other) and all(
        a == b or a is None or b is None for a, b in zip(one, other, strict=True)
    )


def num_classes(model: keras.Model, role: str) -> int | None:
    """Returns the number of classes of a classifier, or None if it isn't known yet."""
    if getattr(model, "outputs", None):
        output = tuple(model.outputs[0].shape)
    elif (sample := input_shape(model)) is not None:
        try:
            output = tuple(model.compute_output_spec(keras.KerasTensor((None, *sample))).shape)
        except NOT_DESCRIBED:
            return None
    else:
        return None
    if len(output) != 2 or (output[1] or 2) < 2:
        raise InputError(
            f"the {role} {model.name!r} gives the shape {output}, but a classifier gives "
            "(batch, classes), with at least two classes"
        )
    return output[1]


def has_keras_call(model: keras.Model) -> bool:
    """Whether a model computes what its graph says: its class has no `call` of its own."""
    return type(model).call.__module__.startswith("keras.")


def remove_softmax(model: keras.Model) -> bool:
    """Makes a model that ends in a softmax give the logits, in place."""
    layer = _last_layer(model)
    if layer is None or _kind(layer) != "probabilities" or len(layer._inbound_nodes) != 1:
        return False
    if _has_softmax_activation(layer):
        layer.activation = keras.activations.linear
    else:
        layer.call = lambda inputs, *args, **kwargs: inputs
    return True


def logits_of_probabilities(probabilities) -> tf.Tensor:
    """Returns logits whose softmax is what was given."""
    return tf.math.log(tf.maximum(tf.cast(probabilities, tf.float32), 2.0**-126))


def _last_layer(model):
    """The operation that makes the output, within nested models; None where there's no graph."""
    tensors = getattr(model, "outputs", None)
    if not tensors or len(tensors) != 1 or not has_keras_call(model):
        return None
    layer = tensors[0]._keras_history.operation
    if isinstance(layer, keras.Model):
        return _last_layer(layer)
    if isinstance(layer, _TRANSPARENT) or _is_identity(layer):
        return _layer_before(layer) or layer
    return layer


def _layer_before(layer):
    tensors = layer._inbound_nodes[0].input_tensors
    if len(tensors) != 1:
        return None
    before = tensors[0]._keras_history.operation
    if isinstance(before, keras.Model):
        return _last_layer(before)
    if isinstance(before, _TRANSPARENT) or _is_identity(before):
        return _layer_before(before)
    return before


def _kind(layer) -> str | None:
    """ "logits", "probabilities", "linear" (keeps logits logits), or None for anything else."""
    if _has_softmax_activation(layer) or type(layer).__name__ == "Softmax":
        return "probabilities"
    if isinstance(layer, _LINEAR):
        return "linear"
    if not type(layer).__module__.startswith("keras."):
        return None
    if getattr(layer, "activation", None) is keras.activations.linear and layer.weights:
        return "logits"
    return None


def _is_unbounded(layer) -> bool:
    """Whether a layer's outputs, averaged, are logits: those of some networks end in a ReLU."""
    activation = getattr(layer, "activation", keras.activations.linear)
    return activation in (keras.activations.linear, keras.activations.relu) and (
        type(layer).__name__ != "Softmax"
    )


def _has_softmax_activation(layer) -> bool:
    return getattr(layer, "activation", None) in _SOFTMAX_FUNCTIONS


def _is_identity(layer) -> bool:
    return (
        isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.linear
    )
