"""How good a classifier is, and how faithful to its teacher. Fractions, not percent."""

import math
import statistics
import sys
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

EVALUATION_BATCH = 500
ECE_BINS = 15
CONFIDENCE_LEVEL = 0.95


def compiled(
    classifier: Callable[[tf.Tensor], tf.Tensor], image_shape: tuple[int, int, int]
) -> tf.types.experimental.PolymorphicFunction:
    """Compiles a classifier for batches of any size, so that several data sets share one graph.

    Args:
        classifier: a function from images to logits: a `FrozenTeacher`, or
            `stkd_keras.outputs.logits_function` of a model.
        image_shape: (height, width, channels).
    """
    images = tf.TensorSpec([None, *image_shape], tf.float32)
    return tf.function(lambda x: classifier(x), input_signature=[images])


def predict_logits(
    classifier: Callable[[tf.Tensor], tf.Tensor], dataset: tf.data.Dataset, verbose: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Runs a classifier over a data set, with Keras's progress bar.

    Args:
        classifier: a function from images to logits, best of `compiled`.
        dataset: batches of (images, labels), finite.
        verbose: whether to show the bar.

    Returns:
        logits: float32 array (N, C).
        labels: integer array (N,).
    """
    size = int(dataset.cardinality())
    progress = keras.utils.Progbar(
        size if size > 0 else None, verbose=verbosity() if verbose else 0
    )
    logits, labels = [], []
    for x, y in dataset:
        logits.append(classifier(x).numpy())
        labels.append(y.numpy())
        progress.add(1)
    return np.concatenate(logits), np.concatenate(labels)


def verbosity() -> int:
    """Returns Keras's `verbose`: a progress bar in a terminal, a line per epoch in a log."""
    return 1 if sys.stdout.isatty() else 2


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores logits against labels.

    Args:
        logits: float array (N, C).
        labels: integer array (N,).

    Returns:
        "accuracy", "top5_accuracy" (where there are more than 10 classes), "nll" (mean negative
        log-likelihood, in nats) and "ece" (expected calibration error, 15 equal-width bins;
        Guo et al., arXiv 1706.04599, equation 3).
    """
    log_probabilities = log_softmax(logits)
    correct = logits.argmax(axis=1) == labels
    result = {"accuracy": float(correct.mean())}
    if logits.shape[1] > 10:
        top5 = np.argpartition(-logits, 5, axis=1)[:, :5]
        result["top5_accuracy"] = float((top5 == labels[:, None]).any(axis=1).mean())
    result["nll"] = float(-log_probabilities[np.arange(len(labels)), labels].mean())
    bins = reliability(logits, labels)
    gaps = np.abs(bins["accuracy"] - bins["confidence"])
    filled = bins["images"] > 0
    result["ece"] = float((bins["images"] * gaps)[filled].sum() / len(labels))
    return result


def reliability(logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Sorts samples by confidence into 15 bins of equal width, as the calibration error does.

    Args:
        logits: float array (N, C).
        labels: integer array (N,).

    Returns:
        Arrays (15,): "images" in each bin, their "accuracy" and their mean "confidence" (the
        probability of the class that is named), both NaN where there are none.
    """
    confidence = np.exp(log_softmax(logits).max(axis=1))
    correct = logits.argmax(axis=1) == labels
    # A bin holds (lower, upper]; a confidence is never 0, but may be NaN.
    bins = np.ceil(np.nan_to_num(confidence, nan=1.0) * ECE_BINS).astype(int) - 1
    images = np.bincount(bins, minlength=ECE_BINS)
    sums = [np.bincount(bins, weights=each, minlength=ECE_BINS) for each in (correct, confidence)]
    with np.errstate(invalid="ignore"):
        accuracy, mean_confidence = (each / images for each in sums)
    return {"images": images, "accuracy": accuracy, "confidence": mean_confidence}


def fidelity(student_logits: np.ndarray, teacher_logits: np.ndarray) -> dict[str, float]:
    """Compares a student's answers with its teacher's.

    Args:
        student_logits: float array (N, C).
        teacher_logits: float array (N, C).

    Returns:
        "agreement", the share of samples on which both name the same class, and "kl", the mean
        of KL(teacher || student) at temperature 1, in nats.
    """
    agreement = student_logits.argmax(axis=1) == teacher_logits.argmax(axis=1)
    divergence = divergences(student_logits, teacher_logits)
    return {"agreement": float(agreement.mean()), "kl": float(divergence.mean())}


def divergences(student_logits: np.ndarray, teacher_logits: np.ndarray) -> np.ndarray:
    """Returns KL(teacher || student) at temperature 1 of each sample, in nats: float64 (N,).

    Args:
        student_logits: float array (N, C).
        teacher_logits: float array (N, C).
    """
    student, teacher = log_softmax(student_logits), log_softmax(teacher_logits)
    return (np.exp(teacher) * (teacher - student)).sum(axis=1)


def wilson_interval(successes, trials) -> tuple[np.ndarray, np.ndarray]:
    """Returns the 95 % intervals of shares.

    Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the
    American Statistical Association 22 (1927). Unlike the normal approximation's it stays within
    [0, 1] and has a width where all or none succeed.

    Args:
        successes: integers, of any shape.
        trials: integers of the same shape; where they are 0 the interval is NaN.

    Returns:
        The lower and the upper ends, float64 of that shape.
    """
    z = statistics.NormalDist().inv_cdf(0.5 + CONFIDENCE_LEVEL / 2)
    n = np.where(np.asarray(trials) > 0, np.float64(trials), math.nan)
    p = np.asarray(successes) / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return np.maximum(middle - half, 0), np.minimum(middle + half, 1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the logarithms of the probabilities, float64 (N, C), of logits (N, C)."""
    shifted = np.float64(logits) - np.max(logits, axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
