"""How good a classifier is, and how faithful to its teacher. Fractions, not percent."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

ECE_BINS = 15


def compiled(
    classifier: Callable[[tf.Tensor], tf.Tensor], image_shape: tuple[int, int, int]
) -> Callable[[tf.Tensor], tf.Tensor]:
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
    progress = keras.utils.Progbar(size if size > 0 else None, verbose=int(verbose))
    logits, labels = [], []
    for x, y in dataset:
        logits.append(classifier(x).numpy())
        labels.append(y.numpy())
        progress.add(1)
    return np.concatenate(logits), np.concatenate(labels)


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
    log_probabilities = _log_softmax(logits)
    correct = logits.argmax(axis=1) == labels
    result = {"accuracy": float(correct.mean())}
    if logits.shape[1] > 10:
        top5 = np.argpartition(-logits, 5, axis=1)[:, :5]
        result["top5_accuracy"] = float((top5 == labels[:, None]).any(axis=1).mean())
    result["nll"] = float(-log_probabilities[np.arange(len(labels)), labels].mean())
    result["ece"] = _expected_calibration_error(np.exp(log_probabilities.max(axis=1)), correct)
    return result


def fidelity(student_logits: np.ndarray, teacher_logits: np.ndarray) -> dict[str, float]:
    """Compares a student's answers with its teacher's.

    Args:
        student_logits: float array (N, C).
        teacher_logits: float array (N, C).

    Returns:
        "agreement", the share of samples on which both name the same class, and "kl", the mean
        of KL(teacher || student) at temperature 1, in nats.
    """
    student, teacher = _log_softmax(student_logits), _log_softmax(teacher_logits)
    agreement = student.argmax(axis=1) == teacher.argmax(axis=1)
    divergence = (np.exp(teacher) * (teacher - student)).sum(axis=1)
    return {"agreement": float(agreement.mean()), "kl": float(divergence.mean())}


def _log_softmax(logits):
    shifted = np.float64(logits) - np.max(logits, axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _expected_calibration_error(confidence, correct) -> float:
    # A bin holds (lower, upper]; a confidence is never 0.
    bins = np.ceil(confidence * ECE_BINS).astype(int)
    gaps = [
        (bins == b).mean() * abs(correct[bins == b].mean() - confidence[bins == b].mean())
        for b in np.unique(bins)
    ]
    return float(sum(gaps))
