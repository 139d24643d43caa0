"""Has the models of a report answer the test images and virtual samples made of them, once."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf

from stkd_keras.data import Dataset, RecordSplit, evaluation_pipeline, pipeline
from stkd_keras.evaluation.scores import EVALUATION_BATCH
from stkd_keras.mixing import CutMix, Mixup, virtual_samples
from stkd_keras.training.sample_panel import NUM_SAMPLES

MOST_VIRTUAL_SAMPLES = 10_000

Classifier = Callable[[tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Answers:
    """What is answered to images.

    Attributes:
        labels: integers (N,), or of virtual samples float32 rows (N, C).
        logits: float32 (N, C) of each model.
        images: the first images, float32 (<= 8, height, width, channels), pixels in [0, 255].
    """

    labels: np.ndarray
    logits: list[np.ndarray]
    images: np.ndarray


def answer_test_images(classifiers: Sequence[Classifier], dataset: Dataset) -> Answers:
    """Has every model answer every image of the test split."""
    batches = evaluation_pipeline(dataset.test, EVALUATION_BATCH)
    return _answer(classifiers, batches, len(dataset.test))


def answer_virtual_samples(
    classifiers: Sequence[Classifier], dataset: Dataset, mixing: Mixup | CutMix, data_seed: int
) -> Answers:
    """Has every model answer virtual samples made of test images, of 10,000 at most.

    The images are shuffled first, as in training: those of a folder are sorted by class.
    """
    size = min(EVALUATION_BATCH, len(dataset.test))
    steps = -(-min(len(dataset.test), MOST_VIRTUAL_SAMPLES) // size)
    mix = tf.function(functools.partial(virtual_samples, mixing, None, data_seed))

    def mixed() -> Iterable[tuple[tf.Tensor, tf.Tensor]]:
        batches = pipeline(dataset, dataset.test, size, data_seed, "none").take(steps)
        for step, (images, labels) in enumerate(batches):
            rows = tf.one_hot(labels, dataset.num_classes)
            images, rows, _ = mix(images, rows, None, tf.constant(step, tf.int64))
            yield images, rows

    return _answer(classifiers, mixed(), min(len(dataset.test), steps * size))


def fetch_test_images(dataset: Dataset, indices: Sequence[int]) -> np.ndarray:
    """Returns some images of the test split, uint8 (len(indices), height, width, channels)."""
    if not isinstance(dataset.test, RecordSplit):
        return np.asarray(dataset.test.fetch(tf.constant(list(indices), tf.int32))[0])
    wanted = {index: place for place, index in enumerate(indices)}
    result = np.zeros((len(indices), *dataset.image_shape), np.uint8)
    for number, (image, _) in enumerate(dataset.test.examples().take(max(indices) + 1)):
        if number in wanted:
            result[wanted[number]] = image.numpy()
    return result


def _answer(classifiers, batches: Iterable, count: int) -> Answers:
    progress = keras.utils.Progbar(count, unit_name="image")
    labels: list[np.ndarray] = []
    images = np.zeros(0)
    logits: list[list[np.ndarray]] = [[] for _ in classifiers]
    for x, y in batches:
        images = images if labels else x[:NUM_SAMPLES].numpy()
        labels.append(y.numpy())
        for classifier, of_model in zip(classifiers, logits, strict=True):
            of_model.append(classifier(x).numpy())
        progress.add(len(x))
    return Answers(np.concatenate(labels), [np.concatenate(each) for each in logits], images)
