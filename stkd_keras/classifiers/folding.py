"""Folds batch normalization into the layer before it, which makes inference cheaper.

In inference, batch normalization scales and shifts each channel. The scale moves into the kernel of
the convolution or dense layer before it, and the shift remains as a bias:

    gamma * (w * x + b - mean) / sqrt(variance + epsilon) + beta
        = (scale * w) * x + (scale * (b - mean) + beta),   scale = gamma / sqrt(variance + epsilon)
"""

import collections
import types

import keras
import numpy as np
import tensorflow as tf

from stkd_keras.classifiers.outputs import has_keras_call

_FOLDABLE = (
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
    keras.layers.Dense,
    keras.layers.EinsumDense,
)
# A grouped 1x1 convolution.
_GROUPED = "bhwgi,gio->bhwgo"


def fold_batch_normalization(model: keras.Model) -> int:
    """Folds batch normalization in place where that is exact, and returns how often.

    Folds float32 BatchNormalization layers whose only input comes straight from a convolution or
    Dense layer without an activation, if nothing else uses that output, in nested models, too. A
    normalization before its convolution can't be folded, because of the ReLU between them. Logits
    stay equal to about 1e-5 of their spread. The model stays a plain Keras model: a folded
    normalization keeps its shift as its moving mean.
    """
    graphs = list(_graphs(model))
    calls = collections.Counter(
        id(node.operation) for graph in graphs for node in graph_nodes(graph)
    )
    folded = 0
    for graph in graphs:
        nodes = graph_nodes(graph)
        producers = {id(t): node.operation for node in nodes for t in node.outputs}
        uses = collections.Counter(
            id(t) for tensors in [graph.outputs, *(n.input_tensors for n in nodes)] for t in tensors
        )
        used_once = {key for key, layer in producers.items() if uses[key] == calls[id(layer)] == 1}
        for node in nodes:
            normalization = node.operation
            if not _is_plain_normalization(normalization) or calls[id(normalization)] != 1:
                continue
            source = node.input_tensors[0]
            if id(source) in used_once and _joins_groups(producers[id(source)]):
                source = producers[id(source)].input
            layer = producers.get(id(source))
            if (
                type(layer) in _FOLDABLE
                and id(source) in used_once
                and _is_linear(layer)
                and _normalizes_channels(normalization, layer)
            ):
                _fold(layer, normalization)
                folded += 1
    return folded


def feeds_folded_normalization(layer: keras.layers.Layer) -> bool:
    """Whether the next layer's batch normalization was folded into this one."""
    return any(
        getattr(getattr(node.operation, "call", None), "__func__", None) in _FOLDED_CALLS
        for node in layer._outbound_nodes
    )


def graph_nodes(graph) -> list:
    """Returns the nodes of a functional graph, each a call of a layer."""
    return [node for nodes in graph._nodes_by_depth.values() for node in nodes]


def _graphs(model, seen=None):
    """Yields the functional graphs of a model and of its nested models, each once."""
    seen = set() if seen is None else seen
    graph = model._functional if isinstance(model, keras.Sequential) else model
    if id(graph) in seen or not hasattr(graph, "_nodes_by_depth") or not has_keras_call(model):
        return
    seen.add(id(graph))
    yield graph
    for operation in graph.operations:
        if isinstance(operation, keras.Model):
            yield from _graphs(operation, seen)


def _is_plain_normalization(layer) -> bool:
    return (
        type(layer) is keras.layers.BatchNormalization
        and not layer.renorm
        and layer.compute_dtype == "float32"
    )


def _is_linear(layer) -> bool:
    return (
        layer.activation is keras.activations.linear
        and layer.compute_dtype == "float32"
        and layer.quantization_mode is None
        and not getattr(layer, "lora_enabled", False)
    )


def _joins_groups(layer) -> bool:
    """Whether a layer is the Reshape after a grouped convolution, to (..., groups * channels)."""
    if type(layer) is not keras.layers.Reshape or len(layer.input.shape) != 5:
        return False
    *before, groups, channels = layer.input.shape
    return tuple(layer.output.shape) == (*before, groups * channels)


def _normalizes_channels(normalization, layer) -> bool:
    rank = normalization.input_spec.ndim
    if type(layer) is keras.layers.EinsumDense:
        return layer.equation == _GROUPED and rank == 4 and normalization.axis % rank == 3
    channels_first = getattr(layer, "data_format", "channels_last") == "channels_first"
    return normalization.axis % rank == (1 if channels_first else rank - 1)


def _fold(layer, normalization) -> None:
    mean = np.float64(normalization.moving_mean.numpy())
    scale = 1.0 / np.sqrt(np.float64(normalization.moving_variance.numpy()) + normalization.epsilon)
    if normalization.scale:
        scale = scale * normalization.gamma.numpy()
    shift = -mean * scale
    if normalization.center:
        shift = shift + normalization.beta.numpy()
    _scale_kernel(layer, scale)
    has_bias = layer.bias is not None
    if has_bias:
        layer.bias.assign(shift + scale * layer.bias.numpy())
        shift = np.zeros_like(shift)

    # Keras's own call, which a loaded model uses, must also only add the shift.
    if normalization.scale:
        normalization.gamma.assign(np.ones(scale.shape))
    if normalization.center:
        normalization.beta.assign(np.zeros(scale.shape))
    normalization.moving_variance.assign(np.full(scale.shape, 1.0 - normalization.epsilon))
    normalization.moving_mean.assign(-shift)
    normalization.call = types.MethodType(_return_inputs if has_bias else _add_shift, normalization)


def _return_inputs(normalization, inputs, training=None, mask=None):
    return inputs


def _add_shift(normalization, inputs, training=None, mask=None):
    shift = tf.cast(-tf.convert_to_tensor(normalization.moving_mean), inputs.dtype)
    if inputs.shape.rank != 4:
        return inputs + shift
    # TensorFlow fuses this op with the convolution and the ReLU around it, but not an addition.
    channels_first = normalization.axis % 4 == 1
    return tf.nn.bias_add(inputs, shift, "NCHW" if channels_first else "NHWC")


_FOLDED_CALLS = (_return_inputs, _add_shift)


def _scale_kernel(layer, scale) -> None:
    is_separable = isinstance(layer, keras.layers.SeparableConv2D)
    kernel = layer.pointwise_kernel if is_separable else layer.kernel
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        scale = scale.reshape(kernel.shape[-2:])
    elif isinstance(layer, keras.layers.EinsumDense):
        scale = scale.reshape(kernel.shape[0], 1, kernel.shape[2])
    kernel.assign(np.float64(kernel.numpy()) * scale)
