"""Images that don't fit in memory and are streamed from TFRecords."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import tensorflow as tf

# Constants, so that the order of images doesn't depend on the machine.
FILES_AT_ONCE = 16
LARGEST_BUFFER = 16_384


@dataclasses.dataclass(frozen=True, eq=False)
class RecordSplit:
    """Images in TFRecord files, which are read in every epoch.

    Attributes:
        files: the names of the TFRecord files.
        lengths: the number of records in each.
        parse: TensorFlow function from a record, a scalar string, to (image, label): uint8 of
            shape `image_shape` and an integer.
        image_shape: (height, width, channels).
        all_labels: int64 array, the labels of all records in the order of the files.
        selected: bool array, True for the records that belong to the split.
        buffer_size: number of records in the shuffle buffer.
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
        """Returns the part of the split that a bool array of shape (N,) selects."""
        selected = self.selected.copy()
        selected[selected] = mask
        return dataclasses.replace(self, selected=selected)

    def examples(self) -> tf.data.Dataset:
        """Returns (image, label) of each image, in file order."""
        return self.records().map(
            self.parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )

    def records(self, seed: tf.Tensor | None = None) -> tf.data.Dataset:
        """Returns the split's records, scalar strings, in file order or shuffled.

        Shuffling permutes the files, interleaves sixteen of them, and passes the records through a
        shuffle buffer of `buffer_size`. The order is a pure function of the seed, the files and
        `buffer_size`.

        Args:
            seed: int64 tensor of shape (2,), inside a tf.data function; None for file order.
        """
        offsets = np.cumsum([0, *self.lengths], dtype=np.int64)
        used = [
            n for n in range(len(self.files)) if self.selected[offsets[n] : offsets[n + 1]].any()
        ]
        files = tf.constant([self.files[n] for n in used]), tf.constant(offsets[used])
        if seed is not None:
            keys = tf.random.stateless_uniform(
                (len(used),), seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
            )
            order = tf.argsort(keys, stable=True)
            files = tuple(tf.gather(values, order) for values in files)

        def read(file: tf.Tensor, offset: tf.Tensor) -> tf.data.Dataset:
            numbered = tf.data.TFRecordDataset(file).enumerate(offset)
            selected = numbered.filter(lambda n, _: tf.gather(self.selected, n))
            return selected.map(lambda _, record: record)

        records = tf.data.Dataset.from_tensor_slices(files).interleave(
            read,
            cycle_length=1 if seed is None else FILES_AT_ONCE,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        return records if seed is None else _shuffled(records, self.buffer_size, seed)


def buffer_size(memory_limit: int, bytes_per_record: float) -> int:
    """Returns the number of records in the shuffle buffer, which takes up to 1/4 of the limit."""
    return int(min(LARGEST_BUFFER, max(1, memory_limit / 4 // max(1, bytes_per_record))))


def _shuffled(records: tf.data.Dataset, size: int, seed: tf.Tensor) -> tf.data.Dataset:
    # `shuffle` also uses TensorFlow's global seed, on which the order must not depend. In a tf.data
    # function, this sets the seed of that function's graph only.
    tf.compat.v1.get_default_graph().seed = 1
    return records.shuffle(size, seed=seed[0] ^ seed[1], reshuffle_each_iteration=False)
