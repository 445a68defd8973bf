"""The answer of a comparison in two sentences, which claim no more than the numbers bear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rdrop.toolkit.summary import Difference, Metric

Finding = tuple[Metric, Difference]
Verdict = Literal["better", "worse", "unshown"]

NO_ANSWER = "No seed finished both with plain training and with R-Drop, so there is no answer."


def headline(against_plain: Sequence[Finding], against_longer: Sequence[Finding], step_compute: float | None) -> str:
    """Whether R-Drop was better than plain training, how surely, and at what cost.

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
    cost = f"A step of R-Drop took {step_compute:.2f} times the computation of a plain one"
    if not against_longer:
        return f"{_sentence('plain training', against_plain)} {cost}."
    opponent = _sentence("plain training of the same total computation", against_longer)
    return f"{_sentence('plain training', against_plain)} {cost}. {opponent}"


def _sentence(opponent: str, findings: Sequence[Finding]) -> str:
    """What was shown against one opponent, with the numbers behind it."""
    seeds = len(findings[0][1].per_seed)
    numbers = ", ".join(_number(metric, difference) for metric, difference in findings)
    if seeds < 2:
        return f"With a single seed, chance cannot be told from an effect; R-Drop minus {opponent}: {numbers}."
    by_verdict: dict[Verdict, list[str]] = {"better": [], "worse": [], "unshown": []}
    for metric, difference in findings:
        by_verdict[_verdict(metric, difference)].append(metric.label)
    clauses = [
        f"{verdict} than {opponent} in {' and '.join(by_verdict[verdict])}"
        for verdict in ("better", "worse")
        if by_verdict[verdict]
    ]
    unshown = " or ".join(by_verdict["unshown"])
    if not clauses:
        return f"With {seeds} seeds, no difference to {opponent} could be shown in {unshown}: {numbers}."
    rest = f"; no difference in {unshown} could be shown" if unshown else ""
    return f"Over {seeds} seeds, R-Drop was {' and '.join(clauses)}{rest}: {numbers}."


def _verdict(metric: Metric, difference: Difference) -> Verdict:
    """Which side of 0 the whole interval lies on; differences that are all the same have none to go by."""
    if difference.p_value is None or difference.low is None or difference.high is None:
        return "unshown"
    if difference.low <= 0 <= difference.high:
        return "unshown"
    return "better" if (difference.mean > 0) == metric.higher_is_better else "worse"


def _number(metric: Metric, difference: Difference) -> str:
    """A signed difference with its interval, in the unit of the metric."""
    scale, digits, unit = (100, 2, " points") if metric.percent else (1, 4, "")
    text = f"{metric.label} {scale * difference.mean:+.{digits}f}{unit}"
    if difference.low is None or difference.high is None:
        return text
    return f"{text} (95% interval {scale * difference.low:+.{digits}f} to {scale * difference.high:+.{digits}f})"
