"""What a data set is: its images with their labels, and what a model needs to know of them."""

import dataclasses
import hashlib
import math
import weakref
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Protocol, TypeAlias

import numpy as np
import tensorflow as tf

from stkd_keras.data.sources.tfrecords import RecordSplit
from stkd_keras.errors import InputError

UNLABELED = -1
"""The label of an image without label."""

# What TensorFlow's kernels need of an array that it didn't allocate, in bytes.
ALIGNMENT = 64

STATISTICS_IMAGES = 10_000
STATISTICS_BATCH = 500
HASHED_BYTES = 1_000_000_000
_HASHES: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images in memory, with their labels.

    Attributes:
        images: uint8 array of shape (N, height, width, channels), in [0, 255].
        labels: int32 or int64 array of shape (N,); -1 for an image without label.

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

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.images.shape[1:]

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the images, uint8 (B, height, width, channels), and labels (B,) of indices (B,).

        A data set function that calls it refers to the images and doesn't copy them.
        """
        images, labels = self._tensors
        return tf.gather(images, indices), tf.gather(labels, indices)

    @cached_property
    def _tensors(self) -> tuple[tf.Tensor, tf.Tensor]:
        # tf.data runs on the host; left to itself TensorFlow would put the images on a GPU.
        with tf.init_scope(), tf.device("CPU:0"):
            return _without_copying(self.images), tf.constant(self.labels)


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Some of the images of a split, which stay where they are.

    Attributes:
        base: the split, or anything else with `fetch`, `labels` and `image_shape`.
        rows: int64 array of shape (N,), their indices in the split.
    """

    base: "RandomAccessSplit"
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def labels(self) -> np.ndarray:
        """Integer array of shape (N,)."""
        return self.base.labels[self.rows]

    @property
    def images(self) -> np.ndarray:
        """A copy of the images, uint8 array of shape (N, height, width, channels)."""
        return np.asarray(self.fetch(tf.range(len(self)))[0])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.base.image_shape

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """As `Split.fetch`."""
        return self.base.fetch(tf.gather(tf.constant(self.rows, tf.int32), indices))


@dataclasses.dataclass(frozen=True, eq=False)
class Joined:
    """The images of two splits, one after the other, which stay where they are.

    Attributes:
        first: a split.
        second: another of the same image shape.

    Raises:
        InputError: if the shapes differ.
    """

    first: "RandomAccessSplit"
    second: "RandomAccessSplit"

    def __post_init__(self):
        if self.first.image_shape != self.second.image_shape:
            raise InputError(
                f"images of shape {self.second.image_shape} can't be added to images of shape "
                f"{self.first.image_shape}, expected the same"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def labels(self) -> np.ndarray:
        """Integer array of shape (N,)."""
        return np.concatenate([self.first.labels, self.second.labels])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.first.image_shape

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """As `Split.fetch`."""
        is_second = tf.cast(indices >= len(self.first), tf.int32)
        in_first, in_second = tf.dynamic_partition(indices, is_second, 2)
        parts = [self.first.fetch(in_first), self.second.fetch(in_second - len(self.first))]
        positions = tf.dynamic_partition(tf.range(tf.size(indices)), is_second, 2)
        images, labels = (
            tf.dynamic_stitch(positions, [tf.cast(each, pair[0].dtype) for each in pair])
            for pair in zip(*parts, strict=True)
        )
        return tf.ensure_shape(images, (None, *self.image_shape)), labels


class RandomAccessSplit(Protocol):
    """What gives any of its images at any time: `Split`, `Subset`, `Joined`, `FileSplit`."""

    @property
    def labels(self) -> np.ndarray:
        """Integer array of shape (N,); -1 for an image without label."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""

    def __len__(self) -> int: ...

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """As `Split.fetch`."""


AnySplit: TypeAlias = RandomAccessSplit | RecordSplit
"""The images of a training, validation or test split, wherever they are."""


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
        validation: the validation images where the data set has its own, or None.
        skipped: what was left out because it couldn't be read, "NAME: REASON" each.

    Raises:
        InputError: if a label names no class, or images differ in shape.
    """

    name: str
    version: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    train: AnySplit
    test: AnySplit
    validation: AnySplit | None = None
    skipped: tuple[str, ...] = ()

    def __post_init__(self):
        for split_name, split in self.splits.items():
            labels = split.labels
            if labels.min() < 0 or labels.max() >= self.num_classes:
                raise InputError(
                    f"{self.name} has labels from {labels.min()} to {labels.max()} in "
                    f"{split_name}, expected 0 to {self.num_classes - 1}, one for each class name"
                )
            if split.image_shape != self.image_shape:
                raise InputError(
                    f"{self.name} has images of shape {split.image_shape} in {split_name} and of "
                    f"shape {self.image_shape} in train, expected the same: give an image size"
                )

    @property
    def splits(self) -> dict[str, AnySplit]:
        """The splits by name: "train", "test" and, where there is one, "validation"."""
        named = {"train": self.train, "test": self.test, "validation": self.validation}
        return {name: split for name, split in named.items() if split is not None}

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.train.image_shape


def from_arrays(
    images: np.ndarray,
    labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    class_names: Sequence[str] | None = None,
    *,
    name: str = "arrays",
    flip: bool = True,
) -> Dataset:
    """Makes a data set of a user's own arrays.

    Args:
        images: uint8 array of shape (N, height, width, channels), in [0, 255].
        labels: integer array of shape (N,) or (N, 1), from 0 on.
        test_images: as `images`.
        test_labels: as `labels`.
        class_names: one for each label; by default the numbers.
        name: what reports call it.
        flip: whether an image mirrored left to right keeps its class.

    Raises:
        InputError: as `Split` and `Dataset`.

    Example:

    ```python
    dataset = stkd_keras.data.from_arrays(images, labels, test_images, test_labels)
    batches = stkd_keras.data.pipeline(dataset, "train", batch_size=128, data_seed=0)
    ```
    """
    train, test = (
        Split(np.asarray(x), np.asarray(y, np.int64).reshape(-1))
        for x, y in ((images, labels), (test_images, test_labels))
    )
    if class_names is None:
        class_names = [str(label) for label in range(int(train.labels.max()) + 1)]
    mean, std = pixel_statistics(train)
    return Dataset(name, "1.0.0", tuple(class_names), mean, std, flip, train, test)


def pixel_statistics(split: AnySplit) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of the pixels, one number a channel, in [0, 1].

    Of more than 10,000 images, 10,000 are looked at.
    """
    counts = np.zeros((split.image_shape[-1], 256), np.int64)
    for images in some_images(split):
        for channel, row in enumerate(counts):
            row += np.bincount(images[..., channel].reshape(-1), minlength=256)
    values = np.arange(256) / 255
    total = counts.sum(axis=1)
    mean = counts @ values / total
    std = np.sqrt(counts @ values**2 / total - mean**2)
    # A channel that is the same everywhere can't be divided by its deviation.
    return tuple(mean.tolist()), tuple(np.maximum(std, 1 / 255).tolist())


def content_hash(split: AnySplit) -> str:
    """Returns a hash, 64 hexadecimal digits, of a split's images and labels in their order.

    Of more than 1 GB of images, 10,000 are read. They are read once for each split.
    """
    if split not in _HASHES:
        _HASHES[split] = _hashed(split)
    return _HASHES[split]


def some_images(split: AnySplit, count: int = STATISTICS_IMAGES) -> Iterator[np.ndarray]:
    """Gives up to so many images of a split, always the same, a few hundred at a time.

    They are spread evenly over it; of images that are streamed they are the first.

    Args:
        split: the images.
        count: how many.

    Yields:
        uint8 arrays of shape (batch, height, width, channels).
    """
    if isinstance(split, RecordSplit):
        batches = split.examples().take(count).batch(STATISTICS_BATCH)
    else:
        rows = np.linspace(0, len(split) - 1, min(len(split), count), dtype=np.int32)
        batches = tf.data.Dataset.from_tensor_slices(rows).batch(STATISTICS_BATCH).map(split.fetch)
    for images, _ in batches:
        yield images.numpy()


def aligned_empty(shape: tuple[int, ...]) -> np.ndarray:
    """Returns a fresh uint8 array that TensorFlow can use without copying it."""
    size = math.prod(shape)
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + size].reshape(shape)


def close_gaps(images: np.ndarray, kept: Sequence[int]) -> np.ndarray:
    """Moves the images of ascending indices to the front, in place, and returns them.

    They still begin where `aligned_empty` made the array begin, and take no further memory.
    """
    for place, index in enumerate(kept):
        if place != index:
            images[place] = images[index]
    return images[: len(kept)]


def _hashed(split: AnySplit) -> str:
    digest = hashlib.sha256(repr((len(split), split.image_shape)).encode())
    digest.update(np.asarray(split.labels, np.int64).tobytes())
    is_small = len(split) * math.prod(split.image_shape) <= HASHED_BYTES
    for images in some_images(split, len(split) if is_small else STATISTICS_IMAGES):
        digest.update(images.tobytes())
    return digest.hexdigest()


def _without_copying(array: np.ndarray) -> tf.Tensor:
    """Returns an array as a tensor, in the same memory where TensorFlow can use it."""
    # It ends the process when an array begins elsewhere.
    is_usable = array.flags.c_contiguous and array.flags.writeable
    if is_usable and array.ctypes.data % ALIGNMENT == 0:
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    return tf.constant(array)
