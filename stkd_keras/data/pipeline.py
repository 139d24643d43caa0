"""The tf.data pipelines for training and evaluation."""

from collections.abc import Callable

import tensorflow as tf

from stkd_keras.data.augmentation import AUGMENTATIONS
from stkd_keras.data.loading import Split
from stkd_keras.errors import InputError, unknown_name
from stkd_keras.randomness import AUGMENTATION, ORDER, step_seed


def pipeline(
    split: Split,
    batch_size: int,
    data_seed: int,
    *,
    augment: str = "standard",
    flip: bool = True,
    start_step: int = 0,
) -> tf.data.Dataset:
    """Builds the infinite pipeline of augmented batches for training.

    Batch number `step`, counted over all epochs, is a pure function of (data_seed, step) for
    given images and batch size: a pipeline with `start_step=k` continues one that has yielded k
    batches, bit for bit. Each epoch has a permutation of its own, in which every image appears
    at most once; the incomplete last batch is left out.

    Args:
        split: the images to train on. They are copied once, to the host's memory.
        batch_size: images a batch, over all replicas.
        data_seed: integer that decides the order and the augmentation.
        augment: a name in `AUGMENTATIONS`: "standard" (pad, random crop, flip) or "none".
        flip: whether "standard" mirrors images; `Dataset.flip` says where a mirrored image keeps
            its class.
        start_step: number of the first batch.

    Returns:
        Infinite data set of (images, labels): float32 of static shape
        (batch_size, height, width, channels) in [0, 255], and the split's integers (batch_size,).

    Raises:
        InputError: if the batch is larger than the split, or `augment` isn't known, or a number
            is out of range.

    Example:

    ```python
    digits = stkd_keras.data.load("digits")
    batches = pipeline(digits.train, batch_size=32, data_seed=0, flip=digits.flip)
    model.fit(batches, steps_per_epoch=steps_per_epoch(digits.train, 32), epochs=10)
    ```
    """
    if augment not in AUGMENTATIONS:
        raise unknown_name("augmentation", augment, AUGMENTATIONS)
    if start_step < 0:
        raise InputError(f"start_step={start_step} given, expected 0 or more: the first batch is 0")
    order = _order(split, batch_size, data_seed, start_step)
    images, labels = _on_host(split)

    def make_batch(step: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        seed = step_seed(data_seed, AUGMENTATION, step)
        augmented = AUGMENTATIONS[augment](tf.gather(images, indices), seed, flip)
        return tf.cast(augmented, tf.float32), tf.gather(labels, indices)

    batches = _map(tf.data.Dataset.zip(tf.data.Dataset.counter(start_step), order), make_batch)
    return batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def evaluation_pipeline(split: Split, batch_size: int) -> tf.data.Dataset:
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
    images, labels = _on_host(split)

    def make_batch(indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.cast(tf.gather(images, indices), tf.float32), tf.gather(labels, indices)

    return _map(tf.data.Dataset.range(len(split.labels)).batch(batch_size), make_batch)


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Returns the number of complete batches in a split.

    Args:
        split: the images to train on.
        batch_size: images a batch, over all replicas.

    Raises:
        InputError: if the batch size isn't positive or is larger than the split.
    """
    _check_positive(batch_size)
    if batch_size > len(split.labels):
        raise InputError(
            f"batch_size={batch_size} given, expected at most the {len(split.labels)} training "
            "images: take a smaller batch or more images"
        )
    return len(split.labels) // batch_size


def _order(split: Split, batch_size: int, data_seed: int, start_step: int) -> tf.data.Dataset:
    """Returns the data set of each batch's indices, int32 (batch_size,), from `start_step` on."""
    num_images = len(split.labels)
    num_batches = steps_per_epoch(split, batch_size)

    def batches_of(epoch: tf.Tensor) -> tf.data.Dataset:
        seed = step_seed(data_seed, ORDER, epoch)
        # Not `index_shuffle`, which needs no sort: as TensorFlow calls it (4 rounds of its
        # cipher) neighbours avoid each other. With 50,000 images sorted by class, the variance
        # of a class's count in a batch was 9.3, where a uniform permutation has 11.5. The sort
        # takes 6 ms an epoch there.
        keys = tf.random.stateless_uniform(
            (num_images,), seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
        )
        permutation = tf.argsort(keys, stable=True)[: num_batches * batch_size]
        return tf.data.Dataset.from_tensor_slices(tf.reshape(permutation, (-1, batch_size)))

    epoch, step = divmod(start_step, num_batches)
    return tf.data.Dataset.counter(epoch).flat_map(batches_of).skip(step)


def _map(dataset: tf.data.Dataset, make_batch: Callable) -> tf.data.Dataset:
    """Makes batches in parallel, in order and ahead of their use."""
    options = tf.data.Options()
    # They rewrite the graph, and with it copy every tensor that it captures: here, all the images.
    options.experimental_optimization.apply_default_optimizations = False
    return (
        dataset.map(make_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
        .with_options(options)
    )


def _on_host(split: Split) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the images and labels as tensors, which data set functions capture by reference."""
    # tf.data runs on the host; left to itself TensorFlow would put the images on a GPU.
    with tf.device("CPU:0"):
        return tf.constant(split.images), tf.constant(split.labels)


def _check_positive(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} given, expected 1 or more")
