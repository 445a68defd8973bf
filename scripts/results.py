"""The results page, written from the records in `evidence/` and nothing else: `python scripts/results.py`.

`mkdocs build` calls this file as a hook, which adds the full report of every comparison to the site.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence_page import REPORTS, failures, frame, origin, table
from rdrop.report.number_format import MISSING, MetricFormat, metric_format, p_value, ratio
from rdrop.report.page import render_report
from rdrop.toolkit.compare import SUMMARY_FILE, read_summary
from rdrop.toolkit.summary import Arm, Metric, Summary
from rdrop.toolkit.sweep import SWEEP_FILE, Sweep
from rdrop.toolkit.tasks import TASK_NAMES

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "evidence"
PAGE = ROOT / "docs" / "results.md"
METHOD = "## How it was done"
SHOWN = 2  # metrics with their differences; the reports have all of them


@dataclass(frozen=True)
class Result:
    """A comparison on one set of data, and the sweep that chose its settings."""

    name: str
    summary: Summary
    sweep: Sweep | None

    @property
    def formats(self) -> list[tuple[Metric, MetricFormat]]:
        """The leading metrics and how they are written."""
        return [(metric, metric_format(self.summary, metric)) for metric in self.summary.metrics[:SHOWN]]

    def arm(self, name: str) -> Arm | None:
        """An arm, if it was run."""
        return next((arm for arm in self.summary.arms if arm.name == name), None)


def results() -> list[Result]:
    """All of them, in the order of the task families."""
    found = []
    for folder in sorted(path.parent for path in EVIDENCE.glob(f"*/answer/{SUMMARY_FILE}")):
        sweep = folder.parent / "sweep" / SWEEP_FILE
        tried = Sweep.model_validate_json(sweep.read_text(encoding="utf-8")) if sweep.exists() else None
        found.append(Result(folder.parent.name, read_summary(folder), tried))
    return sorted(found, key=lambda result: list(TASK_NAMES).index(result.summary.task))


def page() -> str:
    """The page in Markdown."""
    found = results()
    intro = (ROOT / "evidence" / "README.md").read_text(encoding="utf-8")
    names = {result.name for result in found}
    lead, method = intro.split(METHOD)
    waiting = sorted(path.parent.name for path in EVIDENCE.glob("*/recipe.yaml") if path.parent.name not in names)
    left = f"Recipes that are there and have not been run for the record: {', '.join(waiting)}.\n" if waiting else ""
    sections = (line for result in found for line in _section(result))
    return "\n".join([lead.rstrip(), "", *_overview(found), left, METHOD + method, *sections])


def _overview(found: list[Result]) -> Iterator[str]:
    arms = ["plain", "twice", "rdrop", "longer"]
    rows = []
    for result in found:
        metric, form = result.formats[0]
        rdrop = result.arm("rdrop")
        means = [arm.metrics.get(metric.name) if (arm := result.arm(name)) else None for name in arms]
        difference = None if rdrop is None else rdrop.differences.get(metric.name)
        rows.append(
            [
                f"[{result.summary.title}](#{result.name})",
                f"{form.heading}, {'higher' if metric.higher_is_better else 'lower'} is better",
                *(MISSING if mean is None else form.value(mean.mean) for mean in means),
                MISSING if difference is None else form.interval(difference, sign=True),
                MISSING if rdrop is None else ratio(rdrop.total_compute),
            ]
        )
    yield "## At a glance"
    yield ""
    yield (
        "The main metric of each task, as a mean over the seeds; the difference of `rdrop` to `plain` with its 95% "
        "interval; and the operations of a run of `rdrop` as a ratio to one of `plain`. Where the interval holds 0, no "
        "difference was shown."
    )
    yield ""
    yield from table(["data", "metric", *(f"`{arm}`" for arm in arms), "`rdrop` − `plain`", "operations"], rows)


def _section(result: Result) -> Iterator[str]:
    summary = result.summary
    yield f"## {summary.title} {{ #{result.name} }}"
    yield ""
    yield summary.data
    yield ""
    yield f"**{summary.headline}**"
    yield ""
    head = ["arm", "alpha", "dropout", "seeds"]
    for _, form in result.formats:
        head += [form.heading, "− `plain`"]
    yield from table([*head, "operations"], [_row(result, arm) for arm in summary.arms])
    yield f"{failures(summary)} {_tried(result)}"
    yield ""
    before = [] if result.sweep is None else [result.sweep.environment.command]
    yield from origin(summary, f"{REPORTS}/{result.name}.html", *before)


def _row(result: Result, arm: Arm) -> list[str]:
    chosen = result.sweep.chosen.get(arm.name) if result.sweep is not None else None  # type: ignore[call-overload]
    model: Any = result.summary.recipe["model"]
    dropout = model["dropout"] if chosen is None or chosen.dropout is None else chosen.dropout
    cells = [f"`{arm.name}`", f"{arm.alpha:g}" if arm.name == "rdrop" else "", f"{dropout:g}", str(len(arm.seeds))]
    for metric, form in result.formats:
        mean, difference = arm.metrics.get(metric.name), arm.differences.get(metric.name)
        cells.append(MISSING if mean is None else form.interval(mean))
        told = "" if difference is None else f"{form.interval(difference, sign=True)} {p_value(difference.p_value)}"
        cells.append(told.rstrip())
    return [*cells, ratio(arm.total_compute)]


def _tried(result: Result) -> str:
    if result.sweep is None:
        return "Nothing was tuned: there is no validation split, and all values are those of the recipe."
    grid = result.sweep.grid
    alphas, rates, spread = (
        ", ".join(f"{value:g}" for value in values) for values in (grid.alphas, grid.dropouts, grid.spread_dropouts)
    )
    seeds = ", ".join(map(str, grid.seeds))
    return (
        f"Tried on the validation split, {grid.tries} settings for each arm, with seed {seeds}: for `rdrop` alpha "
        f"{alphas} with dropout {rates}; for the other arms dropout {spread}."
    )


def on_files(files: Any, config: Any) -> Any:
    """Adds the reports to the site; called by mkdocs."""
    from mkdocs.structure.files import File

    for result in results():
        content = render_report(result.summary)
        files.append(File.generated(config, f"{REPORTS}/{result.name}.html", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Puts the reports into the gallery; called by mkdocs."""
    del config, files
    if page.file.src_uri != "gallery.md":
        return markdown
    frames = []
    for result in results():
        title, report = result.summary.title, f"{REPORTS}/{result.name}.html"
        frames.append(f"## {title}\n\n[Open the page]({report})\n\n{frame(report, title, 32)}\n")
    return markdown.replace("GALLERY", "\n".join(frames))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
