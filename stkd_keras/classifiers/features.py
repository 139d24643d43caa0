"""Inner outputs of a classifier, by name."""

import difflib
from collections.abc import Mapping, Sequence

import keras

from stkd_keras.classifiers.folding import feeds_folded_normalization
from stkd_keras.classifiers.outputs import has_keras_call
from stkd_keras.errors import InputError, first_few

OUTPUTS = "outputs"


def with_features(
    model: keras.Model,
    names: Sequence[str],
    layer_names: Mapping[str, str] | None = None,
    role: str = "model",
) -> keras.Model:
    """Makes inner outputs of a model available beside its own.

    Args:
        model: a functional or Sequential model, built.
        names: the features: names of layers, of which the outputs are meant, or "embedding" also
            where no layer is called so: what the last dense layer receives.
        layer_names: where a feature has another name than its layer: the layer's, by the feature's.
        role: "student" or "teacher", for errors.

    Returns:
        A model of the same layers and inputs that gives a dict: "outputs", what the model gives,
        and each name with its tensor.

    Raises:
        InputError: where the model has no graph to take features from, or no such layer.
    """
    graph = model._functional if isinstance(model, keras.Sequential) else model
    if not getattr(graph, "outputs", None) or not has_keras_call(model):
        raise InputError(
            f"the {role} {model.name!r} has no graph to take features from; make it with Keras's "
            "functional API, or choose a method that needs the logits only"
        )
    layers = {layer.name: layer for layer in graph.layers}
    tensors = {}
    for name in names:
        wanted = (layer_names or {}).get(name, name)
        if wanted in layers:
            tensors[name] = _output(layers[wanted], role)
        elif wanted == "embedding" and (head := _head(graph)) is not None:
            tensors[name] = head.input
        else:
            nearest = difflib.get_close_matches(wanted, layers, n=3) or list(layers)
            raise InputError(
                f"the {role} {model.name} has no layer {wanted!r} (but {first_few(nearest, 5)}); "
                f"say which one gives the feature {name!r}: {role}_features, "
                f"--{role}_features={name}=LAYER"
            )
    return keras.Model(
        graph.inputs[0], {OUTPUTS: graph.outputs[0], **tensors}, name=f"{model.name}_features"
    )


def _output(layer: keras.layers.Layer, role: str):
    if len(layer._inbound_nodes) != 1 or not isinstance(layer.output, keras.KerasTensor):
        raise InputError(
            f"the layer {layer.name!r} of the {role} doesn't give one tensor once; name another"
        )
    if feeds_folded_normalization(layer):
        raise InputError(
            f"the layer {layer.name!r} of the {role} has taken in the normalisation behind it; "
            "name that, or the activation"
        )
    return layer.output


def _head(graph) -> keras.layers.Layer | None:
    """The last dense layer, if there is one."""
    dense = [layer for layer in graph.layers if isinstance(layer, keras.layers.Dense)]
    return dense[-1] if dense else None
