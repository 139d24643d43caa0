"""Measures how fast photographs are decoded and augmented, against Keras's own pipeline.

    python benchmarks/photographs.py --zip=../shared/data/photographs-mixed-sizes.zip

copies the photographs to a temporary folder until it has 2,000 files. Then it alternates between
`augment="photo"` and `image_dataset_from_directory` with Keras's RandomCrop and RandomFlip, and
prints the median images per second of each. A second process prints the time to the first batch
(without imports) and its peak memory after an epoch.
"""

import itertools
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# isort: off
import quiet_tensorflow  # noqa: F401

# isort: on
import keras
import tensorflow as tf
from absl import flags

from stkd_keras import data
from stkd_keras.cli import app

ZIP = flags.DEFINE_string("zip", None, "archive of photographs", required=True)
FILES = flags.DEFINE_integer("files", 2000, "files to train on", lower_bound=100)
SIZE = flags.DEFINE_integer("size", 224, "height and width in pixels", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "batch size", lower_bound=1)
BATCHES = flags.DEFINE_integer("batches", 60, "batches per measurement", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 5, "measurements of each kind", lower_bound=1)
FOLDER = flags.DEFINE_string("folder", None, "folder that the second process reads")

CLASSES = 10
WARM_UP = 10


def main() -> None:
    """Runs the command."""
    if FOLDER.value is not None:
        report_start(FOLDER.value)
        return
    with tempfile.TemporaryDirectory() as folder:
        size = copy_photographs(folder)
        print(f"{FILES.value} files, {size / 1e6:.0f} MB")
        feeds = {"keras": keras_batches(folder), "photo": our_batches(folder)}
        rates: dict[str, list[float]] = {name: [] for name in feeds}
        for _, (name, feed) in itertools.product(range(1 + REPEATS.value), feeds.items()):
            rates[name].append(images_per_second(feed))
        medians = {name: statistics.median(values[1:]) for name, values in rates.items()}
        for name, values in rates.items():
            shown = " ".join(f"{value:.0f}" for value in values[1:])
            print(f"{name}: {shown} images/s, median {medians[name]:.0f}")
        print(f"ratio: {medians['photo'] / medians['keras']:.2f}", flush=True)
        subprocess.run([sys.executable, *sys.argv, f"--folder={folder}"], check=True)


def copy_photographs(folder: str) -> int:
    """Writes the files to train/CLASS and one per class to test/CLASS; returns their size."""
    with zipfile.ZipFile(ZIP.value) as archive:
        photographs = [archive.read(name) for name in archive.namelist() if not name.endswith("/")]
    size = 0
    for number in range(FILES.value + CLASSES):
        split = "train" if number < FILES.value else "test"
        path = pathlib.Path(folder, split, f"class{number % CLASSES}", f"{number:06}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        size += path.write_bytes(photographs[number % len(photographs)])
    return size


def keras_batches(folder: str) -> tf.data.Dataset:
    """Returns batches of crops as Keras's guides make them."""
    larger = round(SIZE.value * 256 / 224)
    images = keras.utils.image_dataset_from_directory(
        os.path.join(folder, "train"),
        batch_size=BATCH_SIZE.value,
        image_size=(larger, larger),
        seed=0,
        verbose=False,
    )
    crop = keras.layers.RandomCrop(SIZE.value, SIZE.value)
    flip = keras.layers.RandomFlip("horizontal")

    def augment(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return flip(crop(images, training=True), training=True), labels

    batches = images.repeat().map(augment, num_parallel_calls=tf.data.AUTOTUNE)
    return batches.prefetch(tf.data.AUTOTUNE)


def our_batches(folder: str) -> tf.data.Dataset:
    """Decodes and augments as `train.py --augment=photo` does."""
    dataset = data.load("folder", folder, image_size=SIZE.value, encoded=True)
    return data.pipeline(dataset, "train", BATCH_SIZE.value, data_seed=0, augment="photo")


def images_per_second(feed: tf.data.Dataset) -> float:
    """Returns the throughput of a new iterator, which ends before the other feed starts.

    Its start isn't counted, since a training has a single iterator.
    """
    batches = iter(feed.take(WARM_UP + BATCHES.value))
    for _ in range(WARM_UP):
        next(batches)
    start = time.perf_counter()
    for _ in batches:
        pass
    return BATCHES.value * BATCH_SIZE.value / (time.perf_counter() - start)


def report_start(folder: str) -> None:
    """Prints the time to the first batch and the peak memory after an epoch."""
    before = peak_memory()
    start = time.perf_counter()
    batches = our_batches(folder)
    next(iter(batches))
    print(f"first batch: {time.perf_counter() - start:.1f} s")
    for _ in batches.take(FILES.value // BATCH_SIZE.value):
        pass
    print(f"peak memory: {peak_memory():.2f} GB, {before:.2f} GB of them after the imports")


def peak_memory() -> float:
    """Returns this process's peak resident memory in GB, without that of the parent process."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e6


if __name__ == "__main__":
    app.run(main, __doc__)
