"""Accuracy, calibration and fidelity, as fractions."""

import math
import statistics
import sys
import warnings
from collections.abc import Callable

import keras
import numpy as np
import scipy.optimize
import scipy.special
import tensorflow as tf

from stkd_keras.errors import LARGEST, SMALLEST, InputError

EVALUATION_BATCH = 500
ECE_BINS = 15
CONFIDENCE_LEVEL = 0.95


def compiled(
    classifier: Callable[[tf.Tensor], tf.Tensor], image_shape: tuple[int, int, int]
) -> tf.types.experimental.PolymorphicFunction:
    """Compiles a classifier into a single graph for all batch sizes.

    Args:
        classifier: a function from images to logits: a `FrozenTeacher`, or
            `stkd_keras.classifiers.outputs.logits_function` of a model.
        image_shape: (height, width, channels).
    """
    images = tf.TensorSpec([None, *image_shape], tf.float32)
    return tf.function(lambda x: classifier(x), input_signature=[images])


def predict_logits(
    classifier: Callable[[tf.Tensor], tf.Tensor], dataset: tf.data.Dataset, verbose: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Predicts the logits of a data set.

    Args:
        classifier: a function from images to logits, ideally returned by `compiled`.
        dataset: finite batches of (images, labels) or (images, labels, weights), such as from
            `stkd_keras.data.evaluation_pipeline`.
        verbose: whether to show Keras's progress bar.

    Returns:
        logits: float32 array (N, C), without images of weight 0.
        labels: integer array (N,).
    """
    size = int(dataset.cardinality())
    progress = keras.utils.Progbar(
        size if size > 0 else None, verbose=verbosity() if verbose else 0
    )
    logits, labels = [], []
    for batch in dataset:
        x, y, weights = keras.utils.unpack_x_y_sample_weight(batch)
        kept = slice(None) if weights is None else weights.numpy() > 0
        logits.append(classifier(x).numpy()[kept])
        labels.append(y.numpy()[kept])
        progress.add(1)
    return np.concatenate(logits), np.concatenate(labels)


def verbosity() -> int:
    """Returns Keras's `verbose`: a progress bar in a terminal, a line per epoch in a log."""
    return 1 if sys.stdout.isatty() else 2


def score(
    logits: np.ndarray, labels: np.ndarray, temperature: float | None = None
) -> dict[str, float]:
    """Scores logits against labels.

    Args:
        logits: float array (N, C).
        labels: integer array (N,).
        temperature: the result of `fit_temperature`, or None.

    Returns:
        "accuracy", "top5_accuracy" (with more than 10 classes), "nll" (mean negative
        log-likelihood, in nats) and "ece" (expected calibration error over 15 equal-width bins;
        Guo et al., arXiv 1706.04599, equation 3). With a temperature also "calibrated_nll" and
        "calibrated_ece", of the logits divided by it.
    """
    correct = logits.argmax(axis=1) == labels
    result = {"accuracy": float(correct.mean())}
    if logits.shape[1] > 10:
        top5 = np.argpartition(-logits, 5, axis=1)[:, :5]
        result["top5_accuracy"] = float((top5 == labels[:, None]).any(axis=1).mean())
    result["nll"] = float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())
    bins = reliability(logits, labels)
    gaps = np.abs(bins["accuracy"] - bins["confidence"])
    filled = bins["images"] > 0
    result["ece"] = float((bins["images"] * gaps)[filled].sum() / len(labels))
    if temperature is not None:
        calibrated = score(logits / temperature, labels)
        result |= {f"calibrated_{name}": calibrated[name] for name in ("nll", "ece")}
    return result


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Fits the temperature that calibrates a classifier (Guo et al., arXiv 1706.04599).

    `softmax(logits / temperature)` has the smallest negative log-likelihood. Dividing by a
    temperature changes the confidence of predictions, but not the predicted classes. Fit it on
    images that the classifier wasn't trained on.

    Args:
        logits: float array (N, C).
        labels: integer array (N,), from 0 to C - 1.

    Returns:
        The temperature. If there is no best one (all labels are the same, all predictions are
        correct, or the logits don't help to predict the labels), warns and returns 1.0, which
        changes nothing.

    Raises:
        InputError: if the arrays are empty, don't have these shapes and values, or aren't finite.
    """
    logits, labels = _checked(logits, labels)
    differences = logits - logits[np.arange(len(labels)), labels][:, None]

    def slope(inverse: float) -> float:
        """The derivative of the negative log-likelihood, which is convex in 1 / temperature."""
        probabilities = scipy.special.softmax(inverse * differences, axis=1)
        return float((probabilities * differences).sum(axis=1).mean())

    problem = None
    if len(set(labels.tolist())) == 1:
        problem = f"all {len(labels)} labels are class {labels[0]}"
    elif slope(0.0) >= 0:
        problem = f"these logits don't help to predict the {len(labels)} labels"
    elif differences.max() <= 0:
        problem = f"all {len(labels)} predictions are correct"
    if problem is not None:
        warnings.warn(f"no temperature is best, so it stays 1: {problem}", stacklevel=2)
        return 1.0
    upper = 1 / np.abs(differences).max()
    while slope(upper) <= 0:
        upper *= 2
    inverse = scipy.optimize.brentq(slope, 0.0, upper, xtol=1e-300, rtol=1e-9)
    return float(np.clip(1 / inverse, SMALLEST, LARGEST))


def reliability(logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Bins predictions by confidence into 15 bins of equal width.

    Args:
        logits: float array (N, C).
        labels: integer array (N,).

    Returns:
        Arrays of shape (15,): "images" in each bin, their "accuracy", and their mean "confidence"
        (the probability of the predicted class). The last two are NaN for an empty bin.
    """
    confidence = np.exp(log_softmax(logits).max(axis=1))
    correct = logits.argmax(axis=1) == labels
    # Bins are (lower, upper]. Confidence is never 0, but may be NaN after a diverged training.
    bins = np.ceil(np.nan_to_num(confidence, nan=1.0) * ECE_BINS).astype(int) - 1
    images = np.bincount(bins, minlength=ECE_BINS)
    sums = [np.bincount(bins, weights=each, minlength=ECE_BINS) for each in (correct, confidence)]
    with np.errstate(invalid="ignore"):
        accuracy, mean_confidence = (each / images for each in sums)
    return {"images": images, "accuracy": accuracy, "confidence": mean_confidence}


def fidelity(student_logits: np.ndarray, teacher_logits: np.ndarray) -> dict[str, float]:
    """Compares a student's logits with its teacher's, both float arrays (N, C).

    Returns:
        "agreement", the fraction of samples for which both predict the same class, and "kl", the
        mean KL(teacher || student) at temperature 1, in nats.
    """
    same = student_logits.argmax(axis=1) == teacher_logits.argmax(axis=1)
    return {
        "agreement": float(same.mean()),
        "kl": float(divergences(student_logits, teacher_logits).mean()),
    }


def divergences(student_logits: np.ndarray, teacher_logits: np.ndarray) -> np.ndarray:
    """Returns KL(teacher || student) of logits (N, C) at temperature 1, in nats, float64 (N,)."""
    student, teacher = log_softmax(student_logits), log_softmax(teacher_logits)
    return (np.exp(teacher) * (teacher - student)).sum(axis=1)


def wilson_interval(successes, trials) -> tuple[np.ndarray, np.ndarray]:
    """Returns 95 % confidence intervals of proportions.

    Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the
    American Statistical Association 22 (1927).

    Args:
        successes: integers of any shape.
        trials: integers of the same shape; the interval is NaN where they are 0.

    Returns:
        The lower and the upper bounds, float64 of the same shape.
    """
    z = statistics.NormalDist().inv_cdf(0.5 + CONFIDENCE_LEVEL / 2)
    n = np.where(np.asarray(trials) > 0, np.float64(trials), math.nan)
    p = np.asarray(successes) / n
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return np.maximum(center - half, 0), np.minimum(center + half, 1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the log-probabilities of logits (N, C), float64 (N, C)."""
    return scipy.special.log_softmax(np.float64(logits), axis=1)


def _checked(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Checks logits (N, C) and labels (N,) and returns them as arrays, the logits in float64."""
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not logits.size:
        raise InputError(
            f"logits have shape {logits.shape} and labels {labels.shape}, but must be (N, C) and "
            "(N,), with one sample or more"
        )
    if not np.isfinite(logits).all():
        raise InputError("logits have NaN or infinite values, but must be finite: did it diverge?")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise InputError(
            f"labels are {labels.dtype} from {labels.min()} to {labels.max()}, but must be "
            f"integers from 0 to {logits.shape[1] - 1}"
        )
    return logits, labels
