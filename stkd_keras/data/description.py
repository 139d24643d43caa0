"""Data set descriptions for reports and the terminal."""

from typing import Any

from stkd_keras.data.dataset import AnySplit, Dataset


def describe(
    dataset: Dataset, train_split: AnySplit, validation_split: AnySplit | None
) -> dict[str, Any]:
    """Returns a JSON-serializable description of a data set."""
    labeled = int((train_split.labels >= 0).sum())
    counts = {
        "train": labeled,
        "unlabeled": len(train_split) - labeled,
        "validation": len(validation_split) if validation_split is not None else 0,
        "test": len(dataset.test),
    }
    return {
        "name": dataset.name,
        "version": dataset.version,
        "image_shape": list(dataset.image_shape),
        "images": {name: count for name, count in counts.items() if count},
        "classes": list(dataset.class_names),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "flip": dataset.flip,
        # File names may contain bytes that aren't UTF-8.
        "skipped": [s.encode(errors="backslashreplace").decode() for s in dataset.skipped],
    }


def format_description(description: dict[str, Any]) -> str:
    """Formats the result of `describe` as one line of text."""
    counts = ", ".join(f"{count:,} {name}" for name, count in description["images"].items())
    shape = "x".join(map(str, description["image_shape"]))
    name = f"{description['name']} {description['version']}"
    return f"{name}: {counts} images of {shape}, {len(description['classes'])} classes"
