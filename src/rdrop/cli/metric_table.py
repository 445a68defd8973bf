"""The metrics of one model as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from rdrop.report.number_format import number, plain_decimals

if TYPE_CHECKING:
    from rdrop.toolkit.summary import Metric


def metric_table(metrics: Sequence[Metric], values: Mapping[str, float], split: str) -> Table:
    """One row for each metric, with its direction."""
    table = Table()
    table.add_column(f"{split} split")
    table.add_column("", justify="right")
    table.add_column("", style="dim")
    for metric in metrics:
        if metric.name in values:
            better = "higher is better" if metric.higher_is_better else "lower is better"
            table.add_row(Text(metric.label), _text(metric, values[metric.name]), better)
    return table


def _text(metric: Metric, value: float) -> str:
    return f"{number(100 * value, 2)} %" if metric.percent else number(value, plain_decimals([value], []))
