"""What the pages written from `evidence/` have in common: tables, failures, reports, and where they were run."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from rdrop.toolkit.summary import Summary

REPORTS = "reports"
PACKAGES = ["rdrop", "torch", "transformers", "timm"]


def table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    """The lines of a table, and an empty one."""
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"
    yield ""


def failures(summary: Summary) -> str:
    """A sentence on the runs that failed."""
    failed = [f"{arm.name}, seed {seed}: {error}" for arm in summary.arms for seed, error in arm.failed.items()]
    return f"Runs that failed: {'; '.join(failed) if failed else 'none'}."


def origin(summary: Summary, report: str, *further: str) -> Iterator[str]:
    """The commands that make the record again, and the machine and versions it was made with.

    Args:
        summary: The record.
        report: Address of its report.
        *further: Commands to be run before.
    """
    where = summary.environment
    yield from ("```bash", *further, where.command, "```", "")
    versions = ", ".join(f"{name} {where.versions[name]}" for name in PACKAGES if name in where.versions)
    yield f"{where.machine}; {versions}; {where.created[:10]}. [Full report]({report})"
    yield ""


def frame(report: str, title: str, height: int, onload: str = "") -> str:
    """A report inside a page."""
    loaded = f'onload="{onload}" ' if onload else ""
    return (
        f'<iframe src="{report}" title="{escape(title)}" loading="lazy" {loaded}'
        f'style="width: 100%; height: {height}rem; border: 1px solid"></iframe>'
    )
