"""Images in files, decoded into memory once, or again for every batch."""

import concurrent.futures
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from stkd_keras.data.dataset import RandomAccessSplit, Split, aligned_empty, split_without
from stkd_keras.data.sources import threads
from stkd_keras.data.sources.decoding import decode_image
from stkd_keras.data.sources.file_tree import FileTree
from stkd_keras.errors import InputError


class FileSplit(RandomAccessSplit):
    """Images that don't fit in memory and are read and decoded for every batch."""

    def __init__(
        self, tree: FileTree, files: Sequence[tuple[str, int]], image_shape: tuple[int, int, int]
    ):
        self.labels = np.array([label for _, label in files], np.int64)
        self.image_shape = image_shape
        self._tree = tree
        self._names = [name for name, _ in files]
        self._threads = concurrent.futures.ThreadPoolExecutor(threads.THREADS)

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # With deterministic ops, a stateful function would run on one batch at a time.
        images, labels = tf.numpy_function(
            threads.weak_method(self._fetch), [indices], [tf.uint8, tf.int64], stateful=False
        )
        images.set_shape((*indices.shape, *self.image_shape))
        labels.set_shape(indices.shape)
        return images, labels

    def _fetch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with threads.calls_from_tensorflow:
            images = aligned_empty((len(indices), *self.image_shape))
            names = [self._names[index] for index in indices]
            # Iterating raises the errors of the threads.
            list(self._threads.map(self._decode_into, images, names))
            return images, self.labels[indices]

    def _decode_into(self, pixels: np.ndarray, name: str) -> None:
        height, width, channels = self.image_shape
        pixels[...] = decode_image(self._tree.read(name), name, (height, width), channels)


def load_files(
    tree: FileTree,
    files: Sequence[tuple[str, int]],
    size: tuple[int, int] | None,
    *,
    memory_limit: int,
    skip_bad_images: bool = False,
    channels: int = 3,
    what: str = "images",
) -> tuple[Split | FileSplit, list[str]]:
    """Loads images into memory if they fit; otherwise only decodes each to find unreadable ones."""
    if not files:
        raise InputError(f"{tree.path} has no {what}, expected at least one")
    names = [name for name, _ in files]
    same_size_as = None
    if size is None:
        same_size_as, size = _first_size(tree, names, what)
    shape = (*size, channels)
    fits = len(files) * math.prod(shape) <= memory_limit
    images = aligned_empty((len(files), *shape)) if fits else None
    bad = _decode_all(tree, names, shape, images, what, same_size_as)
    if len(bad) == len(files) or (bad and not skip_bad_images):
        raise _unreadable(tree, list(bad.values()), len(files), what)
    if images is not None:
        labels = np.array([label for _, label in files], np.int64)
        return split_without(bad, images, labels), list(bad.values())
    good = [file for index, file in enumerate(files) if index not in bad]
    return FileSplit(tree, good, shape), list(bad.values())


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
) -> dict[int, str]:
    """Decodes all files, into `images` if given, and returns the errors by index."""
    size = (shape[0], shape[1]) if same_size_as is None else None

    def decode(index: int, name: str) -> str | None:
        try:
            image = decode_image(tree.read(name), name, size, shape[2])
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
