"""tf.data pipelines for training and evaluation."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from stkd_keras.data import photo
from stkd_keras.data.augmentation import parse_augmentation
from stkd_keras.data.dataset import (
    UNLABELED,
    AnySplit,
    Dataset,
    content_hash,
)
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

    The images form an endless stream: a permutation of all of them, then the next one, and so on.
    Batch s holds the stream's positions from s * batch_size to (s + 1) * batch_size - 1, so all
    batches are full, and how often two images have been used never differs by more than one. For
    given images and batch size, batch s is a pure function of (data_seed, s): a pipeline with
    `start_step=s` continues one that has yielded s batches, bit for bit.

    For a split streamed from TFRecords (`RecordSplit`), this holds for the same files and the same
    shuffle buffer. The order is less random, starting within a permutation reads, but doesn't
    decode, its earlier images, and each shard reads all images, but decodes only its own.

    Args:
        dataset: the data set; its `flip` says whether images may be flipped.
        split: "train", "test" or "validation", or a part of one of them (`split_train`). Images
            in memory aren't copied.
        batch_size: images per batch, over all shards.
        data_seed: integer seed of the order and the augmentation.
        augment: a name in `AUGMENTATIONS`: "standard" (pad, random crop, flip), "randaugment",
            "cutout", "none", or "photo" (random resized crop, flip). "photo" may be followed by
            "trivialaugment" or "randaugment", and "erasing": "photo,trivialaugment,erasing". It
            cuts crops out of whole image files if the data set was loaded with `encoded`.
        start_step: number of the first batch.
        shard_index: which shard of every batch to return, starting at 0.
        num_shards: number of shards, one for each worker. Together they are the batch of a single
            worker.
        with_index: whether to also return the index of each image in the split; not supported for
            streamed images.

    Returns:
        Infinite tf.data.Dataset of (images, labels): float32 (batch, height, width, channels) in
        [0, 255], and integers (batch,), -1 for unlabeled images. With `with_index`, the labels are
        a dict of "labels" and "index", both (batch,). All shapes are static.

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
    augmentation = parse_augmentation(augment)
    if isinstance(split, str):
        if split not in dataset.splits:
            raise unknown_name(f"split of {dataset.name}", split, dataset.splits)
        split = dataset.splits[split]
    _check_numbers(start_step, shard_index, num_shards)
    _check_batch_size(batch_size, len(split), num_shards)
    first, end = (n * batch_size // num_shards for n in (shard_index, shard_index + 1))
    if isinstance(split, RecordSplit) and with_index:
        raise InputError(
            f"{len(split):,} images are streamed from their files, without an index; raise "
            "memory_limit to hold them in memory, or choose another method"
        )

    def draw(step: tf.Tensor) -> tf.Tensor:
        # Drawn for the whole batch, so that shards together equal the batch of a single worker.
        shape = (augmentation.num_draws, batch_size)
        return tf.random.stateless_uniform(
            shape, step_seed(data_seed, AUGMENTATION, step), alg="philox"
        )

    def augmented(step: tf.Tensor, batch: tuple[tf.Tensor, Any]):
        images, labels = batch
        images = augmentation.apply(images, draw(step)[:, first:end], dataset.flip)
        images = tf.ensure_shape(images, (end - first, *split.image_shape))
        labels = tf.nest.map_structure(lambda each: tf.ensure_shape(each, (end - first,)), labels)
        return _as_floats(images, labels)

    keys = _keys(split, batch_size, data_seed, start_step)
    if augmentation.crops:

        def crops(step: tf.Tensor, keys: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            crops = photo.random_crops(draw(step), split.image_shape, dataset.flip)
            return keys[first:end], crops[first:end]

        chosen = keys.enumerate(start_step).map(crops)
        batches = _cropped_batches(split, chosen, end - first, with_index)
    else:
        chosen = keys.map(lambda keys: keys[first:end])
        batches = _whole_batches(split, chosen, end - first, with_index)
    infinite = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    result = _ahead(_map(batches.enumerate(start_step), augmented)).apply(infinite)
    result.source = PipelineSource(
        dataset, split, batch_size, data_seed, augment, start_step, shard_index, num_shards,
        with_index,
    )  # fmt: skip
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


def evaluation_pipeline(split: AnySplit, batch_size: int, *, pad: bool = True) -> tf.data.Dataset:
    """Builds a finite pipeline of all images of a split, in order.

    The last batch is padded to the size of the others, so that a model is compiled for one shape
    only. `predict_logits` drops the padding, and a distiller's `evaluate` ignores it. Losses and
    metrics of Keras don't: use `pad=False` for other models.

    Args:
        split: the images to evaluate on.
        batch_size: images per batch, lowered to the number of images.
        pad: whether to pad the last batch.

    Returns:
        tf.data.Dataset of known cardinality, of (images, labels, weights): float32
        (batch, height, width, channels) in [0, 255], integers (batch,), and float32 (batch,). All
        shapes are static. The padding has zeros as images, the label -1 and the weight 0; images
        have the weight 1. With `pad=False`, (images, labels), and the last batch may be smaller.

    Raises:
        InputError: if the batch size isn't positive.
    """
    _check_positive(batch_size)
    batch_size = min(batch_size, len(split))
    if isinstance(split, RecordSplit):
        batches = split.examples().batch(batch_size)
    else:
        batches = _map(tf.data.Dataset.range(len(split)).batch(batch_size), split.fetch)

    def padded(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        count = tf.shape(labels)[0]
        rows = [0, batch_size - count]
        images = tf.pad(images, [rows, [0, 0], [0, 0], [0, 0]])
        images = tf.ensure_shape(images, (batch_size, *split.image_shape))
        labels = tf.pad(labels, [rows], constant_values=UNLABELED)
        weights = tf.cast(tf.range(batch_size) < count, tf.float32)
        return *_as_floats(images, tf.ensure_shape(labels, (batch_size,))), weights

    cardinality = tf.data.experimental.assert_cardinality(-(-len(split) // batch_size))
    return _ahead(_map(batches, padded if pad else _as_floats)).apply(cardinality)


def steps_per_epoch(split: AnySplit, batch_size: int) -> int:
    """Returns the number of steps in an epoch: the images divided by the batch size, rounded.

    Args:
        split: the images to train on.
        batch_size: images per batch, over all replicas.

    Raises:
        InputError: if the batch size isn't positive or is larger than the split.
    """
    _check_batch_size(batch_size, len(split))
    return round(len(split) / batch_size)


def left_over(split: AnySplit, batch_size: int) -> dict[str, str]:
    """Returns the setting that says how a permutation's remaining images are batched, if any.

    Runs and recordings of older versions have another value or none: there, the last two batches
    of an epoch shared the remaining images, or the last one had all of them.
    """
    return {"left_over": "begin the next epoch"} if len(split) % batch_size else {}


def _keys(split: AnySplit, batch_size: int, data_seed: int, start_step: int) -> tf.data.Dataset:
    """Returns the indices (for streamed images, the records) of each batch, (batch_size,)."""
    start_epoch, start = divmod(start_step * batch_size, len(split))

    def order(epoch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        skip = tf.where(epoch == start_epoch, tf.constant(start, tf.int64), 0)
        return step_seed(data_seed, ORDER, epoch), skip

    orders = tf.data.Dataset.counter(start_epoch).map(order)
    if isinstance(split, RecordSplit):
        records = orders.flat_map(lambda seed, skip: split.records(seed).skip(skip))
        return records.batch(batch_size, drop_remainder=True)
    indices = orders.map(lambda seed, skip: _permutation(len(split), seed)[skip:])
    return indices.rebatch(batch_size, drop_remainder=True)


def _whole_batches(
    split: AnySplit, keys: tf.data.Dataset, batch_size: int, with_index: bool
) -> tf.data.Dataset:
    """Returns batches of (images, labels)."""
    if isinstance(split, RecordSplit):
        return _map(keys.unbatch(), split.parse).batch(batch_size, drop_remainder=True)
    return _map(keys, lambda index: _labeled(index, *split.fetch(index), with_index))


def _cropped_batches(
    split: AnySplit, keys_and_crops: tf.data.Dataset, batch_size: int, with_index: bool
) -> tf.data.Dataset:
    """Returns batches of (cropped images, labels)."""

    def crop(key: tf.Tensor, crop: tf.Tensor) -> tuple[tf.Tensor, Any]:
        if isinstance(split, RecordSplit):
            image, label = split.parse(key)
            return photo.cut(image, crop, split.image_shape), label
        return _labeled(key, *split.fetch_crop(key, crop), with_index)

    # AUTOTUNE starts with one call at a time, and one per core leaves cores idle.
    images = keys_and_crops.unbatch().map(
        crop, num_parallel_calls=2 * (os.cpu_count() or 1), deterministic=True
    )
    return images.batch(batch_size, drop_remainder=True)


def _labeled(index: tf.Tensor, images: tf.Tensor, labels: tf.Tensor, with_index: bool):
    return images, {"labels": labels, "index": index} if with_index else labels


def _permutation(size: int, seed: tf.Tensor) -> tf.Tensor:
    """Returns a permutation of the numbers below `size`, int32 (size,)."""
    # `index_shuffle` needs no sort, but it keeps neighbors apart: with 50,000 images sorted by
    # class, the variance of a class's count in a batch was 9.3 instead of 11.5. Sorting
    # takes 6 ms per epoch there.
    keys = tf.random.stateless_uniform(
        (size,), seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    return tf.argsort(keys, stable=True)


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


def _check_batch_size(batch_size: int, num_images: int, num_shards: int = 1) -> None:
    _check_positive(batch_size)
    if batch_size > num_images:
        raise InputError(
            f"batch_size={batch_size} given, expected at most the {num_images} training "
            "images: use a smaller batch or more images"
        )
    if batch_size < num_shards:
        raise InputError(
            f"batch_size={batch_size} given for num_shards={num_shards}, expected at least one "
            "image for each: use a larger batch"
        )


def _check_positive(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} given, expected 1 or more")
