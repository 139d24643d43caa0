"""The numbers of a report, as NumPy arrays give them; fractions, not percent."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from stkd_keras.evaluation.scores import (
    divergences,
    fidelity,
    log_softmax,
    reliability,
    score,
    wilson_interval,
)

# Larger matrices are pictures only: 200 classes would be megabytes of digits for each model.
MOST_CLASSES_IN_MATRICES = 100


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns how many images of each class (rows) are given each class (columns), int (C, C)."""
    pairs = np.asarray(labels, np.int64) * num_classes + predicted
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_similarity(logits: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    """Returns the mean of the soft outputs on the images of each class.

    Row c, column k: how much of class k a model sees, on average, in images of class c.

    Args:
        logits: float array (N, C).
        labels: integer array (N,).
        temperature: of the softmax.

    Returns:
        float64 (C, C), NaN in the rows of classes without images.
    """
    soft = np.exp(log_softmax(np.asarray(logits, np.float64) / temperature))
    sums = np.stack([np.bincount(labels, column, soft.shape[1]) for column in soft.T], axis=1)
    counts = np.bincount(labels, minlength=soft.shape[1])[:, None]
    return sums / np.where(counts > 0, counts, math.nan)


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """Returns the entries (C * (C - 1),) of a matrix (C, C) but for its diagonal."""
    return matrix[~np.eye(len(matrix), dtype=bool)]


def similarity_correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Returns Pearson's correlation of the entries off the diagonals of two matrices (C, C).

    Rows of NaN are left out. None where fewer than three entries are left, or all are alike.
    """
    x, y = off_diagonal(one), off_diagonal(other)
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    if len(x) < 3 or not (np.ptp(x) > 0 and np.ptp(y) > 0):
        return None
    return float(np.corrcoef(x, y)[0, 1])


def model_numbers(logits: np.ndarray, labels: np.ndarray, temperature: float) -> dict[str, Any]:
    """Returns what a report says of one model on the test split.

    Args:
        logits: float array (N, C).
        labels: integer array (N,).
        temperature: of the similarities.

    Returns:
        What `stkd_keras.evaluation.score` returns, and "correct" (images), "accuracy_interval",
        "reliability", "per_class", and as arrays "confusion" and "similarity".
    """
    num_classes = logits.shape[1]
    predicted = logits.argmax(axis=1)
    confusion = confusion_matrix(labels, predicted, num_classes)
    correct, images = np.diag(confusion), confusion.sum(axis=1)
    lower, upper = wilson_interval(correct, images)
    bins = reliability(logits, labels)
    edges = np.linspace(0, 1, len(bins["images"]) + 1)
    return {
        **score(logits, labels),
        "correct": int(correct.sum()),
        "accuracy_interval": _interval(correct.sum(), len(labels)),
        "reliability": [
            {
                "lower": edges[b],
                "upper": edges[b + 1],
                "images": bins["images"][b],
                "accuracy": bins["accuracy"][b],
                "confidence": bins["confidence"][b],
            }
            for b in range(len(edges) - 1)
        ],
        "per_class": [
            {
                "images": images[c],
                "accuracy": correct[c] / images[c] if images[c] else math.nan,
                "interval": [lower[c], upper[c]],
            }
            for c in range(num_classes)
        ],
        "confusion": confusion,
        "similarity": class_similarity(logits, labels, temperature),
    }


def fidelity_numbers(student_logits: np.ndarray, teacher_logits: np.ndarray) -> dict[str, Any]:
    """Returns "agreement", its 95 % interval "agreement_interval", "kl" and "images"."""
    result = fidelity(student_logits, teacher_logits)
    count = len(student_logits)
    agreed = round(result["agreement"] * count)
    return {**result, "agreement_interval": _interval(agreed, count), "images": count}


def most_different(
    student_logits: np.ndarray, teacher_logits: np.ndarray, count: int
) -> list[dict[str, Any]]:
    """Returns the "image" (its index) and the "kl" of where the two differ most, most first."""
    divergence = divergences(student_logits, teacher_logits)
    order = np.argsort(-divergence, kind="stable")[:count]
    return [{"image": index, "kl": divergence[index]} for index in order]


def largest_entries(matrix: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Returns the (row, column) of a matrix's largest entries off the diagonal, above 0."""
    values = np.where(np.eye(len(matrix), dtype=bool), 0, np.nan_to_num(matrix))
    order = np.argsort(-values, axis=None, kind="stable")[:count]
    places = [divmod(int(place), len(matrix)) for place in order]
    return [place for place in places if values[place] > 0]


def as_json(content: Any) -> Any:
    """Returns numbers as JSON has them: NaN becomes None, arrays lists (large ones None)."""
    if isinstance(content, dict):
        return {key: as_json(value) for key, value in content.items()}
    if isinstance(content, np.ndarray):
        return None if len(content) > MOST_CLASSES_IN_MATRICES else as_json(content.tolist())
    if isinstance(content, Sequence) and not isinstance(content, str):
        return [as_json(value) for value in content]
    if isinstance(content, np.integer):
        return int(content)
    if isinstance(content, float):  # NumPy's are, too.
        return round(float(content), 9) if math.isfinite(content) else None
    return content


def _interval(successes, trials) -> list[float]:
    return [float(end) for end in wilson_interval(successes, trials)]
