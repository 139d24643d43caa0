"""Prints the table of docs/zoo.md: python -m models [NAME ...]"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import models
from stkd_keras.evaluation.cost import file_bytes, multiply_adds, num_parameters

IMAGE_SHAPE = (32, 32, 3)


def table_row(name: str) -> str:
    """Returns a model's row of the table, for color images of 32x32 pixels and 100 classes."""
    model = models.build(name, input_shape=IMAGE_SHAPE, num_classes=100)
    millions = f"{(multiply_adds(model, IMAGE_SHAPE) or 0) / 1e6:,.1f} M"
    size = f"{file_bytes([model]) / 1e6:,.1f} MB"
    return f"| `{name}` | {num_parameters(model):,} | {millions} | {size} |"


def main(names: list[str]) -> None:
    """Prints the table of the named models, or of all models of the zoo."""
    print("| model | parameters | multiply-adds | `.keras` file |")
    print("|---|---|---|---|")
    for name in names or models.available():
        print(table_row(name), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
