"""How far dropout off is from the average of many dropout masks, for categorical answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rdrop.toolkit.summary import Metric

if TYPE_CHECKING:
    from rdrop.diagnostics import ConsistencyGap

CONSISTENCY_METRICS = (
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
        explanation="Predictions for which the average of many dropout-on ones names the same class as the "
        "dropout-off one.",
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


def consistency_metrics(gap: ConsistencyGap) -> dict[str, float]:
    """The measured gap under the names of `CONSISTENCY_METRICS`.

    Args:
        gap: What `rdrop.consistency_gap` returned.

    Returns:
        `consistency_kl`, `agreement`, `accuracy_averaged` and `nll_averaged`; the last two nan without labels.

    >>> from rdrop import ConsistencyGap
    >>> accuracy, nll = {"accuracy_off": 0.9, "accuracy_averaged": 0.91}, {"nll_off": 0.3, "nll_averaged": 0.29}
    >>> consistency_metrics(ConsistencyGap(kl=0.01, agreement=0.98, positions=50, **accuracy, **nll))
    {'consistency_kl': 0.01, 'agreement': 0.98, 'accuracy_averaged': 0.91, 'nll_averaged': 0.29}
    """
    return {
        "consistency_kl": gap.kl,
        "agreement": gap.agreement,
        "accuracy_averaged": gap.accuracy_averaged,
        "nll_averaged": gap.nll_averaged,
    }
