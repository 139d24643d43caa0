"""Images in files, decoded into memory once, or again for every batch."""

import concurrent.futures
import contextlib
import json
import math
import re
import weakref
from collections.abc import Callable, Container, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from stkd_keras.data import photo
from stkd_keras.data.dataset import (
    RandomAccessSplit,
    Split,
    aligned_empty,
    split_without,
    spread,
)
from stkd_keras.data.sources import threads
from stkd_keras.data.sources.decoding import decode_image, lacks_end, read_header
from stkd_keras.data.sources.file_tree import FileTree
from stkd_keras.errors import InputError

HASHED_BYTES = 250_000_000
KEPT_BYTES = 1_000_000_000  # Reading more would delay the start.
CHECKED_HEADERS = 10_000

_SPLITS: weakref.WeakSet["FileSplit"] = weakref.WeakSet()


class FileSplit(RandomAccessSplit):
    """Images in files, which are decoded for every batch.

    Args:
        tree: the folder or archive.
        files: (name, label) of each image.
        image_shape: (height, width, channels) of the batches.
        resize: how images get this size, one of `RESIZES`.
        encoded: whether to hash the files instead of the images, and to decode large JPEGs at a
            reduced size, which changes their pixels a little.
        memory_limit: if the files are smaller (and take up to 1 GB), `fetch_crop` keeps them in
            memory.
    """

    def __init__(
        self,
        tree: FileTree,
        files: Sequence[tuple[str, int]],
        image_shape: tuple[int, int, int],
        resize: str = "crop",
        *,
        encoded: bool = False,
        memory_limit: int = 0,
    ):
        self.labels = np.array([label for _, label in files], np.int64)
        self.image_shape = image_shape
        self.is_encoded = encoded
        self._resize = resize
        self._tree = tree
        self._names = [name for name, _ in files]
        self._threads = concurrent.futures.ThreadPoolExecutor(threads.THREADS)
        self._memory_limit = memory_limit
        _SPLITS.add(self)
        self._headers: dict[int, tuple[tuple[int, int], bool]] = {}

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images, labels = _call(self._fetch, [indices], [tf.uint8, tf.int64])
        images.set_shape((*indices.shape, *self.image_shape))
        labels.set_shape(indices.shape)
        return images, labels

    def fetch_crop(self, index: tf.Tensor, crop: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if self._kept is not None:
            # A Python function would take a fifth of the time.
            content, size, is_plain = (tf.gather(values, index) for values in self._kept)
        else:
            content, size, is_plain = _call(
                self._read_with_header, [index], [tf.string, tf.int32, tf.bool]
            )
            size.set_shape((2,))

        def decode_whole() -> tf.Tensor:
            factor = photo.reduction(crop, size, self.image_shape)
            image = _call(self._decode_whole, [index, factor], tf.uint8)
            image.set_shape((None, None, self.image_shape[2]))
            return photo.cut(image, crop, self.image_shape)

        image = tf.cond(
            is_plain,
            lambda: photo.decode_jpeg(content, size, crop, self.image_shape),
            decode_whole,
        )
        return image, tf.gather(tf.constant(self.labels), index)

    def contents(self, indices: np.ndarray) -> Iterator[bytes]:
        if not self.is_encoded:
            yield from super().contents(indices)
            return
        sizes = [self._tree.size(self._names[index]) for index in indices]
        yield json.dumps([self._resize, sizes]).encode()
        step = max(1, math.ceil(sum(sizes) / HASHED_BYTES))
        yield from threads.in_threads(self._read, ((index,) for index in indices[::step].tolist()))

    def without(self, bad: Container[int]) -> "FileSplit":
        """Returns the split without the bad indices."""
        if not bad:
            return self
        files = [
            file
            for index, file in enumerate(zip(self._names, self.labels.tolist(), strict=True))
            if index not in bad
        ]
        return FileSplit(
            self._tree, files, self.image_shape, self._resize, encoded=self.is_encoded,
            memory_limit=self._memory_limit,
        )  # fmt: skip

    def check_headers(self, what: str) -> dict[int, str]:
        """Checks up to 10,000 files; returns "NAME: REASON" of bad ones by index.

        Reads their headers, and decodes those that lack their end.
        """

        def check(index: int) -> None:
            content, *_ = self._read_with_header(index)
            if lacks_end(content):
                self._decode_whole(index)

        indices = spread(len(self), CHECKED_HEADERS).tolist()
        problems = self._problems(check, indices, f"checking {what}")
        return {i: each for i, each in zip(indices, problems, strict=True) if each is not None}

    def find_broken(self) -> str | None:
        """Returns "NAME: REASON" of the first file that can't be decoded, if there is one."""
        problems = self._problems(self._decode_whole, range(len(self)), "finding the broken file")
        return next(filter(None, problems), None)

    @cached_property
    def _kept(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor] | None:
        """The content, (height, width) and plainness of all files, if they are kept in memory."""
        if sum(map(self._tree.size, self._names)) > min(self._memory_limit, KEPT_BYTES):
            return None
        jobs = ((index,) for index in range(len(self)))
        contents, sizes, plain = zip(*threads.in_threads(self._read_with_header, jobs), strict=True)
        # tf.data runs on the CPU.
        with tf.init_scope(), tf.device("CPU:0"):
            return tf.constant(contents), tf.constant(np.stack(sizes)), tf.constant(plain)

    def _problems(
        self, function: Callable, indices: Sequence[int], what: str
    ) -> Iterator[str | None]:
        """Yields "NAME: REASON" or None for each file."""

        def check(index: int) -> str | None:
            try:
                function(index)
            except InputError as error:
                return str(error)
            return None

        jobs = ((index,) for index in indices)
        return threads.with_progress(threads.in_threads(check, jobs), len(indices), what)

    def _read(self, index: int) -> bytes:
        return self._tree.read(self._names[index])

    def _read_with_header(self, index: int) -> tuple[bytes, np.ndarray, bool]:
        index = int(index)
        content = self._read(index)
        if index not in self._headers:
            self._headers[index] = read_header(content, self._names[index])
        size, is_plain = self._headers[index]
        return content, np.array(size, np.int32), is_plain

    def _decode_whole(self, index: int, reduction: int = 1) -> np.ndarray:
        name, channels = self._names[index], self.image_shape[2]
        return decode_image(self._read(int(index)), name, None, channels, reduction=int(reduction))

    def _fetch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images = aligned_empty((len(indices), *self.image_shape))
        # Iterating raises the errors of the threads.
        list(self._threads.map(self._decode_into, images, indices.tolist()))
        return images, self.labels[indices]

    def _decode_into(self, pixels: np.ndarray, index: int) -> None:
        height, width, channels = self.image_shape
        name, content = self._names[index], self._read(index)
        reduction = 1
        if self.is_encoded:
            # Decoded at two or more times the final size.
            size, _ = read_header(content, name)
            reduction = max(1, min(size) // (2 * max(height, width)))
        pixels[...] = decode_image(
            content, name, (height, width), channels, resize=self._resize, reduction=reduction
        )


@contextlib.contextmanager
def name_broken_files() -> Iterator[None]:
    """Turns the error of a pipeline that can't decode a file into an InputError that names it."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        problem = None
        if match := re.search("InputError: (.*)", str(error)):
            problem = match[1]
        elif "Invalid JPEG" in str(error):  # TensorFlow's decoder doesn't know the name.
            problem = next(filter(None, (split.find_broken() for split in _SPLITS)), None)
        if problem is None:
            raise
        raise InputError(
            f"{problem}; replace or remove it, or skip such images with skip_bad_images"
        ) from error


def load_files(
    tree: FileTree,
    files: Sequence[tuple[str, int]],
    size: tuple[int, int] | None,
    *,
    resize: str = "crop",
    encoded: bool = False,
    memory_limit: int,
    skip_bad_images: bool = False,
    channels: int = 3,
    what: str = "images",
) -> tuple[Split | FileSplit, list[str]]:
    """Loads images into memory if they fit; otherwise only decodes each to find unreadable ones.

    With `encoded` and a size, only headers and ends of files are checked, and no image is decoded
    yet, unless unreadable images have to be found to skip them.
    """
    if not files:
        raise InputError(f"{tree.path} has no {what}, expected at least one")
    names = [name for name, _ in files]
    same_size_as = None
    if size is None:
        same_size_as, size = _first_size(tree, names, what)
    shape = (*size, channels)
    if encoded and same_size_as is None:
        split = FileSplit(tree, files, shape, resize, encoded=True, memory_limit=memory_limit)
        images = None
    else:
        split = FileSplit(tree, files, shape, resize)
        fits = len(files) * math.prod(shape) <= memory_limit
        images = aligned_empty((len(files), *shape)) if fits else None
    if split.is_encoded and not skip_bad_images:
        bad = split.check_headers(what)
    else:
        bad = _decode_all(tree, names, shape, images, what, same_size_as, resize)
    if len(bad) == len(files) or (bad and not skip_bad_images):
        raise _unreadable(tree, list(bad.values()), len(files), what)
    if images is not None:
        labels = np.array([label for _, label in files], np.int64)
        return split_without(bad, images, labels), list(bad.values())
    return split.without(bad), list(bad.values())


def _first_size(tree: FileTree, names: Sequence[str], what: str) -> tuple[str, tuple[int, int]]:
    """Returns the name and (height, width) of the first readable image."""
    reasons = []
    for name in names:
        try:
            height, width, _ = decode_image(tree.read(name), name, None).shape
        except InputError as error:
            reasons.append(str(error))
            continue
        return name, (height, width)
    raise _unreadable(tree, reasons, len(names), what)


def _decode_all(
    tree: FileTree,
    names: Sequence[str],
    shape: tuple[int, int, int],
    images: np.ndarray | None,
    what: str,
    same_size_as: str | None,
    resize: str,
) -> dict[int, str]:
    """Decodes all files, into `images` if given, and returns the errors by index."""
    size = (shape[0], shape[1]) if same_size_as is None else None

    def decode(index: int, name: str) -> str | None:
        try:
            image = decode_image(tree.read(name), name, size, shape[2], resize=resize)
        except InputError as error:
            return str(error)
        if image.shape != shape:
            raise InputError(
                f"{tree.path}/{name} has {_pixels(image.shape)} pixels and {same_size_as} "
                f"{_pixels(shape)}, expected images of one size: give an image_size"
            )
        if images is not None:
            images[index] = image
        return None

    errors = threads.with_progress(
        threads.in_threads(decode, enumerate(names)), len(names), f"reading {what}"
    )
    return {index: error for index, error in enumerate(errors) if error is not None}


def _unreadable(tree: FileTree, reasons: Sequence[str], total: int, what: str) -> InputError:
    return InputError(
        f"{len(reasons)} of {total} {what} in {tree.path!r} can't be read (first {reasons[0]}), "
        "expected images only: replace or remove them, or skip them with skip_bad_images"
    )


def _pixels(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _call(method: Callable, inputs: Sequence[tf.Tensor], dtypes: Any) -> Any:
    """Calls a method from a tf.data function."""
    weak_method = threads.weak_method(method)

    def call(*arrays):
        with threads.calls_from_tensorflow:
            return weak_method(*arrays)

    # With deterministic ops, a stateful function would run on one batch at a time.
    return tf.numpy_function(call, inputs, dtypes, stateful=False)
