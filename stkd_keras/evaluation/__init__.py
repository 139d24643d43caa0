"""Scores and costs of classifiers."""

from stkd_keras.evaluation.scores import (
    CONFIDENCE_LEVEL,
    ECE_BINS,
    EVALUATION_BATCH,
    compiled,
    divergences,
    fidelity,
    fit_temperature,
    log_softmax,
    predict_logits,
    reliability,
    score,
    wilson_interval,
)

__all__ = [
    "CONFIDENCE_LEVEL", "ECE_BINS", "EVALUATION_BATCH", "compiled", "divergences", "fidelity",
    "fit_temperature", "log_softmax", "predict_logits", "reliability", "score", "wilson_interval",
]  # fmt: skip
