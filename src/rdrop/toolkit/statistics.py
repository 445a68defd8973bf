"""Means and differences over seeds, with what can be said about their certainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from scipy import stats

from rdrop.toolkit.summary import Difference, Interval

CONFIDENCE: Final = 0.95


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95% interval: mean -+ t(n - 1) * s / sqrt(n), Student's t over n seeds.

    Args:
        values: One value for each seed, at least one.

    Returns:
        The interval; its ends are None with fewer than two values.

    >>> interval([1.0, 2.0, 3.0]).mean
    2.0
    >>> round(interval([1.0, 2.0, 3.0]).low, 3)
    -0.484
    """
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Interval(mean=mean, low=None, high=None)
    if _all_equal(values):
        return Interval(mean=mean, low=mean, high=mean)
    low, high = stats.ttest_1samp(values, popmean=0.0).confidence_interval(CONFIDENCE)
    return Interval(mean=mean, low=float(low), high=float(high))


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """An arm minus another, seed by seed, with its interval and the p-value of a two-sided paired t-test.

    Args:
        values: Seed to value of the arm.
        baseline: Seed to value of what it is set against.

    Returns:
        The difference over the seeds that both have, or None if they share none. The p-value is None with
        fewer than two such seeds, or if every difference is the same, where the t-test is not defined.

    >>> difference = paired_difference({0: 0.9, 1: 0.8, 2: 0.7}, {0: 0.8, 1: 0.8, 2: 0.6})
    >>> round(difference.mean, 3), round(difference.p_value, 3)
    (0.067, 0.184)
    """
    shared = [seed for seed in values if seed in baseline]
    if not shared:
        return None
    per_seed = {seed: values[seed] - baseline[seed] for seed in shared}
    differences = list(per_seed.values())
    spread = interval(differences)
    p_value = None
    if len(differences) >= 2 and not _all_equal(differences):
        p_value = float(stats.ttest_1samp(differences, popmean=0.0).pvalue)
    return Difference(mean=spread.mean, low=spread.low, high=spread.high, p_value=p_value, per_seed=per_seed)


def _all_equal(values: Sequence[float]) -> bool:
    """Whether there is no variation beyond rounding, where the t-test would divide by zero."""
    scale = max(abs(value) for value in values)
    return max(values) - min(values) <= 1e-12 * scale
