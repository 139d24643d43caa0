"""Loads data sets by name."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stkd_keras.data import cinic10, tiny_imagenet
from stkd_keras.data.dataset import (
    UNLABELED,
    AnySplit,
    Dataset,
    Joined,
    Split,
    from_arrays,
    pixel_statistics,
)
from stkd_keras.data.normalization import NORMALIZATIONS
from stkd_keras.data.sources.archives import find_source
from stkd_keras.data.sources.decoding import RESIZES
from stkd_keras.data.sources.file_tree import FileTree, Layout, open_tree
from stkd_keras.data.sources.folder import folder_layout, unlabeled_files
from stkd_keras.data.sources.image_files import FileSplit, load_files, name_broken_files
from stkd_keras.data.sources.tfds_download import default_root, newest_version
from stkd_keras.data.sources.tfds_reader import load_tfds
from stkd_keras.data.sources.tfrecords import RecordSplit
from stkd_keras.data.splitting import split_train
from stkd_keras.errors import InputError, unknown_name

DEFAULT_MEMORY_LIMIT = 4 * 10**9
"""Maximum size of a data set's decoded images in memory, in bytes."""

ENCODED_STATISTICS_IMAGES = 200
LARGEST_IMAGE_SIZE = 8192
"""Pixels; an image of that size takes 200 MB."""

TFDS = "tfds:"
NAMES = ("cifar10", "cifar100", "cinic10", "digits", "folder", "tiny_imagenet", f"{TFDS}NAME")
"""The names of data sets that `load` accepts."""

_LAYOUTS: dict[str, Callable[[FileTree], Layout]] = {
    "cinic10": cinic10.layout,
    "tiny_imagenet": tiny_imagenet.layout,
}
# Commonly used values; those of other data sets are computed.
_STATISTICS: dict[str, Any] = {name: NORMALIZATIONS[name] for name in ("cifar10", "cifar100")}
# TFDS data sets in which a flip may change the class.
_DONT_FLIP = ("mnist", "svhn", "smallnorb", "omniglot", "cmaterdb", "dsprites")
_TEST_SHARE = 0.2


def load(
    name: str,
    data_dir: str | os.PathLike | None = None,
    *,
    image_size: int | Sequence[int] | None = None,
    resize: str = "crop",
    encoded: bool = False,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    skip_bad_images: bool = False,
) -> Dataset:
    """Loads a data set.

    Args:
        name: one of
            "cifar10", "cifar100": from TFDS;
            "cinic10", "tiny_imagenet": from TFDS, or from a copy of the official files;
            "tfds:NAME" or "tfds:NAME/CONFIG": any image classification data set of TFDS. Its
            test split is "test" if it has labels, otherwise "validation", otherwise a fixed fifth
            of "train";
            "folder": your own images, in DATA_DIR/{train,val,test}/CLASS/FILE; val is optional;
            "digits": scikit-learn's 8x8 grayscale digits, for quick experiments; a fixed fifth
            of them is the test split.
        data_dir: for TFDS, the folder of prepared data sets; missing ones are downloaded to it.
            Defaults to TFDS_DATA_DIR, then ~/tensorflow_datasets. For cinic10 and tiny_imagenet
            it can also be the archive, the unpacked folder, or a folder that contains either. Zip
            archives are read in place; tar archives are unpacked next to themselves first. For
            "folder", the folder that has train/ and test/. Ignored for digits.
        image_size: height and width in pixels, one number for both or (height, width). By default,
            images keep their size, which must be the same for all.
        resize: how images get this size: "crop" scales them to cover it and crops them around
            their centers, "pad" scales them to fit into it and adds black bars, "stretch" scales
            them without keeping their aspect ratio.
        encoded: whether to decode image files (folders and copies of official files) only when a
            batch needs them, for `pipeline(augment="photo")`. Loading takes seconds, and crops are
            cut from the whole image. Needs an `image_size`; otherwise it has no effect.
        memory_limit: in bytes. If the decoded images (the files, if `encoded`) take more, they are
            read again in every epoch.
        skip_bad_images: whether to skip unreadable images, and list them in `Dataset.skipped`,
            instead of raising an error. Decodes all images first.

    Returns:
        The `Dataset`.

    Raises:
        InputError: if the name, `image_size` or `resize` is unknown, or the data set is missing,
            broken, or can't be downloaded.

    Example:

    ```python
    cifar10 = stkd_keras.data.load("cifar10", data_dir="../shared/data/tfds")
    print(cifar10.train.images.shape)  # (50000, 32, 32, 3)
    ```
    """
    check_name(name)
    size = _checked_size(image_size)
    if resize not in RESIZES:
        raise unknown_name("resize", resize, RESIZES)
    if resize != "crop" and size is None:
        raise InputError(f"resize={resize!r} given without image_size: give one, or leave it out")
    if name == "digits":
        if size not in (None, (8, 8)):
            raise InputError(f"image_size={image_size} given, but digits are 8x8: leave it out")
        return _load_digits()
    options: dict[str, Any] = {
        "size": size,
        "resize": resize,
        "memory_limit": memory_limit,
        "skip_bad_images": skip_bad_images,
    }
    if name == "folder":
        if data_dir is None:
            raise InputError(
                "the data set folder needs a data_dir, with the images in data_dir/train/CLASS and "
                "data_dir/test/CLASS"
            )
        layout = folder_layout(data_dir)
        return _load_layout(name, open_tree(data_dir), layout, encoded, **options)
    source = _official_copy(name, data_dir)
    if source is not None:
        tree = open_tree(source)
        return _load_layout(name, tree, _LAYOUTS[name](tree), encoded, **options)
    return _load_tfds(name, data_dir, **options)


def check_name(name: str) -> None:
    """Checks that `load` accepts a name.

    Raises:
        InputError: if it doesn't; the message suggests similar names.
    """
    if name not in NAMES and not name.startswith(TFDS):
        raise unknown_name("data set", name, NAMES)


def join_unlabeled(
    split: AnySplit,
    directory: str | os.PathLike,
    *,
    resize: str = "crop",
    encoded: bool = False,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    skip_bad_images: bool = False,
) -> tuple[Joined, list[str]]:
    """Appends all images in a folder to the training images, as unlabeled images.

    Args:
        split: the training images.
        directory: the folder; its subfolders are searched too. Images are resized to the shape of
            the training images.
        resize: see `load`.
        encoded: see `load`.
        memory_limit: see `load`; for this folder's images.
        skip_bad_images: see `load`.

    Returns:
        (split, skipped): all images, with label -1 for the unlabeled ones, and "NAME: REASON" for
        each image that was skipped.

    Raises:
        InputError: if the folder has no images, one can't be read, or `split` is streamed.
    """
    if isinstance(split, RecordSplit):
        raise InputError(
            "images without labels can't be added to training images streamed from TFRecords: "
            "raise memory_limit, or leave unlabeled_dir out"
        )
    height, width, channels = split.image_shape
    unlabeled, skipped = load_files(
        open_tree(directory),
        [(name, UNLABELED) for name in unlabeled_files(directory)],
        (height, width),
        resize=resize,
        encoded=encoded,
        memory_limit=memory_limit,
        skip_bad_images=skip_bad_images,
        channels=channels,
        what="images without labels",
    )
    return Joined(split, unlabeled), skipped


def _load_digits() -> Dataset:
    # Imported here because the import takes seconds and most runs don't need it.
    import sklearn.datasets
    import sklearn.model_selection

    digits = sklearn.datasets.load_digits()
    images = np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    train_images, test_images, train_labels, test_labels = sklearn.model_selection.train_test_split(
        images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    return from_arrays(
        train_images,
        train_labels,
        test_images,
        test_labels,
        [str(name) for name in digits.target_names],
        name="digits",
        flip=False,
    )


def _official_copy(name: str, data_dir: str | os.PathLike | None) -> pathlib.Path | None:
    """Returns the archive or unpacked folder at or in `data_dir`, if any."""
    if name not in _LAYOUTS:
        return None
    root = default_root() if data_dir is None else pathlib.Path(data_dir)
    if newest_version(root / name) is not None:
        return None
    # The second one is TFDS's folder for manual downloads.
    sources = (find_source(folder, name) for folder in (root, root / "downloads" / "manual"))
    return next(filter(None, sources), None)


def _checked_size(image_size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Returns (height, width)."""
    if image_size is None:
        return None
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or not all(
        isinstance(side, int) and 1 <= side <= LARGEST_IMAGE_SIZE for side in size
    ):
        raise InputError(
            f"image_size={image_size} given, expected from 1 to {LARGEST_IMAGE_SIZE} pixels, or a "
            "height and a width"
        )
    return size[0], size[1]


def _load_layout(
    name: str, tree: FileTree, layout: Layout, encoded: bool, *, memory_limit: int, **options
) -> Dataset:
    """Loads the splits of a layout, each into memory if it fits into the remaining limit."""
    splits: dict[str, Split | FileSplit] = {}
    skipped: list[str] = []
    for name_of_split, files in layout.splits.items():
        split, bad = load_files(
            tree,
            files,
            encoded=encoded,
            memory_limit=memory_limit,
            what=f"{name_of_split} images",
            **options,
        )
        if isinstance(split, Split):
            memory_limit -= split.images.nbytes
        splits[name_of_split] = split
        skipped += bad
    train = splits["train"]
    is_encoded = isinstance(train, FileSplit) and train.is_encoded
    with name_broken_files():
        mean, std = pixel_statistics(train, *([ENCODED_STATISTICS_IMAGES] if is_encoded else []))
    return Dataset(
        name,
        _versioned(_fingerprint(tree, layout), options["resize"]),
        layout.class_names,
        mean,
        std,
        flip=True,
        skipped=tuple(skipped),
        **splits,
    )


def _versioned(version: str, resize: str) -> str:
    """Returns the version of resized images: other pixels are another version."""
    return version if resize == "crop" else f"{version}-{resize}"


def _fingerprint(tree: FileTree, layout: Layout) -> str:
    """Returns a version string that depends on the files' names, sizes and labels."""
    sizes = [tree.size(name) for files in layout.splits.values() for name, _ in files]
    return hashlib.sha256(json.dumps([*layout, sizes]).encode()).hexdigest()[:8]


def _load_tfds(name: str, data_dir: str | os.PathLike | None, **options) -> Dataset:
    loaded = load_tfds(name.removeprefix(TFDS), data_dir, **options)
    # Some test splits, such as that of imagenet2012, have no labels.
    splits = {key: split for key, split in loaded.splits.items() if (split.labels >= 0).all()}
    if "train" not in splits:
        raise InputError(f"{name} has training images without labels, expected a label for each")
    train = splits["train"]
    test = splits.pop("test", None) or splits.pop("validation", None)
    mean, std = _STATISTICS.get(name) or pixel_statistics(train)
    dataset = Dataset(
        name,
        _versioned(loaded.version, options["resize"]),
        loaded.class_names,
        mean,
        std,
        flip=not any(part in name for part in _DONT_FLIP),
        train=train,
        test=test or train,
        validation=splits.get("validation"),
        skipped=tuple(loaded.skipped),
    )
    if test is None:
        train, test = split_train(dataset, _TEST_SHARE)
        assert test is not None  # The fraction isn't 0.
        dataset = dataclasses.replace(dataset, train=train, test=test)
        print(f"{name} has no test split: testing on {len(test)} of its training images")
    return dataset
