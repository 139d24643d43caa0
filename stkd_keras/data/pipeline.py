"""The tf.data pipelines for training and evaluation."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from stkd_keras.data.augmentation import AUGMENTATIONS, Augmentation
from stkd_keras.data.dataset import AnySplit, Dataset, RandomAccessSplit, content_hash
from stkd_keras.data.sources.tfrecords import RecordSplit
from stkd_keras.errors import InputError, unknown_name
from stkd_keras.randomness import AUGMENTATION, ORDER, step_seed


def pipeline(
    dataset: Dataset,
    split: AnySplit | str,
    batch_size: int,
    data_seed: int,
    augment: str = "standard",
    *,
    start_step: int = 0,
    shard_index: int = 0,
    num_shards: int = 1,
    with_index: bool = False,
) -> tf.data.Dataset:
    """Builds the infinite pipeline of augmented batches for training.

    Batch number k of epoch e is a pure function of (data_seed, e, k) for given images and batch
    size: a pipeline with `start_step=s` continues one that has yielded s batches, bit for bit.
    Each epoch has a permutation of its own, in which every image appears exactly once; its last two
    batches share what is left over.

    A split that is streamed from TFRecords (`RecordSplit`) keeps these promises, for the same
    files and the same size of its shuffle buffer. Its order is only as random as files and buffer
    allow, and to start within an epoch it reads what comes before, without decoding it.

    Args:
        dataset: says whether images may be mirrored.
        split: "train", "test" or "validation", or a part of one of them (`split_train`). Images
            in memory aren't copied.
        batch_size: images a batch, over all shards; an epoch's last two may have fewer, but at
            least half of it.
        data_seed: integer that decides the order and the augmentation.
        augment: a name in `AUGMENTATIONS`: "standard" (pad, random crop, flip), "randaugment",
            "cutout" or "none".
        start_step: number of the first batch, counted over all epochs.
        shard_index: which share of every batch is wanted, from 0 on.
        num_shards: how many shares there are; a worker of several reads its share only. The
            shares of images in memory or in files are the batch, cut in pieces.
        with_index: whether to give the number of each image in the split with its label; not of
            images that are streamed.

    Returns:
        Infinite data set of (images, labels): float32 (batch, height, width, channels) in
        [0, 255], and integers (batch,), -1 for an image without label; with `with_index` a dict of
        "labels" and "index", both (batch,). The batch's static size is known where all have one.

    Raises:
        InputError: if the batch is larger than the split, `augment` or the split's name isn't
            known, or a number is out of range.

    Example:

    ```python
    digits = stkd_keras.data.load("digits")
    batches = stkd_keras.data.pipeline(digits, "train", batch_size=32, data_seed=0)
    steps = stkd_keras.data.steps_per_epoch(digits.train, 32)
    model.fit(batches, steps_per_epoch=steps, epochs=10)
    ```
    """
    if augment not in AUGMENTATIONS:
        raise unknown_name("augmentation", augment, AUGMENTATIONS)
    if isinstance(split, str):
        if split not in dataset.splits:
            raise unknown_name(f"split of {dataset.name}", split, dataset.splits)
        split = dataset.splits[split]
    _check_numbers(start_step, shard_index, num_shards)
    share = _Share(len(split), batch_size, shard_index, num_shards)
    if isinstance(split, RecordSplit):
        if with_index:
            raise InputError(
                f"{len(split):,} images are streamed from their files, and have no numbers; give "
                "them memory (memory_limit, --memory_limit), or choose another method"
            )
        batches = _streamed_batches(split, share, data_seed, start_step)
    else:
        batches = _fetched_batches(split, share, data_seed, start_step, with_index)
    result = _augmented(batches, AUGMENTATIONS[augment], dataset.flip, split, share, data_seed)
    result.source = PipelineSource(
        dataset,
        split,
        batch_size,
        data_seed,
        augment,
        start_step,
        shard_index,
        num_shards,
        with_index,
    )
    return result


@dataclasses.dataclass(frozen=True, eq=False)
class PipelineSource:
    """What a pipeline's batches follow from: the arguments of `pipeline`.

    A pipeline has it as its attribute `source`, for who has to make the same batches again.
    """

    dataset: Dataset
    split: AnySplit
    batch_size: int
    data_seed: int
    augment: str
    start_step: int
    shard_index: int
    num_shards: int
    with_index: bool

    def starting_at(self, step: int) -> tf.data.Dataset:
        """Returns the same pipeline from another step on."""
        return pipeline(
            self.dataset,
            self.split,
            self.batch_size,
            self.data_seed,
            self.augment,
            start_step=step,
            shard_index=self.shard_index,
            num_shards=self.num_shards,
            with_index=self.with_index,
        )

    def settings(self) -> dict[str, Any]:
        """Returns, by name, what the batches of two pipelines are equal by.

        "images" is a hash of images and labels in their order; of more than 1 GB of images, of all
        the labels and of 10,000 of the images.
        """
        return {
            "images": content_hash(self.split),
            "batch_size": self.batch_size,
            **left_over(self.split, self.batch_size),
            "pipeline_data_seed": self.data_seed,
            "augment": self.augment,
            "flip": bool(self.dataset.flip),
            "num_workers": self.num_shards,
        }


def evaluation_pipeline(split: AnySplit, batch_size: int) -> tf.data.Dataset:
    """Builds the finite pipeline of all the images of a split, in their order.

    Args:
        split: the images to score.
        batch_size: images a batch; the last batch holds what is left over.

    Returns:
        Data set of known cardinality, of (images, labels): float32 of shape
        (batch, height, width, channels) in [0, 255], and the split's integers (batch,).

    Raises:
        InputError: if the batch size isn't positive.
    """
    _check_positive(batch_size)
    if isinstance(split, RecordSplit):
        batches = split.examples().batch(batch_size)
    else:
        batches = _map(tf.data.Dataset.range(len(split)).batch(batch_size), split.fetch)
    cardinality = tf.data.experimental.assert_cardinality(-(-len(split) // batch_size))
    return _ahead(_map(batches, _as_floats)).apply(cardinality)


def steps_per_epoch(split: AnySplit, batch_size: int) -> int:
    """Returns the number of batches of an epoch, the last two of which may be smaller.

    Args:
        split: the images to train on.
        batch_size: images a batch, over all replicas.

    Raises:
        InputError: if the batch size isn't positive or is larger than the split.
    """
    return _Share(len(split), batch_size).steps


def left_over(split: AnySplit, batch_size: int) -> dict[str, str]:
    """Returns what settings say of the images that are left over, nothing where there are none.

    Trainings and recordings of a version that left them to the last batch are told apart by it.

    Args:
        split: the images to train on.
        batch_size: images a batch, over all shards.
    """
    return {"left_over": "shared by the last two batches"} if len(split) % batch_size else {}


class _Share:
    """What one of several workers gets of an epoch and of each of its batches.

    The functions of a batch take and return integer tensors.
    """

    def __init__(self, num_images: int, batch_size: int, index: int = 0, of: int = 1):
        _check_positive(batch_size)
        if batch_size > num_images:
            raise InputError(
                f"batch_size={batch_size} given, expected at most the {num_images} training "
                "images: take a smaller batch or more images"
            )
        if batch_size < of:
            raise InputError(
                f"batch_size={batch_size} given for num_shards={of}, expected at least one image "
                "for each: take a larger batch"
            )
        self.batch_size = batch_size
        self.starts = _batch_starts(num_images, batch_size)
        self.steps = len(self.starts) - 1
        # Shares differ by one image at most, and none is larger in a smaller batch.
        each, rest = np.divmod(np.diff(self.starts), of)
        self.firsts, self.ends = (i * each + np.minimum(rest, i) for i in (index, index + 1))

    @property
    def sizes(self) -> np.ndarray:
        """The size of the share of each batch."""
        return self.ends - self.firsts

    @property
    def static_size(self) -> int | None:
        """The size of the share of every batch, if they are all the same."""
        return int(self.sizes[0]) if len(set(self.sizes)) == 1 else None

    def of_batch(self, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The share of batch k: (first, end), counted within the batch."""
        return tf.gather(self.firsts, k), tf.gather(self.ends, k)


def _batch_starts(num_images: int, batch_size: int) -> np.ndarray:
    """Returns where each batch of an epoch begins, and behind them the end, int64 (steps + 1,).

    The last two batches share what is left over: one of a few images would have no batch
    statistics to normalise with.
    """
    starts = np.arange(0, num_images, batch_size, dtype=np.int64)
    if len(starts) > 1:
        starts[-1] = num_images - (num_images - starts[-2]) // 2
    return np.append(starts, num_images)


def _fetched_batches(
    split: RandomAccessSplit, share: _Share, data_seed: int, start_step: int, with_index: bool
) -> tf.data.Dataset:
    """Numbers of steps with this share of their images and labels, from `start_step` on."""
    start_epoch, start_batch = divmod(start_step, share.steps)

    def batches_of(epoch: tf.Tensor) -> tf.data.Dataset:
        permutation = _permutation(len(split), step_seed(data_seed, ORDER, epoch))

        def indices_of(k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            first, end = share.of_batch(k)
            begin = tf.gather(share.starts, k)
            return epoch * share.steps + k, permutation[begin + first : begin + end]

        first_batch = tf.where(epoch == start_epoch, tf.constant(start_batch, tf.int64), 0)
        return tf.data.Dataset.range(first_batch, share.steps).map(indices_of)

    def fetch(step: tf.Tensor, indices: tf.Tensor):
        images, labels = split.fetch(indices)
        return step, (images, {"labels": labels, "index": indices} if with_index else labels)

    return _map(tf.data.Dataset.counter(start_epoch).flat_map(batches_of), fetch)


def _streamed_batches(
    split: RecordSplit, share: _Share, data_seed: int, start_step: int
) -> tf.data.Dataset:
    """As `_fetched_batches`, for a split that is read from its beginning in each epoch."""
    start_epoch, start_batch = divmod(start_step, share.steps)
    before = np.append(0, np.cumsum(share.sizes))
    # A share of a small last batch may be empty; all the workers still make the same steps.
    nothing = tf.data.Dataset.from_tensors(
        (tf.zeros((0, *split.image_shape), tf.uint8), tf.zeros((0,), tf.int64))
    )

    def batches_of(epoch: tf.Tensor) -> tf.data.Dataset:
        seed = step_seed(data_seed, ORDER, epoch)
        first = tf.where(epoch == start_epoch, tf.constant(start_batch, tf.int64), 0)
        images = split.examples(
            seed, share.firsts.sum(), share.ends.sum(), skip=tf.gather(before, first)
        )
        sizes = tf.maximum(share.sizes, 1)[first:]
        batches = images.batch(sizes[0]).rebatch(sizes).concatenate(nothing.repeat())
        steps = tf.data.Dataset.range(epoch * share.steps + first, (epoch + 1) * share.steps)
        return tf.data.Dataset.zip(steps, batches)

    return tf.data.Dataset.counter(start_epoch).flat_map(batches_of)


def _permutation(size: int, seed: tf.Tensor) -> tf.Tensor:
    """Returns a permutation of the numbers below `size`, int32 (size,)."""
    # Not `index_shuffle`, which needs no sort: as TensorFlow calls it (4 rounds of its cipher)
    # neighbours avoid each other. With 50,000 images sorted by class, the variance of a class's
    # count in a batch was 9.3, where a uniform permutation has 11.5. The sort takes 6 ms an
    # epoch there.
    keys = tf.random.stateless_uniform(
        (size,), seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    return tf.argsort(keys, stable=True)


def _augmented(
    batches: tf.data.Dataset,
    augmentation: Augmentation,
    flip: bool,
    split: AnySplit,
    share: _Share,
    data_seed: int,
) -> tf.data.Dataset:
    """Returns the batches of (images, labels) for ever, made ahead of their use."""

    def augment(step: tf.Tensor, batch: tuple[tf.Tensor, tf.Tensor]):
        images, labels = batch
        seed = step_seed(data_seed, AUGMENTATION, step)
        # Drawn for the whole batch, so that the shares of several workers make up that of one.
        draws = tf.random.stateless_uniform(
            (augmentation.num_draws, share.batch_size), seed, alg="philox"
        )
        first, end = share.of_batch(step % share.steps)
        images = augmentation.apply(images, draws[:, first:end], flip)
        images = tf.ensure_shape(images, (share.static_size, *split.image_shape))
        labels = tf.nest.map_structure(
            lambda numbers: tf.ensure_shape(numbers, (share.static_size,)), labels
        )
        return _as_floats(images, labels)

    infinite = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    return _ahead(_map(batches, augment)).apply(infinite)


def _as_floats(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.cast(images, tf.float32), labels


def _map(dataset: tf.data.Dataset, function: Callable) -> tf.data.Dataset:
    return dataset.map(function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _ahead(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    # They rewrite the graph, and with it copy every tensor that it captures: here, all the images.
    options.experimental_optimization.apply_default_optimizations = False
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)


def _check_numbers(start_step: int, shard_index: int, num_shards: int) -> None:
    if start_step < 0:
        raise InputError(f"start_step={start_step} given, expected 0 or more: the first batch is 0")
    if not 0 <= shard_index < num_shards:
        raise InputError(
            f"shard_index={shard_index} of num_shards={num_shards} given, expected an index from "
            f"0 to {num_shards - 1}"
        )


def _check_positive(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} given, expected 1 or more")
