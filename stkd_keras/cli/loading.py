"""Loads the data set of train.py and evaluate.py."""

import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from stkd_keras import data
from stkd_keras.errors import InputError


def load_dataset(run: Any = None) -> data.Dataset:
    """Loads the data set named by the flags; missing flags default to the run's values."""
    values: list[Any] = [
        getattr(run, name, None) if flags.FLAGS[name].value is None else flags.FLAGS[name].value
        for name in ("dataset", "data_dir", "image_size", "skip_bad_images")
    ]
    dataset, data_dir, image_size, skip = values
    return data.load(
        dataset,
        data_dir,
        image_size=image_size,
        memory_limit=memory_limit(),
        skip_bad_images=bool(skip),
    )


def memory_limit() -> int:
    """Returns --memory_limit in bytes; infinity becomes a large integer."""
    gigabytes = flags.FLAGS.memory_limit
    if not gigabytes >= 0:
        raise InputError(f"--memory_limit={gigabytes} given, expected GB, 0 or more")
    return round(min(gigabytes * 1e9, sys.maxsize / 2))


def list_skipped(skipped: Sequence[str]) -> None:
    if skipped:
        print("\n  ".join([f"skipped {len(skipped)} unreadable images:", *skipped]))
