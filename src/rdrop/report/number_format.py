"""How numbers are written: digits, signs, intervals and p-values, for the page and its charts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from rdrop.toolkit.summary import Interval, Metric, Summary

MINUS = "\N{MINUS SIGN}"
MISSING = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"


def number(value: float | None, decimals: int, *, sign: bool = False) -> str:
    """A number with a fixed count of decimals and a real minus sign.

    Args:
        value: The number; None is shown as a dash.
        decimals: Digits after the point.
        sign: Also write the plus of a positive number.

    Returns:
        The text; a value that rounds to zero carries no sign.

    >>> number(-0.034, 3), number(0.47, 2, sign=True), number(-0.001, 2, sign=True), number(None, 2)
    ('−0.034', '+0.47', '0.00', '–')
    """
    if value is None:
        return MISSING
    if math.isnan(value):
        return "not a number"
    prefix = MINUS if value < 0 else "+" if sign else ""
    if math.isinf(value):
        return f"{prefix}infinite"
    text = f"{abs(value):.{decimals}f}"
    return text if float(text) == 0 else prefix + text


def tick(value: float) -> str:
    """A number on an axis, with as many digits as it needs.

    >>> tick(-0.5), tick(1500.0), tick(0.001), tick(20000.0)
    ('−0.5', '1500', '0.001', '20,000')
    """
    return (f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}").replace("-", MINUS)


def ratio(value: float) -> str:
    """A ratio to `plain`.

    >>> ratio(1.9312), ratio(1.0)
    ('1.93×', '1.00×')
    """
    return number(value, 2) + TIMES


def p_value(p: float | None) -> str:
    """A p-value with two significant digits, and a bound where more would say nothing.

    >>> p_value(0.0304), p_value(0.28), p_value(0.00004), p_value(0.999), p_value(None)
    ('p = 0.03', 'p = 0.28', 'p < 0.001', 'p > 0.99', '')
    """
    if p is None or math.isnan(p):
        return ""
    if p < 0.001:
        return "p < 0.001"
    if p > 0.99:
        return "p > 0.99"
    return f"p = {p:.2g}"


def count(n: int, noun: str) -> str:
    """A count with its noun.

    >>> count(1, "seed"), count(1797, "prediction")
    ('1 seed', '1,797 predictions')
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def two_digits(sizes: Iterable[float]) -> int:
    """Decimals, 1 to 6, with which the median of some sizes shows two significant digits.

    >>> two_digits([0.35, 0.30, 1.2]), two_digits([0.012]), two_digits([7.0])
    (2, 3, 1)
    """
    positive = [abs(size) for size in sizes if math.isfinite(size) and size]
    return min(6, max(1, 1 - math.floor(math.log10(median(positive)) + 1e-9))) if positive else 2


def plain_decimals(values: Iterable[float], halves: Sequence[float]) -> int:
    """Decimals of a quantity that is no fraction: as many as its intervals need and its size lets one read.

    Args:
        values: Its values.
        halves: Half the widths of its intervals; empty where there are none.

    Returns:
        2 from 10 on (BLEU, perplexity), 2 to 4 from 1 on, 3 to 6 below (likelihood, correlation).

    >>> plain_decimals([34.6, 37.2], [0.03]), plain_decimals([0.13], [0.006]), plain_decimals([0.88], [0.12])
    (2, 4, 3)
    """
    sizes = [abs(value) for value in values if math.isfinite(value)]
    typical = median(sizes) if sizes else 0.0
    needed = two_digits(halves or [size / 100 for size in sizes])
    if typical >= 10:
        return 2
    return min(4, max(2, needed)) if typical >= 1 else max(3, needed)


@dataclass(frozen=True)
class MetricFormat:
    """How the values of one metric are written: one scale and one count of decimals for all arms.

    Examples:
        >>> accuracy = MetricFormat(label="Accuracy", factor=100.0, decimals=2)
        >>> accuracy.value(0.965)
        '96.50'
        >>> accuracy.interval(Interval(mean=0.0047, low=0.0012, high=0.0082), sign=True)
        '+0.47 [0.12, 0.82]'
        >>> accuracy.heading, accuracy.unit
        ('Accuracy (%)', ' points')
    """

    label: str
    factor: float
    decimals: int

    @property
    def heading(self) -> str:
        """Label with the percent sign of a fraction that is shown times 100."""
        return f"{self.label} (%)" if self.percent_sign and "%" not in self.label else self.label

    @property
    def percent_sign(self) -> str:
        """What follows a value outside the table: the percent sign of a fraction, or nothing."""
        return "%" if self.factor == 100 else ""

    @property
    def unit(self) -> str:
        """What follows a difference: percentage points, or nothing."""
        return " points" if self.factor == 100 else ""

    def value(self, x: float | None, *, sign: bool = False) -> str:
        """One value in the scale of the page."""
        return number(None if x is None else self.factor * x, self.decimals, sign=sign)

    def span(self, interval: Interval) -> str:
        """The two ends in brackets; nothing where there is no interval."""
        if interval.low is None or interval.high is None:
            return ""
        return f"[{self.value(interval.low)}, {self.value(interval.high)}]"

    def interval(self, interval: Interval, *, sign: bool = False) -> str:
        """The mean, followed by its interval where there is one."""
        return f"{self.value(interval.mean, sign=sign)} {self.span(interval)}".rstrip()


def metric_format(summary: Summary, metric: Metric) -> MetricFormat:
    """Choose the decimals of a metric from the width of its intervals, or from its size where there are none.

    Args:
        summary: Where the intervals of all arms are taken from.
        metric: One of `summary.metrics`.

    Returns:
        The format in which every value of this metric is shown.
    """
    factor = 100.0 if metric.percent else 1.0
    means = [arm.metrics[metric.name] for arm in summary.arms if metric.name in arm.metrics]
    differences = [arm.differences[metric.name] for arm in summary.arms if metric.name in arm.differences]
    values = [factor * each.mean for each in means]
    halves: list[float] = []
    for intervals in (means, differences):  # differences are paired, so theirs are narrower and decide where they exist
        found = [factor * (i.high - i.low) / 2 for i in intervals if i.low is not None and i.high is not None]
        halves = found if any(found) else halves
    if metric.percent:
        return MetricFormat(metric.label, factor, two_digits(halves or [value / 100 for value in values]))
    return MetricFormat(metric.label, factor, plain_decimals(values, halves))
