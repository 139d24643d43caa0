"""Data sets: splits of images with labels, and their statistics."""

import abc
import dataclasses
import hashlib
import math
import weakref
from collections.abc import Container, Iterator, Sequence
from functools import cached_property
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from stkd_keras.data import photo
from stkd_keras.data.sources.tfrecords import RecordSplit
from stkd_keras.errors import InputError

UNLABELED = -1
"""The label of unlabeled images."""

# Bytes. TensorFlow's kernels require it of memory that TensorFlow didn't allocate.
ALIGNMENT = 64

STATISTICS_IMAGES = 10_000
STATISTICS_BATCH = 500
HASHED_BYTES = 1_000_000_000
_HASHES: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class RandomAccessSplit(abc.ABC):
    """A split whose images can be fetched by index."""

    labels: np.ndarray
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.labels)

    @abc.abstractmethod
    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns images, uint8 (B, height, width, channels), and labels (B,) of indices (B,)."""

    def fetch_crop(self, index: tf.Tensor, crop: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns a crop (`photo.random_crops`) of an image, in its shape, and the label."""
        images, labels = self.fetch(index[None])
        return photo.cut(images[0], crop, self.image_shape), labels[0]

    def contents(self, indices: np.ndarray) -> Iterator[bytes]:
        """Yields what `content_hash` hashes of the images of increasing indices (B,)."""
        dataset = tf.data.Dataset.from_tensor_slices(indices)
        for images, _ in dataset.batch(STATISTICS_BATCH).map(self.fetch):
            yield images.numpy().tobytes()


class Split(RandomAccessSplit):
    """Images and labels in memory.

    Attributes:
        images: uint8 array of shape (N, height, width, channels), in [0, 255].
        labels: int32 or int64 array of shape (N,); -1 if unlabeled.
        image_shape: (height, width, channels).

    Raises:
        InputError: if an array has another shape or dtype, the lengths differ or N is 0.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray):
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
            raise InputError("no images given, expected at least one")
        self.images, self.labels = images, labels
        self.image_shape = images.shape[1:]

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # Tensors, because a tf.data function would copy arrays into its graph.
        images, labels = self._tensors
        return tf.gather(images, indices), tf.gather(labels, indices)

    @cached_property
    def _tensors(self) -> tuple[tf.Tensor, tf.Tensor]:
        # tf.data runs on the CPU, but TensorFlow would place the images on a GPU.
        with tf.init_scope(), tf.device("CPU:0"):
            return _without_copying(self.images), tf.constant(self.labels)


class Subset(RandomAccessSplit):
    """A view of some of a split's images, given by an int64 array of indices (N,)."""

    def __init__(self, base: RandomAccessSplit, indices: np.ndarray):
        self.base, self.indices = base, indices
        self.labels = base.labels[indices]
        self.image_shape = base.image_shape

    @property
    def images(self) -> np.ndarray:
        """A copy of the images, uint8 (N, height, width, channels)."""
        return np.asarray(self.fetch(tf.range(len(self)))[0])

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return self.base.fetch(tf.gather(tf.constant(self.indices, tf.int32), indices))

    def fetch_crop(self, index: tf.Tensor, crop: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return self.base.fetch_crop(tf.gather(tf.constant(self.indices, tf.int32), index), crop)

    def contents(self, indices: np.ndarray) -> Iterator[bytes]:
        return self.base.contents(self.indices[indices])


class Joined(RandomAccessSplit):
    """The concatenation of two splits with the same image shape.

    Attributes:
        first: the split with the first images.
        second: the split with the remaining images.
        labels: integer array of shape (N,).
        image_shape: (height, width, channels).

    Raises:
        InputError: if the image shapes differ.
    """

    def __init__(self, first: RandomAccessSplit, second: RandomAccessSplit):
        if first.image_shape != second.image_shape:
            raise InputError(
                f"images of shape {second.image_shape} can't be added to images of shape "
                f"{first.image_shape}, expected the same"
            )
        self.first, self.second = first, second
        self.labels = np.concatenate([first.labels, second.labels])
        self.image_shape = first.image_shape

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        is_second = tf.cast(indices >= len(self.first), tf.int32)
        in_first, in_second = tf.dynamic_partition(indices, is_second, 2)
        parts = [self.first.fetch(in_first), self.second.fetch(in_second - len(self.first))]
        positions = tf.dynamic_partition(tf.range(tf.size(indices)), is_second, 2)
        images, labels = (
            tf.dynamic_stitch(positions, [tf.cast(each, pair[0].dtype) for each in pair])
            for pair in zip(*parts, strict=True)
        )
        return tf.ensure_shape(images, (None, *self.image_shape)), labels

    def fetch_crop(self, index: tf.Tensor, crop: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def of(split: RandomAccessSplit, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            image, label = split.fetch_crop(index, crop)
            return image, tf.cast(label, tf.int64)

        count = len(self.first)
        return tf.cond(
            index < count,
            lambda: of(self.first, index),
            lambda: of(self.second, index - count),
        )

    def contents(self, indices: np.ndarray) -> Iterator[bytes]:
        count = len(self.first)
        yield from self.first.contents(indices[indices < count])
        yield from self.second.contents(indices[indices >= count] - count)


AnySplit: TypeAlias = RandomAccessSplit | RecordSplit
"""A split in memory, in files or streamed."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """An image classification data set.

    Attributes:
        name: its name for `load`.
        version: the version of its images, labels and splits.
        class_names: one name for each label, starting at 0.
        mean: mean of the training pixels per channel, with pixels scaled to [0, 1].
        std: their standard deviation per channel.
        flip: whether horizontally flipped images keep their class.
        train: the training images.
        test: the test images.
        validation: the official validation images, or None.
        skipped: "NAME: REASON" for each unreadable image that was skipped.

    Raises:
        InputError: if a label has no class name, or the splits' image shapes differ.
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
                    f"shape {self.image_shape} in train, expected the same: give an image_size"
                )

    @property
    def splits(self) -> dict[str, AnySplit]:
        """The splits by name: "train", "test" and, if there is one, "validation"."""
        named = {"train": self.train, "test": self.test, "validation": self.validation}
        return {name: split for name, split in named.items() if split is not None}

    @property
    def num_classes(self) -> int:
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
    """Creates a data set from arrays.

    Args:
        images: training images, uint8 array of shape (N, height, width, channels) in [0, 255].
        labels: training labels, integer array of shape (N,) or (N, 1), starting at 0.
        test_images: test images, an array like `images`.
        test_labels: test labels, an array like `labels`.
        class_names: one name for each label. Defaults to "0", "1", and so on.
        name: name of the data set in reports.
        flip: whether horizontally flipped images keep their class.

    Returns:
        The `Dataset`.

    Raises:
        InputError: if an array has another shape or dtype.

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


def pixel_statistics(
    split: AnySplit, count: int = STATISTICS_IMAGES
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns each channel's mean and standard deviation over up to `count` images, in [0, 1]."""
    counts = np.zeros((split.image_shape[-1], 256), np.int64)
    for images in some_images(split, count):
        for channel, row in enumerate(counts):
            row += np.bincount(images[..., channel].reshape(-1), minlength=256)
    values = np.arange(256) / 255
    total = counts.sum(axis=1)
    mean = counts @ values / total
    std = np.sqrt(counts @ values**2 / total - mean**2)
    # Avoids a division by 0 for constant channels.
    return tuple(mean.tolist()), tuple(np.maximum(std, 1 / 255).tolist())


def content_hash(split: AnySplit) -> str:
    """Returns a SHA-256 hash of a split's images and labels, in order, as 64 hex digits.

    The hash is cached. Of images that take more than 1 GB, only 10,000 are hashed. Of images loaded
    with `encoded`, the files are hashed: all sizes, and about 250 MB of the content.
    """
    if split not in _HASHES:
        _HASHES[split] = _hashed(split)
    return _HASHES[split]


def some_images(split: AnySplit, count: int = STATISTICS_IMAGES) -> Iterator[np.ndarray]:
    """Yields a fixed sample of up to `count` images, as uint8 (batch, height, width, channels)."""
    if isinstance(split, RecordSplit):
        batches = split.examples().take(count).batch(STATISTICS_BATCH)
    else:
        dataset = tf.data.Dataset.from_tensor_slices(spread(len(split), count))
        batches = dataset.batch(STATISTICS_BATCH).map(split.fetch)
    for images, _ in batches:
        yield images.numpy()


def spread(size: int, count: int) -> np.ndarray:
    """Returns up to `count` of the indices below `size`, evenly spaced."""
    return np.linspace(0, size - 1, min(size, count), dtype=np.int32)


def aligned_empty(shape: tuple[int, ...]) -> np.ndarray:
    """Returns an uninitialized uint8 array that TensorFlow can use without copying it."""
    size = math.prod(shape)
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + size].reshape(shape)


def split_without(bad: Container[int], images: np.ndarray, labels: np.ndarray) -> Split:
    """Returns a split without the bad indices; moves the good images to the front in place."""
    good = [index for index in range(len(labels)) if index not in bad]
    for place, index in enumerate(good):
        if place != index:
            images[place] = images[index]
    return Split(images[: len(good)], labels[good])


def _hashed(split: AnySplit) -> str:
    digest = hashlib.sha256(repr((len(split), split.image_shape)).encode())
    digest.update(np.asarray(split.labels, np.int64).tobytes())
    is_small = len(split) * math.prod(split.image_shape) <= HASHED_BYTES
    count = len(split) if is_small else STATISTICS_IMAGES
    if isinstance(split, RecordSplit):
        contents: Iterator[bytes] = (images.tobytes() for images in some_images(split, count))
    else:
        contents = split.contents(spread(len(split), count))
    for content in contents:
        digest.update(content)
    return digest.hexdigest()


def _without_copying(array: np.ndarray) -> tf.Tensor:
    """Returns a tensor that shares the array's memory if possible."""
    # TensorFlow aborts the process if the array isn't aligned.
    is_usable = array.flags.c_contiguous and array.flags.writeable
    if is_usable and array.ctypes.data % ALIGNMENT == 0:
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    return tf.constant(array)
