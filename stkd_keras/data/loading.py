"""Data sets by name, held in memory, and the seeded splits of their training images."""

import dataclasses
import http.client
import os
import pathlib
import re
import threading
import urllib.error
import urllib.parse
import urllib.request

import numpy as np

from stkd_keras.errors import InputError, unknown_name


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels.

    Attributes:
        images: uint8 array of shape (N, height, width, channels), in [0, 255].
        labels: int32 or int64 array of shape (N,).

    Raises:
        InputError: if an array has another shape or dtype, the lengths differ or N is 0.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.dtype != np.uint8:
            raise InputError(
                f"images of shape {images.shape} and dtype {images.dtype} given, "
                "expected uint8 of shape (N, height, width, channels)"
            )
        if labels.shape != images.shape[:1] or labels.dtype not in (np.int32, np.int64):
            raise InputError(
                f"labels of shape {labels.shape} and dtype {labels.dtype} given, "
                f"expected int32 or int64 of shape ({len(images)},), one for each image"
            )
        if not len(images):
            raise InputError("a split without images given, expected at least one image")


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """An image classification data set, with what a model and a report need to know of it.

    Attributes:
        name: the name it is loaded by.
        version: the version of its images, labels and splits.
        class_names: one name for each label, from 0 on.
        mean: of the training pixels, one number a channel, in units of [0, 1].
        std: their standard deviation, likewise.
        flip: whether an image mirrored left to right keeps its class.
        train: the training images.
        test: the test images.

    Raises:
        InputError: if a label names no class.
    """

    name: str
    version: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    train: Split
    test: Split

    def __post_init__(self):
        for labels in (self.train.labels, self.test.labels):
            if labels.min() < 0 or labels.max() >= self.num_classes:
                raise InputError(
                    f"{self.name} has labels from {labels.min()} to {labels.max()}, "
                    f"expected 0 to {self.num_classes - 1}, one for each class name"
                )

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.train.images.shape[1:]


def load(name: str, data_dir: str | os.PathLike | None = None) -> Dataset:
    """Loads a data set into memory.

    Args:
        name: "cifar10" or "digits" (8x8 grey digits that come with scikit-learn, for trying
            things out within seconds; a fifth of them, always the same, is the test split).
        data_dir: folder of the data sets prepared by TFDS, which cifar10 is read from, or
            downloaded to where it isn't there. By default the environment's TFDS_DATA_DIR, then
            ~/tensorflow_datasets. Ignored by digits.

    Returns:
        The data set, as uint8 arrays.

    Raises:
        InputError: if the name isn't known, `data_dir` is no folder, what it holds is broken, or
            the data set is neither there nor can be downloaded.

    Example:

    ```python
    cifar10 = stkd_keras.data.load("cifar10", data_dir="../shared/data/tfds")
    print(cifar10.train.images.shape)  # (50000, 32, 32, 3)
    ```
    """
    if name not in _LOADERS:
        raise unknown_name("data set", name, _LOADERS)
    return _LOADERS[name](data_dir)


def split_train(
    dataset: Dataset,
    validation_fraction: float = 0.0,
    train_fraction: float = 1.0,
    seed: int = 0,
    *,
    images_per_class: int | None = None,
) -> tuple[Split, Split | None]:
    """Takes a validation split out of the training images, and a part of the rest to train on.

    Every class gives the same share of its images to each, up to rounding. For one seed the
    validation images don't depend on how much of the rest is trained on, and a larger part of
    the rest contains every smaller one.

    Args:
        dataset: whose training images are split; they keep their order.
        validation_fraction: share of all the training images, in [0, 1).
        train_fraction: share of the images left, in (0, 1].
        seed: non-negative integer that decides which images are taken.
        images_per_class: number of images of each class to train on, in place of
            `train_fraction`.

    Returns:
        (train, validation), where validation is None if `validation_fraction` is 0.

    Raises:
        InputError: if a number is out of range or a class would be left without an image.
    """
    _check_split_arguments(validation_fraction, train_fraction, seed, images_per_class)
    labels = dataset.train.labels
    left = np.bincount(labels, minlength=dataset.num_classes)
    held_out = np.zeros(len(labels), bool)
    if validation_fraction:
        shares = _equal_shares(left, validation_fraction)
        _check_every_class(dataset, shares, f"validation_fraction={validation_fraction}")
        held_out = _choose(labels, held_out, shares, np.random.default_rng((seed, 0)))
        left = left - shares

    if images_per_class is None:
        shares = _equal_shares(left, train_fraction)
        given = f"validation_fraction={validation_fraction}, train_fraction={train_fraction}"
    else:
        shares = np.where(left > 0, images_per_class, 0)
        given = f"validation_fraction={validation_fraction}"
        _check_enough(dataset, left, images_per_class)
    _check_every_class(dataset, shares, given)
    chosen = _choose(labels, held_out, shares, np.random.default_rng((seed, 1)))
    validation = _subset(dataset.train, held_out) if validation_fraction else None
    return _subset(dataset.train, chosen), validation


def _check_split_arguments(
    validation_fraction: float, train_fraction: float, seed: int, images_per_class: int | None
) -> None:
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
            "expected one of them: leave the other out"
        )


def _check_every_class(dataset: Dataset, shares: np.ndarray, given: str) -> None:
    """Raises if a class that has training images would give none of them."""
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
            f"images there are of class {dataset.class_names[smallest]!r} (validation excluded)"
        )


# Not scikit-learn's `train_test_split(stratify=...)`: it refuses a split whose unused rest is
# smaller than the number of classes, and has no fixed number of images a class.
def _equal_shares(counts: np.ndarray, fraction: float) -> np.ndarray:
    """Returns how many images each class gives, by the method of the largest remainders.

    The shares add up to the fraction of all images, rounded, and each is within one image of the
    fraction of its class.
    """
    total = round(fraction * int(counts.sum()))
    shares, remainders = np.divmod(counts * total, counts.sum())
    shares[np.argsort(-remainders, kind="stable")[: total - shares.sum()]] += 1
    return shares


def _choose(
    labels: np.ndarray, taken: np.ndarray, shares: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Returns the mask of `shares[label]` images of each label, none of which is taken yet."""
    chosen = np.zeros(len(labels), bool)
    for label, share in enumerate(shares):
        candidates = np.flatnonzero((labels == label) & ~taken)
        chosen[generator.permutation(candidates)[:share]] = True
    return chosen


def _subset(split: Split, mask: np.ndarray) -> Split:
    return split if mask.all() else Split(split.images[mask], split.labels[mask])


def _load_digits(data_dir: str | os.PathLike | None) -> Dataset:
    del data_dir
    # Imported here, as TFDS below: each takes its time, and a run needs one of them at most.
    import sklearn.datasets
    import sklearn.model_selection

    digits = sklearn.datasets.load_digits()
    images = np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    train_images, test_images, train_labels, test_labels = sklearn.model_selection.train_test_split(
        images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    return Dataset(
        name="digits",
        version="1.0.0",
        class_names=tuple(str(name) for name in digits.target_names),
        mean=(0.3053,),
        std=(0.3760,),
        flip=False,
        train=Split(train_images, train_labels),
        test=Split(test_images, test_labels),
    )


def _load_cifar10(data_dir: str | os.PathLike | None) -> Dataset:
    version, class_names, train, test = _read_tfds(
        "cifar10", data_dir, "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    )
    return Dataset(
        name="cifar10",
        version=version,
        class_names=class_names,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        flip=True,
        train=train,
        test=test,
    )


_LOADERS = {"cifar10": _load_cifar10, "digits": _load_digits}
NAMES = tuple(_LOADERS)
"""The names that `load` knows."""


def _read_tfds(
    name: str, data_dir: str | os.PathLike | None, archive: str
) -> tuple[str, tuple[str, ...], Split, Split]:
    """Reads a data set through TFDS, downloading it if it isn't there.

    Args:
        name: TFDS's name of the data set.
        data_dir: as for `load`.
        archive: the address that TFDS downloads it from.

    Returns:
        (version, class names, training split, test split).
    """
    root = _tfds_root(data_dir)
    folder = _newest_version(root / name)
    if folder is None:
        _download(name, root, archive)
        folder = _newest_version(root / name)
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
        train, test = (_decode(builder, split) for split in ("train", "test"))
        return str(builder.version), tuple(builder.info.features["label"].names), train, test
    except Exception as error:
        # Broken files make TFDS and TensorFlow raise almost anything.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(
            f"{folder} holds a broken or incomplete {name} ({reason}), expected what TFDS "
            "prepares: remove it and prepare it again, or give another --data_dir"
        ) from error


def _decode(builder, split: str) -> Split:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    @tfds.decode.make_decoder()
    def decode(example, feature):
        # Where images are kept as JPEG, TFDS decodes them faster and less exactly than Pillow,
        # by which most models were trained: a pixel differs by up to 4. Of a PNG all is as usual.
        return tf.io.decode_jpeg(example, channels=feature.shape[-1], dct_method="INTEGER_ACCURATE")

    # All in one batch: TFDS decodes in parallel and keeps the order of the files.
    arrays = tfds.as_numpy(
        builder.as_dataset(split=split, batch_size=-1, decoders={"image": decode()})
    )
    expected = builder.info.splits[split].num_examples
    if len(arrays["label"]) != expected:
        raise InputError(f"{len(arrays['label'])} of {expected} images in {split}")
    return Split(arrays["image"], arrays["label"])


def _tfds_root(data_dir: str | os.PathLike | None) -> pathlib.Path:
    """Returns the folder of the prepared data sets, which need not exist if it is a default."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = pathlib.Path(default if data_dir is None else data_dir).expanduser()
    if not root.is_dir() and (data_dir is not None or root.exists()):
        state = "is no folder" if root.exists() else "doesn't exist"
        raise InputError(
            f"data_dir {str(root)!r} {state}, expected a folder of data sets prepared by TFDS: "
            "correct --data_dir or make the folder"
        )
    return root


def _newest_version(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of the newest prepared version, or None if there is none."""
    # TFDS names what it is still writing VERSION.incompleteXYZ.
    versions = [path for path in folder.glob("*") if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    return max(versions, key=lambda path: [int(n) for n in path.name.split(".")], default=None)


def _download(name: str, root: pathlib.Path, archive: str) -> None:
    """Has TFDS download and prepare a data set, or raises within seconds if it can't."""
    # TFDS itself would try again for over three minutes before it gives up.
    if not _is_reachable(archive):
        host = urllib.parse.urlsplit(archive).hostname
        prepare = f"tfds.builder('{name}', data_dir='tfds').download_and_prepare()"
        raise InputError(
            f"no {name} found in {root / name} and {host} can't be reached to download it: on a "
            f'connected machine run `python -c "import tensorflow_datasets as tfds; {prepare}"`, '
            "bring the folder tfds here and give it with --data_dir=tfds"
        )
    import tensorflow_datasets as tfds

    tfds.builder(name, data_dir=root).download_and_prepare()


def _is_reachable(address: str, seconds: float = 3.0) -> bool:
    """Returns whether the host of an address answers in time, through a proxy if one is set."""
    answered = threading.Event()

    def ask() -> None:
        try:
            request = urllib.request.Request(address, method="HEAD")
            urllib.request.urlopen(request, timeout=seconds).close()
        except urllib.error.HTTPError:
            # An answer all the same, if only to this client.
            answered.set()
        except (OSError, http.client.HTTPException, ValueError):
            return
        answered.set()

    # A thread, because urlopen's timeout doesn't bound the look-up of the host's name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()
