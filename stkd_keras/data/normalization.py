"""Common normalizations: means and standard deviations of pixels scaled to [0, 1]."""

import math
from typing import TypeAlias

from stkd_keras.data.dataset import Dataset
from stkd_keras.errors import InputError

PerChannel: TypeAlias = float | tuple[float, ...]

NORMALIZATIONS: dict[str, tuple[PerChannel, PerChannel]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "none": (0.0, 1.0),
    "raw": (0.0, 1 / 255),
}


def parse_normalization(text: str, dataset: Dataset):
    """Parses a normalization.

    Args:
        text: "dataset" for the data set's own, "imagenet", "cifar10", "cifar100", "none" (pixels in
            [0, 1]), "raw" (pixels in [0, 255]), or six comma-separated numbers: three means, then
            three standard deviations.
        dataset: the data set.

    Returns:
        (mean, std), each a number or a tuple of one number per channel, for pixels in [0, 1].

    Raises:
        InputError: if `text` is anything else.
    """
    if text == "dataset":
        return dataset.mean, dataset.std
    if text in NORMALIZATIONS:
        return NORMALIZATIONS[text]
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 6 or not all(map(math.isfinite, numbers)) or min(numbers[3:]) <= 0:
        raise InputError(
            f"normalization {text!r} given, expected dataset, {', '.join(NORMALIZATIONS)}, or six "
            "comma-separated numbers: means, then positive standard deviations"
        )
    return tuple(numbers[:3]), tuple(numbers[3:])
