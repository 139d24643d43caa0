"""Prints README's table of the zoo: python -m models [NAME ...]"""

import math
import os
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import models

_COUNTED = (
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.Dense,
    keras.layers.EinsumDense,
)


def table_row(name: str) -> str:
    """Returns a model's row of the table, for colour images of 32x32 pixels and 100 classes."""
    model = models.build(name, input_shape=(32, 32, 3), num_classes=100)
    parameters = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "model.keras")
        model.save(file)
        size = os.path.getsize(file)
    millions = f"{multiply_adds(model) / 1e6:,.1f} M"
    return f"| `{name}` | {parameters:,} | {millions} | {size / 1e6:,.1f} MB |"


def multiply_adds(model: keras.Model) -> int:
    """Returns how many multiplications a zoo's model does for one image.

    Those of convolutions and dense layers, each of which is added to a sum, as papers count them;
    biases, normalisation and activations aren't counted.
    """
    total = 0
    for layer in model.layers:
        if isinstance(layer, _COUNTED):
            positions = math.prod(layer.output.shape[1:3]) if len(layer.output.shape) > 2 else 1
            total += positions * math.prod(layer.kernel.shape)
    return total


def main(names: list[str]) -> None:
    """Prints the table, of all the zoo's models unless some are named."""
    print("| model | parameters | multiply-adds | `.keras` file |")
    print("|---|---|---|---|")
    for name in names or models.available():
        print(table_row(name), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
