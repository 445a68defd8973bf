"""What is measured on the test split: accuracy, likelihood and calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from rdrop.toolkit.summary import Metric, ReliabilityBin

BINS = 15

CLASSIFICATION_METRICS = (
    Metric(
        name="accuracy",
        label="Accuracy",
        higher_is_better=True,
        percent=True,
        explanation="Test images whose most probable class is the right one.",
    ),
    Metric(
        name="nll",
        label="NLL",
        higher_is_better=False,
        percent=False,
        explanation="Negative log-likelihood: the mean of -log of the probability given to the right class, in nats.",
    ),
    Metric(
        name="ece",
        label="Calibration error",
        higher_is_better=False,
        percent=True,
        explanation=f"Mean distance between confidence and accuracy over {BINS} equal-width bins of confidence.",
    ),
    Metric(
        name="consistency_kl",
        label="Consistency gap",
        higher_is_better=False,
        percent=False,
        explanation="KL divergence, in nats, from the average of many dropout-on predictions to the dropout-off one.",
    ),
    Metric(
        name="agreement",
        label="Agreement",
        higher_is_better=True,
        percent=True,
        explanation="Test images on which the average of many dropout-on predictions names the same class as "
        "the dropout-off prediction.",
    ),
    Metric(
        name="accuracy_averaged",
        label="Accuracy, averaged",
        higher_is_better=True,
        percent=True,
        explanation="Accuracy of the average of many dropout-on predictions.",
    ),
    Metric(
        name="nll_averaged",
        label="NLL, averaged",
        higher_is_better=False,
        percent=False,
        explanation="Negative log-likelihood of the average of many dropout-on predictions, in nats.",
    ),
)


def classification_metrics(logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> dict[str, float]:
    """Accuracy, negative log-likelihood (nats) and expected calibration error of `(N, C)` logits.

    Args:
        logits: Unnormalised log-probabilities `(N, C)`.
        labels: Class ids `(N,)`.

    Returns:
        `accuracy`, `nll` and `ece`.

    >>> scores = classification_metrics(np.log([[0.8, 0.2], [0.6, 0.4]]), np.array([0, 1]))
    >>> {name: round(value, 3) for name, value in scores.items()}
    {'accuracy': 0.5, 'nll': 0.57, 'ece': 0.4}
    """
    log_probabilities = log_softmax(logits.astype(np.float64), axis=-1)
    bins = reliability(logits, labels)
    # Guo et al. 2017, eq. 3: sum over bins of (count / N) * |accuracy - confidence|
    gaps = [
        b.count * abs(b.accuracy - b.confidence) for b in bins if b.accuracy is not None and b.confidence is not None
    ]
    return {
        "accuracy": float((logits.argmax(axis=-1) == labels).mean()),
        "nll": float(-np.take_along_axis(log_probabilities, labels[:, None], axis=-1).mean()),
        "ece": sum(gaps) / len(labels),
    }


def reliability(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], bins: int = BINS
) -> list[ReliabilityBin]:
    """Predictions by confidence: `bins` bins of equal width, each open below and closed above, from 0 to 1.

    Args:
        logits: Unnormalised log-probabilities `(N, C)`.
        labels: Class ids `(N,)`.
        bins: How many bins.

    Returns:
        One record for each bin, the least confident first.

    >>> [b.count for b in reliability(np.log([[0.8, 0.2], [0.6, 0.4]]), np.array([0, 1]), bins=2)]
    [0, 2]
    """
    probabilities = np.exp(log_softmax(logits.astype(np.float64), axis=-1))
    confidence = probabilities.max(axis=-1)
    right = probabilities.argmax(axis=-1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return [_bin(confidence[bin_of == index], right[bin_of == index]) for index in range(bins)]


def _bin(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> ReliabilityBin:
    """One bin from the predictions that fall into it."""
    if not len(confidence):
        return ReliabilityBin(count=0, confidence=None, accuracy=None)
    return ReliabilityBin(count=len(confidence), confidence=float(confidence.mean()), accuracy=float(right.mean()))
