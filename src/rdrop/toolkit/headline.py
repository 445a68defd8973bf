"""The answer of a comparison in two sentences, which claim no more than the numbers bear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from rdrop.toolkit.summary import Difference, Metric

Finding = tuple[Metric, Difference]
Verdict = Literal["better", "worse", "unshown"]

NO_ANSWER = "No seed finished both with plain training and with R-Drop, so there is no answer."


def headline(against_plain: Sequence[Finding], against_longer: Sequence[Finding], step_compute: float | None) -> str:
    """Whether R-Drop was better than plain training, and at what cost.

    A difference counts as shown if its 95% interval, paired by seed, excludes 0.

    Args:
        against_plain: Metrics with R-Drop minus plain training; empty if no seed finished both.
        against_longer: The same against plain training of equal compute; empty if that was not run.
        step_compute: Operations of a step of R-Drop as a ratio to a plain one; None if it never ran.

    Returns:
        One or two sentences.
    """
    if not against_plain or step_compute is None:
        return NO_ANSWER
    cost = f"at {step_compute:.2f} times the operations of a plain step"
    seeds = len(against_plain[0][1].per_seed)
    if seeds < 2:
        numbers = " and ".join(_number(*finding) for finding in against_plain)
        return f"With a single seed chance cannot be told from an effect: {numbers} against plain training, {cost}."
    lead = f"Over {seeds} seeds, {_claim(against_plain, 'plain training')}, {cost}."
    if not against_longer:
        return lead
    return f"{lead} With equal computation, {_claim(against_longer, 'longer plain training')}."


def with_intervals(findings: Sequence[Finding]) -> str:
    """Differences with their intervals and p-values, for the notes.

    >>> from rdrop.toolkit.metrics import CLASSIFICATION_METRICS
    >>> from rdrop.toolkit.statistics import paired_difference
    >>> difference = paired_difference({0: 0.91, 1: 0.93, 2: 0.92}, {0: 0.90, 1: 0.91, 2: 0.91})
    >>> with_intervals([(CLASSIFICATION_METRICS[0], difference)])
    'Accuracy +1.33 points (95% interval −0.10 to +2.77, p = 0.057)'
    """
    texts = []
    for metric, difference in findings:
        text = _number(metric, difference)
        if difference.low is not None and difference.high is not None:
            low, high = (_signed(metric, end, difference) for end in (difference.low, difference.high))
            text += f" (95% interval {low} to {high}"
            text += ")" if difference.p_value is None else f", p = {difference.p_value:.2g})"
        texts.append(text)
    return ", ".join(texts)


def _claim(findings: Sequence[Finding], opponent: str) -> str:
    """What was shown against one opponent, with the mean differences."""
    named: dict[Verdict, list[str]] = {"better": [], "worse": [], "unshown": []}
    for metric, difference in findings:
        named[_verdict(metric, difference)].append(_number(metric, difference, brackets=True))
    shown: tuple[Verdict, ...] = ("better", "worse")
    clauses = [f"{verdict} in {' and '.join(named[verdict])}" for verdict in shown if named[verdict]]
    unshown = f"no difference could be shown in {' or '.join(named['unshown'])}"
    if not clauses:
        return f"{unshown} against {opponent}"
    claim = f"R-Drop was {' and '.join(clauses)} than {opponent}"
    return f"{claim}, and {unshown}" if named["unshown"] else claim


def _verdict(metric: Metric, difference: Difference) -> Verdict:
    """Which side of 0 the whole interval lies on; differences that are all the same have none to go by."""
    if difference.p_value is None or difference.low is None or difference.high is None:
        return "unshown"
    if difference.low <= 0 <= difference.high:
        return "unshown"
    return "better" if (difference.mean > 0) == metric.higher_is_better else "worse"


def _number(metric: Metric, difference: Difference, *, brackets: bool = False) -> str:
    """A mean difference with its name and unit."""
    value = f"{_signed(metric, difference.mean, difference)}{' points' if metric.percent else ''}"
    return f"{metric.label} ({value})" if brackets else f"{metric.label} {value}"


def _signed(metric: Metric, value: float, difference: Difference) -> str:
    """A signed value in the unit of the metric, to two digits of the interval's half width, with a real minus sign."""
    decimals = 2 if metric.percent or abs(difference.mean) >= 1 else 4
    if not metric.percent and difference.low is not None and difference.high is not None:
        half = (difference.high - difference.low) / 2
        decimals = min(4, max(2, 1 - math.floor(math.log10(half)))) if 0 < half < math.inf else decimals
    text = f"{100 * value if metric.percent else value:+.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}")
