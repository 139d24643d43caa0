"""Splits the training images into training and validation images."""

import numpy as np

from stkd_keras.data.dataset import AnySplit, Dataset, Subset
from stkd_keras.data.sources.tfrecords import RecordSplit
from stkd_keras.errors import InputError


def split_train(
    dataset: Dataset,
    validation_fraction: float = 0.0,
    train_fraction: float = 1.0,
    seed: int = 0,
    *,
    images_per_class: int | None = None,
) -> tuple[AnySplit, AnySplit | None]:
    """Splits off validation images, and optionally selects a part of the remaining images.

    Both splits are stratified: they take the same share of each class, up to rounding. For a given
    seed, the validation images don't depend on the size of the training part, and larger training
    parts contain smaller ones.

    Args:
        dataset: the data set whose training images to split; they keep their order.
        validation_fraction: share of all training images, in [0, 1).
        train_fraction: share of the remaining images, in (0, 1].
        seed: non-negative integer seed of the choice.
        images_per_class: number of training images per class, instead of `train_fraction`.

    Returns:
        (train, validation), where validation is None if `validation_fraction` is 0.

    Raises:
        InputError: if a number is out of range, a class would have no training images, or there
            would be no validation images.
    """
    check_split_arguments(validation_fraction, train_fraction, seed, images_per_class)
    labels = dataset.train.labels
    left = np.bincount(labels, minlength=dataset.num_classes)
    held_out = np.zeros(len(labels), bool)
    if validation_fraction:
        shares = _equal_shares(left, validation_fraction)
        if not shares.any():
            raise InputError(
                f"validation_fraction={validation_fraction} of {len(labels)} images is less than "
                "one image: choose a larger fraction, or 0"
            )
        held_out = _choose(labels, held_out, shares, np.random.default_rng((seed, 0)))
        left = left - shares

    if images_per_class is None:
        shares = _equal_shares(left, train_fraction)
        given = f"validation_fraction={validation_fraction}, train_fraction={train_fraction}"
    else:
        _check_enough(dataset, left, images_per_class)
        shares = np.where(left > 0, images_per_class, 0)
        given = f"validation_fraction={validation_fraction}"
    _check_every_class(dataset, shares, given)
    chosen = _choose(labels, held_out, shares, np.random.default_rng((seed, 1)))
    validation = _subset(dataset.train, held_out) if validation_fraction else None
    return _subset(dataset.train, chosen), validation


def check_split_arguments(
    validation_fraction: float,
    train_fraction: float = 1.0,
    seed: int = 0,
    images_per_class: int | None = None,
) -> None:
    """Checks the arguments of `split_train`, as far as they don't depend on the data set.

    Raises:
        InputError: if a number is out of range, or two arguments exclude each other.
    """
    if not 0 <= validation_fraction < 1:
        raise InputError(f"validation_fraction={validation_fraction} given, expected [0, 1)")
    if not 0 < train_fraction <= 1:
        raise InputError(f"train_fraction={train_fraction} given, expected (0, 1]")
    if seed < 0:
        raise InputError(f"seed={seed} given, expected 0 or more")
    if images_per_class is None:
        return
    if images_per_class < 1:
        raise InputError(f"images_per_class={images_per_class} given, expected 1 or more")
    if train_fraction != 1:
        raise InputError(
            f"train_fraction={train_fraction} and images_per_class={images_per_class} given, "
            "expected only one of them"
        )


def _check_every_class(dataset: Dataset, shares: np.ndarray, given: str) -> None:
    present = np.bincount(dataset.train.labels, minlength=dataset.num_classes) > 0
    without = np.flatnonzero(present & (shares == 0))
    if len(without):
        raise InputError(
            f"{given} leaves {len(without)} of {dataset.num_classes} classes "
            f"(such as {dataset.class_names[without[0]]!r}) without an image in a split, "
            "expected at least one of each: choose fractions further from 0 and 1"
        )


def _check_enough(dataset: Dataset, left: np.ndarray, images_per_class: int) -> None:
    smallest = min(np.unique(dataset.train.labels), key=lambda label: left[label])
    if images_per_class > left[smallest]:
        raise InputError(
            f"images_per_class={images_per_class} given, expected at most {left[smallest]}, the "
            f"number of images of class {dataset.class_names[smallest]!r} (validation excluded)"
        )


# scikit-learn's `train_test_split(stratify=...)` rejects splits that leave fewer unused images than
# classes, and can't take a fixed number of images per class.
def _equal_shares(counts: np.ndarray, fraction: float) -> np.ndarray:
    """Returns how many images to take from each class, by the largest remainder method."""
    total = round(fraction * int(counts.sum()))
    shares, remainders = np.divmod(counts * total, counts.sum())
    shares[np.argsort(-remainders, kind="stable")[: total - shares.sum()]] += 1
    return shares


def _choose(
    labels: np.ndarray, taken: np.ndarray, shares: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Returns a mask of `shares[label]` random images of each label that aren't taken yet."""
    chosen = np.zeros(len(labels), bool)
    for label, share in enumerate(shares):
        candidates = np.flatnonzero((labels == label) & ~taken)
        chosen[generator.permutation(candidates)[:share]] = True
    return chosen


def _subset(split: AnySplit, mask: np.ndarray) -> AnySplit:
    if mask.all():
        return split
    if isinstance(split, RecordSplit):
        return split.take(mask)
    return Subset(split, np.flatnonzero(mask))
