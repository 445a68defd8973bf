"""The choice of the metric that a comparison is about."""

from __future__ import annotations

from collections.abc import Sequence

from rdrop.errors import UserError
from rdrop.toolkit.summary import Metric


def with_main_metric(metrics: Sequence[Metric], name: str) -> tuple[Metric, ...]:
    """The same metrics with a chosen one first.

    The second one keeps its place, since the likelihood belongs beside the main metric; where it is itself the
    chosen one, the former main metric takes its place.

    Args:
        metrics: Metrics in their usual order.
        name: Name of the one to put first.

    Returns:
        All metrics, the others in their order.

    Raises:
        UserError: If there is no metric of this name.

    >>> from rdrop.toolkit.metrics import CLASSIFICATION_METRICS
    >>> [metric.name for metric in with_main_metric(CLASSIFICATION_METRICS, "matthews")]
    ['matthews', 'nll', 'accuracy', 'ece', 'macro_f1']
    """
    chosen = next((metric for metric in metrics if metric.name == name), None)
    if chosen is None:
        known = ", ".join(metric.name for metric in metrics)
        raise UserError(f"the main metric is {name!r}; expected one of {known}")
    return tuple(dict.fromkeys((chosen, *metrics[1:2], *metrics)))
