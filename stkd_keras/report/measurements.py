"""Measures a report's models: predictions, scores (as fractions) and costs."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from stkd_keras.classifiers.outputs import logits_function
from stkd_keras.data import Dataset, evaluation_pipeline, pipeline
from stkd_keras.evaluation import cost, scores
from stkd_keras.mixing import CutMix, Mixup, mix_batch
from stkd_keras.teacher.frozen import FrozenTeacher
from stkd_keras.training.sample_panel import NUM_SAMPLES

MOST_VIRTUAL_SAMPLES = 10_000

Classifier = Callable[[tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Logits of several models on the same data, and the first images."""

    labels: np.ndarray
    logits: list[np.ndarray]
    images: np.ndarray


def measure(
    compared: Mapping[str, keras.Model | FrozenTeacher],
    dataset: Dataset,
    mixing: Mixup | CutMix,
    data_seed: int,
    temperature: float,
    calibrations: Sequence[float | None],
) -> tuple[list[dict[str, Any]], Predictions, Predictions]:
    """Measures models on the test split and on virtual samples made from it.

    `calibrations` are their runs' calibration temperatures.
    """
    classifiers = _classifiers(compared.values(), dataset)
    count = f"{len(compared)} model{'s' if len(compared) > 1 else ''}"
    print(f"report: evaluating {count} on {len(dataset.test):,} test images")
    batches = evaluation_pipeline(dataset.test, scores.EVALUATION_BATCH, pad=False)
    test = _predict(classifiers, batches)
    print("report: evaluating on virtual samples")
    virtual = _predict_virtual_samples(classifiers, dataset, mixing, data_seed)
    print("report: timing")
    costs = _costs(list(compared.values()), dataset)
    entries = [
        {
            "name": name,
            "role": "student" if number == 0 else "other",
            **model_scores(test.logits[number], test.labels, temperature, calibrations[number]),
            "cost": costs[number],
        }
        for number, name in enumerate(compared)
    ]
    if len(entries) > 1 and isinstance(list(compared.values())[1], FrozenTeacher):
        entries[1]["role"] = "teacher"
        for number in (0, *range(2, len(entries))):
            entries[number]["fidelity"] = {
                images: fidelity_scores(each.logits[number], each.logits[1])
                for images, each in (("test", test), ("virtual", virtual))
            }
            entries[number]["similarity_correlation"] = similarity_correlation(
                entries[number]["similarity"], entries[1]["similarity"]
            )
    return entries, test, virtual


def metrics_of(
    test: Predictions, has_teacher: bool, calibration: float | None
) -> dict[str, dict[str, float]]:
    """Returns the scores of student and teacher in the format of `experiment.evaluate`."""
    metrics = {"test": scores.score(test.logits[0], test.labels, calibration)}
    if has_teacher:
        metrics["teacher"] = scores.score(test.logits[1], test.labels)
        metrics["fidelity"] = scores.fidelity(test.logits[0], test.logits[1])
    if calibration is not None:
        metrics["calibration"] = {"temperature": calibration}
    return metrics


def fetch_test_images(dataset: Dataset, indices: Sequence[int]) -> np.ndarray:
    """Returns some images of the test split, (len(indices), height, width, channels)."""
    examples = evaluation_pipeline(dataset.test, scores.EVALUATION_BATCH, pad=False).unbatch()
    numbered = enumerate(examples.take(max(indices) + 1))
    found = {number: image.numpy() for number, (image, _) in numbered if number in indices}
    return np.stack([found[index] for index in indices])


def model_scores(
    logits: np.ndarray, labels: np.ndarray, temperature: float, calibration: float | None = None
) -> dict[str, Any]:
    """Returns the scores of a model's logits, (images, classes), as the report stores them."""
    classes = logits.shape[1]
    pairs = np.asarray(labels, np.int64) * classes + logits.argmax(axis=1)
    confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    correct, images = np.diag(confusion), confusion.sum(axis=1)
    calibrated = {}
    if calibration is not None:
        calibrated = {
            "calibration_temperature": calibration,
            "calibrated_reliability": _bins(logits / calibration, labels),
        }
    return {
        **scores.score(logits, labels, calibration),
        **calibrated,
        "correct": int(correct.sum()),
        "accuracy_interval": scores.wilson_interval(correct.sum(), len(labels)),
        "reliability": _bins(logits, labels),
        "per_class": [
            {
                "images": count,
                "accuracy": right / count if count else math.nan,
                "interval": scores.wilson_interval(right, count),
            }
            for right, count in zip(correct, images, strict=True)
        ],
        "confusion": confusion,
        "similarity": class_similarity(logits, labels, temperature),
    }


def class_similarity(logits: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    """Returns the mean softened probabilities on the images of each class, (C, C)."""
    sums = np.zeros((logits.shape[1], logits.shape[1]))
    np.add.at(sums, labels, np.exp(scores.log_softmax(logits.astype(np.float64) / temperature)))
    counts = np.bincount(labels, minlength=len(sums))[:, None]
    return sums / np.where(counts > 0, counts, math.nan)


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """Returns the off-diagonal entries of a square matrix, (C * (C - 1),)."""
    return matrix[~np.eye(len(matrix), dtype=bool)]


def similarity_correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Returns Pearson's correlation of two class similarities, or None if it is undefined."""
    x, y = off_diagonal(one), off_diagonal(other)
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    if len(x) < 3 or not (np.ptp(x) > 0 and np.ptp(y) > 0):
        return None
    return float(np.corrcoef(x, y)[0, 1])


def fidelity_scores(student_logits: np.ndarray, teacher_logits: np.ndarray) -> dict[str, Any]:
    """Returns "agreement", its 95 % interval "agreement_interval", "kl" and "images"."""
    result = scores.fidelity(student_logits, teacher_logits)
    count = len(student_logits)
    agreed = round(result["agreement"] * count)
    return {**result, "agreement_interval": scores.wilson_interval(agreed, count), "images": count}


def most_different(
    student_logits: np.ndarray, teacher_logits: np.ndarray, count: int
) -> list[tuple[int, float]]:
    """Returns the (index, KL divergence) of the samples with the largest divergence."""
    divergence = scores.divergences(student_logits, teacher_logits)
    order = np.argsort(-divergence, kind="stable")[:count]
    return [(int(index), float(divergence[index])) for index in order]


def largest_entries(matrix: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Returns the (row, column) of the largest positive off-diagonal entries."""
    values = np.where(np.eye(len(matrix), dtype=bool), 0, np.nan_to_num(matrix))
    order = np.argsort(-values, axis=None, kind="stable")[:count]
    places = [divmod(int(place), len(matrix)) for place in order]
    return [place for place in places if values[place] > 0]


def _bins(logits: np.ndarray, labels: np.ndarray) -> list[dict[str, float]]:
    """Returns `scores.reliability` as one dict per bin."""
    bins = scores.reliability(logits, labels)
    edges = np.linspace(0, 1, len(bins["images"]) + 1)
    return [
        {"lower": low, "upper": high, **{key: values[n] for key, values in bins.items()}}
        for n, (low, high) in enumerate(itertools.pairwise(edges))
    ]


def _classifiers(models: Iterable[keras.Model | FrozenTeacher], dataset: Dataset) -> list:
    """Returns a traced function from images to logits for each model."""
    functions = (m if isinstance(m, FrozenTeacher) else logits_function(m) for m in models)
    return [
        scores.compiled(each, dataset.image_shape).get_concrete_function() for each in functions
    ]


def _predict_virtual_samples(
    classifiers: Sequence[Classifier], dataset: Dataset, mixing: Mixup | CutMix, data_seed: int
) -> Predictions:
    """Predicts at most 10,000 mixtures of shuffled test images."""
    count = min(len(dataset.test), MOST_VIRTUAL_SAMPLES)
    steps = -(-count // scores.EVALUATION_BATCH)
    size = count // steps  # So that no image is used twice.

    def mix(step, batch):
        images, labels = batch
        labels = tf.one_hot(labels, dataset.num_classes)
        return mix_batch(mixing, None, data_seed, images, labels, None, step)[:2]

    shuffled = pipeline(dataset, dataset.test, size, data_seed, "none")
    return _predict(classifiers, shuffled.take(steps).enumerate().map(mix))


def _predict(classifiers: Sequence[Classifier], batches: tf.data.Dataset) -> Predictions:
    logits, labels = scores.predict_logits(
        lambda x: tf.stack([classifier(x) for classifier in classifiers], axis=1), batches
    )
    images = next(iter(batches))[0][:NUM_SAMPLES].numpy()
    return Predictions(labels, list(np.moveaxis(logits, 1, 0)), images)


def _costs(
    models: Sequence[keras.Model | FrozenTeacher], dataset: Dataset
) -> list[dict[str, float | None]]:
    """Returns each model's parameters, file size and speed, all measured as `FrozenTeacher`s."""
    frozen = [m if isinstance(m, FrozenTeacher) else FrozenTeacher(m) for m in models]
    classifiers = _classifiers(frozen, dataset)
    seconds = []
    for size in cost.BATCH_SIZES:
        pixels = np.random.default_rng(0).uniform(0, 255, (size, *dataset.image_shape))
        images = tf.constant(pixels, tf.float32)
        calls = [lambda call=call, images=images: call(images).numpy() for call in classifiers]
        seconds.append(cost.median_seconds(*calls, seconds=8))
    result: list[dict[str, float | None]] = []
    for model, snapshot, one, many in zip(models, frozen, *seconds, strict=True):
        kept = snapshot.snapshots if model is snapshot else [model]
        result.append(
            {
                "parameters": snapshot.num_parameters or None,
                "multiply_adds": cost.multiply_adds(snapshot, dataset.image_shape),
                "file_bytes": None if kept is None else cost.file_bytes(kept),
                "latency_ms": 1e3 * one,
                "images_per_second_1": cost.BATCH_SIZES[0] / one,
                "images_per_second_128": cost.BATCH_SIZES[1] / many,
            }
        )
    return result
