"""Images that are streamed from TFRecords, because they don't fit into memory."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import tensorflow as tf

# Parts of the definition of the order, so that it doesn't depend on the machine.
FILES_AT_ONCE = 16
LARGEST_BUFFER = 16_384


@dataclasses.dataclass(frozen=True, eq=False)
class RecordSplit:
    """Images in TFRecord files, read in each epoch anew.

    Attributes:
        files: the names of the TFRecord files.
        lengths: the number of records in each.
        parse: TensorFlow function from a record, a scalar string, to (image, label): uint8 of
            shape `image_shape` and an integer.
        image_shape: (height, width, channels).
        all_labels: int64 array, the labels of all records in the order of the files.
        selected: bool array, for each record whether it belongs to the split.
        buffer_size: records held at once to shuffle them.
    """

    files: Sequence[str]
    lengths: Sequence[int]
    parse: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    image_shape: tuple[int, int, int]
    all_labels: np.ndarray
    selected: np.ndarray
    buffer_size: int

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 array of shape (N,), in the order of the files."""
        return self.all_labels[self.selected]

    def take(self, mask: np.ndarray) -> "RecordSplit":
        """Returns the images for which the mask, a bool array of shape (N,), is true."""
        selected = self.selected.copy()
        selected[selected] = mask
        return dataclasses.replace(self, selected=selected)

    def examples(
        self,
        seed: tf.Tensor | None = None,
        start: int = 0,
        stop: int | None = None,
        skip: tf.Tensor | int = 0,
    ) -> tf.data.Dataset:
        """Returns the images of a stretch of the split, each once.

        With a seed the order of the files is a permutation, sixteen files are read by turns, and
        a buffer of `buffer_size` records is shuffled. The order is a pure function of the seed,
        the stretch, the files and `buffer_size`.

        Args:
            seed: int64 tensor of shape (2,), inside a data set's function; None for the order of
                the files.
            start: the first image of the stretch, in the order of the files.
            stop: the first that isn't in it any more; by default the end.
            skip: images that are left out at the beginning of the shuffled order. They are read,
                but not decoded.

        Returns:
            Data set of (image, label).
        """
        inside = np.zeros_like(self.selected)
        inside[np.flatnonzero(self.selected)[start:stop]] = True
        stretches = self._stretches(inside)
        if seed is not None:
            keys = tf.random.stateless_uniform(
                (len(stretches[0]),), seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
            )
            order = tf.argsort(keys, stable=True)
            stretches = tuple(tf.gather(values, order) for values in stretches)

        def read(file, first, count, number_of_first):
            records = tf.data.TFRecordDataset(file).skip(first).take(count)
            numbered = records.enumerate(number_of_first)
            return numbered.filter(lambda n, _: tf.gather(inside, n)).map(lambda _, record: record)

        records = tf.data.Dataset.from_tensor_slices(stretches).interleave(
            read,
            cycle_length=1 if seed is None else FILES_AT_ONCE,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        if seed is not None:
            records = _shuffled(records, self.buffer_size, seed)
        return records.skip(skip).map(
            self.parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )

    def _stretches(self, inside: np.ndarray) -> tuple:
        """Returns, for each file with records inside: name, first, count, and the first's number.

        Nothing else of a file is read.
        """
        stretches = []
        offset = 0
        for file, length in zip(self.files, self.lengths, strict=True):
            here = np.flatnonzero(inside[offset : offset + length])
            if len(here):
                stretches.append((file, here[0], here[-1] + 1 - here[0], offset + here[0]))
            offset += length
        names, *numbers = zip(*stretches, strict=True)
        return (np.array(names), *(np.array(column, np.int64) for column in numbers))


def buffer_size(memory_limit: int, bytes_per_record: float) -> int:
    """Returns how many records are held to be shuffled: a quarter of the memory at most."""
    return int(min(LARGEST_BUFFER, max(1, memory_limit / 4 // max(1, bytes_per_record))))


def _shuffled(records: tf.data.Dataset, size: int, seed: tf.Tensor) -> tf.data.Dataset:
    # `shuffle` mixes TensorFlow's global seed into its own, and the order must not depend on it.
    # Inside the pipeline's function the default graph is that function's alone.
    tf.compat.v1.get_default_graph().seed = 1
    return records.shuffle(size, seed=seed[0] ^ seed[1], reshuffle_each_iteration=False)
