"""Images in files: decoded once into memory, or whenever a batch needs them."""

import concurrent.futures
import math
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from stkd_keras.data.dataset import Split, aligned_empty, close_gaps
from stkd_keras.data.sources.decoding import decode_image
from stkd_keras.data.sources.file_tree import FileTree
from stkd_keras.data.sources.threads import (
    THREADS,
    calls_from_tensorflow,
    in_threads,
    with_progress,
)
from stkd_keras.errors import InputError


class FileSplit:
    """Images in files, which are read and decoded whenever a batch needs them.

    For data that is larger than memory. `load_files` makes one.

    Args:
        tree: where the files are, one that is read at random.
        files: (name, label) of each image, a label of -1 for none.
        image_shape: (height, width, channels) that every image is brought to.

    Attributes:
        labels: int64 array of shape (N,), -1 for an image without label.
        image_shape: (height, width, channels).
    """

    def __init__(
        self,
        tree: FileTree,
        files: Sequence[tuple[str, int]],
        image_shape: tuple[int, int, int],
    ):
        self.labels = np.array([label for _, label in files], np.int64)
        self.image_shape = image_shape
        self._tree = tree
        self._names = [name for name, _ in files]
        self._threads = concurrent.futures.ThreadPoolExecutor(THREADS)

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Reads and decodes a batch.

        Args:
            indices: int32 tensor of shape (B,).

        Returns:
            images: uint8 tensor of shape (B, height, width, channels), in [0, 255].
            labels: int64 tensor of shape (B,).

        Raises:
            tf.errors.InvalidArgumentError: once it is run, if a file can't be read any more;
                the message names it.
        """
        # Stateful, as it isn't, it would run one batch at a time under deterministic ops.
        images, labels = tf.numpy_function(
            self._fetch, [indices], [tf.uint8, tf.int64], stateful=False
        )
        images.set_shape((*indices.shape, *self.image_shape))
        labels.set_shape(indices.shape)
        return images, labels

    def _fetch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with calls_from_tensorflow:
            images = aligned_empty((len(indices), *self.image_shape))
            names = [self._names[index] for index in indices]
            # A list, so that errors of the threads are raised here.
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
    """Loads images from files, into memory where they fit.

    All files are decoded once, in parallel, whether or not they fit: those that can't be read
    are found now and not after hours of training. What takes more than three seconds shows its
    progress.

    Args:
        tree: where the files are.
        files: (name, label) of each image, each name once, a label of -1 for none.
        size: (height, width) that images are brought to (see `decode_image`). None keeps their
            own, which has to be the same for all.
        memory_limit: bytes that the decoded images may take. More are read whenever a batch
            needs them.
        skip_bad_images: whether images that can't be read are left out, in place of an error.
        channels: 3 for RGB, 1 for grey.
        what: what the images are called in messages, such as "training images".

    Returns:
        (split, skipped): the images with int64 labels in the order of `files`, and for each image
        that was left out "NAME: REASON".

    Raises:
        InputError: if there are no files, an image can't be read, or none can; with `size` None,
            if two sizes differ; if the images don't fit into memory and `tree` can't be read at
            random.
    """
    if not files:
        raise InputError(f"{tree.path} has no {what}, expected at least one")
    names = [name for name, _ in files]
    same_size_as = None
    if size is None:
        same_size_as, size = _first_size(tree, names, what)
    shape = (*size, channels)
    images = _allocate(tree, len(files), shape, memory_limit, what)
    bad = _decode_all(tree, names, shape, images, what, same_size_as)
    if len(bad) == len(files) or (bad and not skip_bad_images):
        raise _unreadable(tree, list(bad.values()), len(files), what)
    good = [index for index in range(len(files)) if index not in bad]
    if images is None:
        return FileSplit(tree, [files[index] for index in good], shape), list(bad.values())
    labels = np.array([files[index][1] for index in good], np.int64)
    return Split(close_gaps(images, good), labels), list(bad.values())


def _first_size(tree: FileTree, names: Sequence[str], what: str) -> tuple[str, tuple[int, int]]:
    """Returns the first file that is an image, with its (height, width)."""
    reasons = []
    for name in names:
        try:
            height, width, _ = decode_image(tree.read(name), name, None).shape
        except InputError as error:
            reasons.append(str(error))
            continue
        return name, (height, width)
    raise _unreadable(tree, reasons, len(names), what)


def _allocate(
    tree: FileTree, count: int, shape: tuple[int, int, int], memory_limit: int, what: str
) -> np.ndarray | None:
    """Returns the array for all the images, or None if they don't fit."""
    size = count * math.prod(shape)
    if size <= memory_limit:
        return aligned_empty((count, *shape))
    if not tree.is_random_access:
        raise InputError(
            f"{count} {what} of {_pixels(shape)} pixels take {size / 1e9:.3g} GB, more than the "
            f"memory limit of {memory_limit / 1e9:.3g} GB, and {tree.path} can only be read from "
            "one end to the other: unpack it first, or give a larger --memory_limit"
        )
    return None


def _decode_all(
    tree: FileTree,
    names: Sequence[str],
    shape: tuple[int, int, int],
    images: np.ndarray | None,
    what: str,
    same_size_as: str | None,
) -> dict[int, str]:
    """Decodes all the files, each into its row of `images` where that is given.

    Returns:
        Why files can't be decoded, by their indices, in order.
    """
    size = (shape[0], shape[1]) if same_size_as is None else None

    def decode(index: int, content: bytes | None) -> tuple[int, str | None]:
        name = names[index]
        try:
            if content is None:
                content = tree.read(name)
            image = decode_image(content, name, size, shape[2])
        except InputError as error:
            return index, str(error)
        if image.shape != shape:
            raise InputError(
                f"{tree.path}/{name} has {_pixels(image.shape)} pixels and {same_size_as} "
                f"{_pixels(shape)}, expected one size: give all an --image_size"
            )
        if images is not None:
            images[index] = image
        return index, None

    outcomes = with_progress(in_threads(decode, _contents(tree, names)), len(names), what)
    # An archive gives its files in an order of its own.
    return dict(sorted((index, reason) for index, reason in outcomes if reason is not None))


def _contents(tree: FileTree, names: Sequence[str]) -> Iterator[tuple[int, bytes | None]]:
    """Gives the index and the content of each file, None where it can be read by a thread."""
    if tree.is_random_access:
        for index in range(len(names)):
            yield index, None
    else:
        indices = {name: index for index, name in enumerate(names)}
        for name, content in tree.read_all(names):
            yield indices[name], content


def _unreadable(tree: FileTree, reasons: Sequence[str], total: int, what: str) -> InputError:
    """Returns the error for "NAME: REASON" of each image that can't be read."""
    return InputError(
        f"{len(reasons)} of {total} {what} in {tree.path!r} can't be read (first {reasons[0]}), "
        "expected images only: replace or remove them, or leave them out with --skip_bad_images"
    )


def _pixels(shape: tuple[int, ...]) -> str:
    """Returns "HEIGHTxWIDTH"."""
    return f"{shape[0]}x{shape[1]}"
