"""One class for each example: accuracy, likelihood, calibration, and what weighs the classes equally."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.metrics import confusion_matrix, f1_score, matthews_corrcoef

from rdrop.toolkit.metrics.pairs import require_pairs
from rdrop.toolkit.summary import Confusion, Metric, ReliabilityBin

BINS = 15

CLASSIFICATION_METRICS = (
    Metric(
        name="accuracy",
        label="Accuracy",
        higher_is_better=True,
        percent=True,
        explanation="Examples whose most probable class is the right one.",
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
        name="macro_f1",
        label="Macro-F1",
        higher_is_better=True,
        percent=True,
        explanation="F1, the harmonic mean of precision and recall, of each class that occurs in the split, averaged.",
    ),
    Metric(
        name="matthews",
        label="Matthews correlation",
        higher_is_better=True,
        percent=False,
        explanation="Correlation of predicted and right classes, from -1 to 1; 0 is as good as answering one class "
        "always.",
    ),
)

TWO_CLASS_METRICS = (
    *CLASSIFICATION_METRICS,
    Metric(
        name="f1",
        label="F1",
        higher_is_better=True,
        percent=True,
        explanation="Harmonic mean of precision and recall in finding the second class.",
    ),
)


def classification_metrics(logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> dict[str, float]:
    """Scores of `(N, C)` logits: those of `CLASSIFICATION_METRICS`, for two classes of `TWO_CLASS_METRICS`.

    Macro-F1 averages over the classes that occur among the labels, so the average is over the same classes for every
    model that is tested on a split. `matthews` is 0 where labels or predictions are all of one class, and `f1` is 0
    where class 1 is neither there nor predicted, as scikit-learn has it.

    Args:
        logits: Unnormalised log-probabilities `(N, C)`.
        labels: Class ids `(N,)` in 0..C-1.

    Returns:
        `accuracy`, `nll` (nats), `ece`, `macro_f1` and `matthews` (-1..1), for C = 2 also `f1` of class 1.

    Raises:
        UserError: If there are no examples.
        ValueError: If logits and labels do not belong together.

    >>> scores = classification_metrics(np.log([[0.8, 0.2], [0.6, 0.4]]), np.array([0, 1]))
    >>> {name: round(value, 3) for name, value in scores.items()}
    {'accuracy': 0.5, 'nll': 0.57, 'ece': 0.4, 'macro_f1': 0.333, 'matthews': 0.0, 'f1': 0.0}
    """
    _require_classes(logits, labels)
    predicted = logits.argmax(axis=-1)
    log_probabilities = log_softmax(logits.astype(np.float64), axis=-1)
    bins = reliability(logits, labels)
    # Guo et al. 2017, eq. 3: sum over bins of (count / N) * |accuracy - confidence|
    gaps = [
        b.count * abs(b.accuracy - b.confidence) for b in bins if b.accuracy is not None and b.confidence is not None
    ]
    scores = {
        "accuracy": float((predicted == labels).mean()),
        "nll": float(-np.take_along_axis(log_probabilities, labels[:, None], axis=-1).mean()),
        "ece": sum(gaps) / len(labels),
        "macro_f1": float(f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0)),
        "matthews": _matthews(labels, predicted),
    }
    if logits.shape[1] == 2:
        scores["f1"] = float(f1_score(labels, predicted, zero_division=0))
    return scores


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


def confusion(logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], names: Sequence[str]) -> Confusion:
    """How often each class was taken for each other.

    Args:
        logits: Unnormalised log-probabilities `(N, C)`.
        labels: Class ids `(N,)` in 0..C-1.
        names: Names of the C classes.

    Returns:
        The counts, with a row for each true class and a column for each predicted one, also for those that do not
        occur.

    Raises:
        UserError: If there are no examples.
        ValueError: If logits, labels and names do not belong together.

    >>> confusion(np.log([[0.8, 0.2], [0.6, 0.4]]), np.array([0, 1]), names=["sprout", "rosette"]).counts
    [[1, 0], [1, 0]]
    """
    _require_classes(logits, labels)
    if len(names) != logits.shape[1]:
        raise ValueError(f"got {len(names)} names for logits of {logits.shape[1]} classes; expected one for each")
    counts = confusion_matrix(labels, logits.argmax(axis=-1), labels=np.arange(len(names)))
    return Confusion(title="Which class was taken for which", labels=list(names), counts=counts.tolist())


def _bin(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> ReliabilityBin:
    """One bin from the predictions that fall into it."""
    if not len(confidence):
        return ReliabilityBin(count=0, confidence=None, accuracy=None)
    return ReliabilityBin(count=len(confidence), confidence=float(confidence.mean()), accuracy=float(right.mean()))


def _matthews(labels: NDArray[np.integer[Any]], predicted: NDArray[np.integer[Any]]) -> float:
    """The correlation; scikit-learn, too, has 0 where it is not defined, but warns of some such cases."""
    constant = (labels == labels[0]).all() or (predicted == predicted[0]).all()
    return 0.0 if constant else float(matthews_corrcoef(labels, predicted))


def _require_classes(logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> None:
    """Refuse labels that would be taken for other classes, such as -100, or broadcast."""
    if logits.ndim != 2 or labels.ndim != 1:
        raise ValueError(f"got logits {logits.shape} and labels {labels.shape}; expected (N, C) and (N,)")
    require_pairs(logits, labels, "examples")
    outside = labels[(labels < 0) | (labels >= logits.shape[1])]
    if len(outside):
        raise ValueError(f"got the label {outside[0]}; expected class ids in 0..{logits.shape[1] - 1}")
