"""Inner outputs of a classifier by name."""

import difflib
from collections.abc import Mapping, Sequence

import keras

from stkd_keras.classifiers.folding import feeds_folded_normalization, graph_nodes
from stkd_keras.classifiers.outputs import graph_output, has_keras_call
from stkd_keras.errors import InputError, first_few

OUTPUTS = "outputs"


def with_features(
    model: keras.Model,
    names: Sequence[str],
    layer_names: Mapping[str, str] | None = None,
    role: str = "model",
) -> keras.Model:
    """Returns a model that maps x to a dict of its outputs and the named inner outputs."""
    graph = model._functional if isinstance(model, keras.Sequential) else model
    if not getattr(graph, "outputs", None) or not has_keras_call(model):
        raise InputError(
            f"the {role} {model.name!r} has no graph to take features from; build it with Keras's "
            "functional API, or choose a method that needs only the logits"
        )
    layers = {layer.name: layer for layer in graph.layers}
    tensors = {}
    for name in names:
        wanted = (layer_names or {}).get(name, name)
        if wanted in layers:
            tensors[name] = _output(graph, layers[wanted], role)
        elif wanted == "embedding" and (head := _head(graph)) is not None:
            (node,) = _nodes_of(graph, head)
            tensors[name] = node.input_tensors[0]
        else:
            nearest = difflib.get_close_matches(wanted, layers, n=3) or list(layers)
            raise InputError(
                f"the {role} {model.name} has no layer {wanted!r}, but {first_few(nearest, 5)}; "
                f"name the layer of the feature {name!r} in {role}_features"
            )
    return keras.Model(
        graph.inputs[0], {OUTPUTS: graph_output(model), **tensors}, name=f"{model.name}_features"
    )


def _output(graph, layer: keras.layers.Layer, role: str):
    nodes = _nodes_of(graph, layer)
    if len(nodes) != 1 or len(nodes[0].outputs) != 1:
        raise InputError(
            f"the layer {layer.name!r} of the {role} doesn't return exactly one tensor; name "
            "another"
        )
    if feeds_folded_normalization(layer):
        raise InputError(
            f"the normalization after the layer {layer.name!r} of the {role} was folded into it; "
            "name the normalization or the activation"
        )
    return nodes[0].outputs[0]


def _nodes_of(graph, layer: keras.layers.Layer) -> list:
    # After loading a Sequential model, layer._inbound_nodes also has nodes of unused graphs.
    return [node for node in graph_nodes(graph) if node.operation is layer]


def _head(graph) -> keras.layers.Layer | None:
    dense = [layer for layer in graph.layers if isinstance(layer, keras.layers.Dense)]
    return dense[-1] if dense else None
