"""What fine-tuning a pretrained student needs beyond the optimizer's rates."""

import contextlib
from collections.abc import Iterator

import keras


def count_backbone_variables(student: keras.Model) -> int:
    """Returns how many of the first trainable variables belong to the backbone.

    The backbone is everything before the head, the last layer with weights.
    """
    head: keras.layers.Layer = student
    while inner := [layer for layer in head._layers if layer.weights]:
        head = inner[-1]
    return len(student.trainable_variables) - len(head.trainable_variables)


@contextlib.contextmanager
def frozen_batch_norm(student: keras.Model, freeze: bool | None = True) -> Iterator[None]:
    """Freezes the student's batch normalization: Keras then uses its moving statistics."""
    layers = [
        layer
        for layer in student._flatten_layers()
        if freeze and isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    try:
        for layer in layers:
            layer.trainable = False
        yield
    finally:
        for layer in layers:
            layer.trainable = True
