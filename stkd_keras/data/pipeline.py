"""tf.data pipelines for training and evaluation."""

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
    """Builds an infinite pipeline of augmented training batches.

    For given images and batch size, batch k of epoch e is a pure function of (data_seed, e, k): a
    pipeline with `start_step=s` continues one that has yielded s batches, bit for bit. Each epoch
    is a permutation of all images; its last two batches share the remaining images.

    For a split streamed from TFRecords (`RecordSplit`), this holds for the same files and the same
    shuffle buffer. The order is less random, and starting within an epoch reads, but doesn't
    decode, all earlier images of the epoch.

    Args:
        dataset: the data set; its `flip` says whether images may be flipped.
        split: "train", "test" or "validation", or a part of one of them (`split_train`). Images
            in memory aren't copied.
        batch_size: images per batch, over all shards. The last two batches of an epoch may have
            fewer, but at least half as many.
        data_seed: integer seed of the order and the augmentation.
        augment: a name in `AUGMENTATIONS`: "standard" (pad, random crop, flip), "randaugment",
            "cutout" or "none".
        start_step: number of the first batch, counted over all epochs.
        shard_index: which shard of every batch to return, starting at 0.
        num_shards: number of shards, one for each worker. Unless images are streamed, the shards
            together are the batch of a single worker.
        with_index: whether to also return the index of each image in the split; not supported for
            streamed images.

    Returns:
        Infinite tf.data.Dataset of (images, labels): float32 (batch, height, width, channels) in
        [0, 255], and integers (batch,), -1 for unlabeled images. With `with_index`, the labels are
        a dict of "labels" and "index", both (batch,). The batch size is static if it is the same
        for all batches.

    Raises:
        InputError: if the batch is larger than the split, `augment` or the split's name is
            unknown, or a number is out of range.

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
    shard = _Shard(len(split), batch_size, shard_index, num_shards)
    if isinstance(split, RecordSplit):
        if with_index:
            raise InputError(
                f"{len(split):,} images are streamed from their files, without an index; raise "
                "memory_limit to hold them in memory, or choose another method"
            )
        batches = _streamed_batches(split, shard, data_seed, start_step)
    else:
        batches = _fetched_batches(split, shard, data_seed, start_step, with_index)
    result = _augmented(batches, AUGMENTATIONS[augment], dataset.flip, split, shard, data_seed)
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
    """The arguments of `pipeline`, kept as its `source` so that the same batches can be rebuilt."""

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
        """Returns the same pipeline, starting at another step."""
        return pipeline(**{**vars(self), "start_step": step})

    def settings(self) -> dict[str, Any]:
        """Returns the settings that two pipelines with the same batches must share."""
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
    """Builds a finite pipeline of all images of a split, in order.

    Args:
        split: the images to evaluate on.
        batch_size: images per batch; the last batch may be smaller.

    Returns:
        tf.data.Dataset of known cardinality, of (images, labels): float32 of shape
        (batch, height, width, channels) in [0, 255], and integers of shape (batch,).

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
    """Returns the number of batches in an epoch, the last two of which may be smaller.

    Args:
        split: the images to train on.
        batch_size: images per batch, over all replicas.

    Raises:
        InputError: if the batch size isn't positive or is larger than the split.
    """
    return _Shard(len(split), batch_size).steps


def left_over(split: AnySplit, batch_size: int) -> dict[str, str]:
    """Returns the setting that says how an epoch's remaining images are batched, if there are any.

    Runs and recordings of an older version lack it; there, the last batch had all of them.

    Args:
        split: the images to train on.
        batch_size: images per batch, over all shards.
    """
    return {"left_over": "shared by the last two batches"} if len(split) % batch_size else {}


class _Shard:
    """One worker's shard of each batch of an epoch."""

    def __init__(self, num_images: int, batch_size: int, index: int = 0, of: int = 1):
        _check_positive(batch_size)
        if batch_size > num_images:
            raise InputError(
                f"batch_size={batch_size} given, expected at most the {num_images} training "
                "images: use a smaller batch or more images"
            )
        if batch_size < of:
            raise InputError(
                f"batch_size={batch_size} given for num_shards={of}, expected at least one image "
                "for each: use a larger batch"
            )
        self.batch_size = batch_size
        self.starts = _batch_starts(num_images, batch_size)
        self.steps = len(self.starts) - 1
        # The sizes of shards differ by at most one, and no shard grows when the batch shrinks.
        each, rest = np.divmod(np.diff(self.starts), of)
        self.firsts, self.ends = (i * each + np.minimum(rest, i) for i in (index, index + 1))

    @property
    def sizes(self) -> np.ndarray:
        """The shard's size in each batch."""
        return self.ends - self.firsts

    @property
    def static_size(self) -> int | None:
        """The shard's size if it is the same in every batch, otherwise None."""
        return int(self.sizes[0]) if len(set(self.sizes)) == 1 else None

    def of_batch(self, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the (first, end) of the shard within batch k, integer tensors."""
        return tf.gather(self.firsts, k), tf.gather(self.ends, k)


def _batch_starts(num_images: int, batch_size: int) -> np.ndarray:
    """Returns the start of each batch of an epoch, followed by the end, int64 (steps + 1,).

    The last two batches share the remaining images: a batch of a few images would have no useful
    batch statistics.
    """
    starts = np.arange(0, num_images, batch_size, dtype=np.int64)
    if len(starts) > 1:
        starts[-1] = num_images - (num_images - starts[-2]) // 2
    return np.append(starts, num_images)


def _fetched_batches(
    split: RandomAccessSplit, shard: _Shard, data_seed: int, start_step: int, with_index: bool
) -> tf.data.Dataset:
    """Returns (step, (images, labels)) of this shard, starting at `start_step`."""
    start_epoch, start_batch = divmod(start_step, shard.steps)

    def batches_of(epoch: tf.Tensor) -> tf.data.Dataset:
        permutation = _permutation(len(split), step_seed(data_seed, ORDER, epoch))

        def indices_of(k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            first, end = shard.of_batch(k)
            begin = tf.gather(shard.starts, k)
            return epoch * shard.steps + k, permutation[begin + first : begin + end]

        first_batch = tf.where(epoch == start_epoch, tf.constant(start_batch, tf.int64), 0)
        return tf.data.Dataset.range(first_batch, shard.steps).map(indices_of)

    def fetch(step: tf.Tensor, indices: tf.Tensor):
        images, labels = split.fetch(indices)
        return step, (images, {"labels": labels, "index": indices} if with_index else labels)

    return _map(tf.data.Dataset.counter(start_epoch).flat_map(batches_of), fetch)


def _streamed_batches(
    split: RecordSplit, shard: _Shard, data_seed: int, start_step: int
) -> tf.data.Dataset:
    """Like `_fetched_batches`, but reads a streamed split from its start in each epoch."""
    start_epoch, start_batch = divmod(start_step, shard.steps)
    before = np.append(0, np.cumsum(shard.sizes))
    # A small last batch may leave a worker without images, but all workers must do every step.
    nothing = tf.data.Dataset.from_tensors(
        (tf.zeros((0, *split.image_shape), tf.uint8), tf.zeros((0,), tf.int64))
    )

    def batches_of(epoch: tf.Tensor) -> tf.data.Dataset:
        seed = step_seed(data_seed, ORDER, epoch)
        first = tf.where(epoch == start_epoch, tf.constant(start_batch, tf.int64), 0)
        images = split.examples(
            seed, shard.firsts.sum(), shard.ends.sum(), skip=tf.gather(before, first)
        )
        sizes = tf.maximum(shard.sizes, 1)[first:]
        batches = images.batch(sizes[0]).rebatch(sizes).concatenate(nothing.repeat())
        steps = tf.data.Dataset.range(epoch * shard.steps + first, (epoch + 1) * shard.steps)
        return tf.data.Dataset.zip(steps, batches)

    return tf.data.Dataset.counter(start_epoch).flat_map(batches_of)


def _permutation(size: int, seed: tf.Tensor) -> tf.Tensor:
    """Returns a permutation of the numbers below `size`, int32 (size,)."""
    # `index_shuffle` needs no sort, but it keeps neighbors apart: with 50,000 images sorted by
    # class, the variance of a class's count in a batch was 9.3 instead of 11.5. Sorting
    # takes 6 ms per epoch there.
    keys = tf.random.stateless_uniform(
        (size,), seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    return tf.argsort(keys, stable=True)


def _augmented(
    batches: tf.data.Dataset,
    augmentation: Augmentation,
    flip: bool,
    split: AnySplit,
    shard: _Shard,
    data_seed: int,
) -> tf.data.Dataset:
    """Returns the infinite, prefetched pipeline of augmented (images, labels)."""

    def augment(step: tf.Tensor, batch: tuple[tf.Tensor, tf.Tensor]):
        images, labels = batch
        seed = step_seed(data_seed, AUGMENTATION, step)
        # Drawn for the whole batch, so that shards together equal the batch of a single worker.
        draws = tf.random.stateless_uniform(
            (augmentation.num_draws, shard.batch_size), seed, alg="philox"
        )
        first, end = shard.of_batch(step % shard.steps)
        images = augmentation.apply(images, draws[:, first:end], flip)
        images = tf.ensure_shape(images, (shard.static_size, *split.image_shape))
        labels = tf.nest.map_structure(
            lambda numbers: tf.ensure_shape(numbers, (shard.static_size,)), labels
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
    # They rewrite the graph, which copies all captured tensors, including the images.
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
