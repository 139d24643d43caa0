"""Loads the data set of train.py and evaluate.py."""

import re
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from stkd_keras import data
from stkd_keras.errors import InputError


def load_dataset(run: Any = None) -> data.Dataset:
    """Loads the data set named by the flags; missing flags default to the run's values."""

    def value(name: str) -> Any:
        given = flags.FLAGS[name].value if name in flags.FLAGS else None
        return getattr(run, name, None) if given is None else given

    size = image_size()
    return data.load(
        value("dataset"),
        value("data_dir"),
        image_size=getattr(run, "image_size", None) if size is None else size,
        resize=value("resize") or "crop",
        encoded=is_encoded(value("augment")),
        memory_limit=memory_limit(),
        skip_bad_images=bool(value("skip_bad_images")),
    )


def image_size() -> int | list[int] | None:
    """Returns --image_size: one number for a square, or [height, width]."""
    text = flags.FLAGS.image_size
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", text, re.ASCII)
    if match is None:
        raise InputError(
            f"--image_size={text} given, expected a number of pixels, or HEIGHTxWIDTH, such as 224 "
            "or 192x256"
        )
    height, width = (int(number or match[1]) for number in match.groups())
    return height if height == width else [height, width]


def is_encoded(augment: str | None) -> bool:
    """Whether images are decoded while a run trains."""
    return augment is not None and data.parse_augmentation(augment).crops


def memory_limit() -> int:
    """Returns --memory_limit in bytes; infinity becomes a large integer."""
    gigabytes = flags.FLAGS.memory_limit
    if not gigabytes >= 0:
        raise InputError(f"--memory_limit={gigabytes} given, expected GB, 0 or more")
    return round(min(gigabytes * 1e9, sys.maxsize / 2))


def list_skipped(skipped: Sequence[str]) -> None:
    """Prints the images that were skipped, if any."""
    if skipped:
        print("\n  ".join([f"skipped {len(skipped)} unreadable images:", *skipped]))
