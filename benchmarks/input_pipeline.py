"""Measures whether the input pipeline slows down training.

    python benchmarks/input_pipeline.py --data_dir=../shared/data/tfds

trains a resnet8 in epochs that alternate between the pipeline and one cached batch, and prints the
ratio of the median times. Then it prints the pipeline's images per second with each augmentation,
and with the standard augmentation mapped over single images, as tutorials write it.
"""

import itertools
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# isort: off
import quiet_tensorflow  # noqa: F401

# isort: on
import keras
import tensorflow as tf
from absl import flags

import models
import stkd_keras
from stkd_keras import data, experiment
from stkd_keras.cli import app

DATASET = flags.DEFINE_string("dataset", "cifar10", "data set")
DATA_DIR = flags.DEFINE_string("data_dir", None, "see train.py")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "batch size", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", None, "steps per epoch (default: all)", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 5, "epochs of each kind", lower_bound=1)
BATCHES = flags.DEFINE_integer(
    "batches", 400, "batches per measurement of the throughput", lower_bound=1
)


def main() -> None:
    """Runs the command."""
    start = time.perf_counter()
    dataset = data.load(DATASET.value, DATA_DIR.value)
    batches = data.pipeline(dataset, "train", BATCH_SIZE.value, data_seed=0)
    batch = next(iter(batches))
    print(f"loading {dataset.name} and making the first batch: {time.perf_counter() - start:.1f} s")
    report_epochs(dataset, {"pipeline": batches, "one batch": one_batch(batch)})
    report_images(dataset)


def report_epochs(dataset: data.Dataset, feeds: dict[str, tf.data.Dataset]) -> None:
    """Times epochs of training on each feed, alternating between them."""
    student = models.build(
        "resnet8", dataset.image_shape, dataset.num_classes, dataset.mean, dataset.std
    )
    trainer = stkd_keras.SimilarityTransferDistiller(
        student, mixing=None, soft_weight=0.0, label_weight=1.0
    )
    steps = STEPS.value or data.steps_per_epoch(dataset.train, BATCH_SIZE.value)
    trainer.compile(experiment.make_optimizer(0.1, 5e-4, 10**6))
    for feed in feeds.values():
        trainer.fit(feed, steps_per_epoch=10, shuffle=False, verbose=0)
    seconds: dict[str, list[float]] = {name: [] for name in feeds}
    progress = keras.utils.Progbar(REPEATS.value * len(feeds), unit_name="epoch")
    for _, (name, feed) in itertools.product(range(REPEATS.value), feeds.items()):
        start = time.perf_counter()
        trainer.fit(feed, steps_per_epoch=steps, shuffle=False, verbose=0)
        seconds[name].append(time.perf_counter() - start)
        progress.add(1)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        print(f"{name:10} {' '.join(f'{v:.2f}' for v in values)} s, median {medians[name]:.2f} s")
    ratio = medians["pipeline"] / medians["one batch"]
    print(f"an epoch of {steps} steps from the pipeline takes {ratio:.3f} times as long\n")


def report_images(dataset: data.Dataset) -> None:
    """Prints the images per second of each augmentation, and of one that maps over images."""
    feeds = {
        name: data.pipeline(dataset, "train", BATCH_SIZE.value, 0, name)
        for name in data.AUGMENTATIONS
    }
    feeds["standard, one image at a time"] = one_image_at_a_time(dataset)
    rates: dict[str, list[float]] = {name: [] for name in feeds}
    for _, (name, feed) in itertools.product(range(REPEATS.value), feeds.items()):
        rates[name].append(images_per_second(feed))
    print("| augmentation | images/s (median) |\n|---|---|")
    for name, values in rates.items():
        print(f"| {name} | {statistics.median(values):,.0f} |")


def images_per_second(feed: tf.data.Dataset) -> float:
    """Returns the throughput, not counting the iterator's first batches."""
    iterator = iter(feed)
    for _ in range(20):
        next(iterator)
    start = time.perf_counter()
    for _ in range(BATCHES.value):
        next(iterator)
    return BATCHES.value * BATCH_SIZE.value / (time.perf_counter() - start)


def one_batch(batch: tuple[tf.Tensor, tf.Tensor]) -> tf.data.Dataset:
    """Repeats a cached batch forever."""
    return tf.data.Dataset.from_tensors(batch).repeat()


def one_image_at_a_time(dataset: data.Dataset) -> tf.data.Dataset:
    """Returns batches whose standard augmentation is a `map` over single images."""
    height, width, channels = dataset.image_shape
    padding = min(height, width) // 8

    def augment(number: tf.Tensor, example: tuple[tf.Tensor, tf.Tensor]):
        image, label = example
        seed = tf.stack([tf.constant(0, tf.int64), number])
        padded = tf.image.pad_to_bounding_box(
            image, padding, padding, height + 2 * padding, width + 2 * padding
        )
        cropped = tf.image.stateless_random_crop(padded, (height, width, channels), seed)
        return tf.cast(tf.image.stateless_random_flip_left_right(cropped, seed), tf.float32), label

    split = dataset.train
    return (
        tf.data.Dataset.from_tensor_slices((split.images, split.labels))
        .shuffle(10_000)
        .repeat()
        .enumerate()
        .map(augment, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(BATCH_SIZE.value)
        .prefetch(tf.data.AUTOTUNE)
    )


if __name__ == "__main__":
    app.run(main, __doc__)
