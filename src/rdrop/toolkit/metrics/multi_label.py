"""Any number of labels for each example, each decided on its own: F1, likelihood and exact matches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdrop.toolkit.metrics.pairs import require_pairs
from rdrop.toolkit.summary import Metric

MULTI_LABEL_METRICS = (
    Metric(
        name="micro_f1",
        label="Micro-F1",
        higher_is_better=True,
        percent=True,
        explanation="F1, the harmonic mean of precision and recall, over all decisions; a label is predicted if its "
        "probability is above 0.5.",
    ),
    Metric(
        name="nll",
        label="NLL",
        higher_is_better=False,
        percent=False,
        explanation="Negative log-likelihood: the mean over examples and labels of -log of the probability given to "
        "the right decision, in nats.",
    ),
    Metric(
        name="macro_f1",
        label="Macro-F1",
        higher_is_better=True,
        percent=True,
        explanation="F1 of each label that occurs in the split, averaged; a label is predicted if its probability is "
        "above 0.5.",
    ),
    Metric(
        name="subset_accuracy",
        label="Exact match",
        higher_is_better=True,
        percent=True,
        explanation="Examples with every one of their labels predicted, and no other.",
    ),
)


def multi_label_metrics(logits: NDArray[np.floating[Any]], labels: NDArray[Any]) -> dict[str, float]:
    """Scores of `(N, C)` logits of independent labels, those of `MULTI_LABEL_METRICS`.

    A label is predicted if its probability is above 0.5, so if its logit is above 0. Macro-F1 averages over the labels
    that some reference carries, so the average is over the same labels for every model that is tested on a split;
    where no reference carries any, both F1 are 0.

    Args:
        logits: Log-odds `(N, C)`.
        labels: 0 or 1, `(N, C)`.

    Returns:
        `micro_f1`, `nll` (nats, binary cross-entropy per label), `macro_f1` and `subset_accuracy`.

    Raises:
        UserError: If there are no examples.
        ValueError: If logits and labels do not belong together.

    >>> scores = multi_label_metrics(np.array([[2.0, -2.0], [-2.0, -2.0]]), np.array([[1, 0], [0, 1]]))
    >>> {name: round(value, 3) for name, value in scores.items()}
    {'micro_f1': 0.667, 'nll': 0.627, 'macro_f1': 0.5, 'subset_accuracy': 0.5}
    """
    if logits.ndim != 2 or labels.shape[1:] != logits.shape[1:]:
        raise ValueError(f"got logits {logits.shape} and labels {labels.shape}; expected (N, C) for both")
    require_pairs(logits, labels, "examples")
    right = labels == 1
    if not (right | (labels == 0)).all():
        raise ValueError(f"got a label {labels[~(right | (labels == 0))][0]}; expected 0 or 1")
    predicted = logits > 0
    hits, claims, present = (np.count_nonzero(of, axis=0) for of in (predicted & right, predicted, right))
    occurring = present > 0
    # F1 = 2 TP / (2 TP + FP + FN), which is 2 TP / (predicted + present)
    of_label = 2 * hits[occurring] / (claims + present)[occurring]
    return {
        "micro_f1": float(2 * hits.sum() / max(1, claims.sum() + present.sum())),
        "nll": float(np.logaddexp(0.0, np.where(right, -logits, logits).astype(np.float64)).mean()),
        "macro_f1": float(of_label.mean()) if occurring.any() else 0.0,
        "subset_accuracy": float((predicted == right).all(axis=1).mean()),
    }
