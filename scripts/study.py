"""The page on cheaper forms of R-Drop, written from the records in `evidence/estimators/` and nothing else.

    python scripts/study.py                      writes the page
    python scripts/study.py --keep FOLDER NAME   first takes over the summary of a comparison, without its curves

`mkdocs build` calls this file as a hook, which adds the full reports to the site.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence_page import REPORTS, failures, frame, origin, table
from rdrop.report.number_format import MISSING, metric_format, p_value, ratio
from rdrop.report.page import render_report
from rdrop.toolkit.compare import SUMMARY_FILE, read_summary
from rdrop.toolkit.runs import write_atomically
from rdrop.toolkit.summary import Arm, Metric, Summary

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "evidence" / "estimators"
PAGE = ROOT / "docs" / "cheaper.md"
TABLES = "TABLES\n"
SURE = 0.05  # a gain of the full form with a larger p-value is none to have a share of


@dataclass(frozen=True)
class Part:
    """The comparison on one set of data."""

    name: str
    summary: Summary

    @property
    def likelihood(self) -> Metric:
        """The metric in which forms are told apart best."""
        return next(metric for metric in self.summary.metrics if metric.name == "nll")

    @property
    def report(self) -> str:
        """Where the report is on the site."""
        return f"{REPORTS}/cheaper-{self.name}.html"


def parts() -> list[Part]:
    """All of them, by name."""
    folders = sorted(path.parent for path in STUDY.glob(f"*/answer/{SUMMARY_FILE}"))
    return [Part(folder.parent.name, read_summary(folder)) for folder in folders]


def keep(source: Path, name: str) -> None:
    """Take over the summary of a comparison, without curves, pictures and texts."""
    summary = read_summary(source)
    bare: dict[str, Any] = {"curves": {}, "reliability": [], "exhibits": []}
    runs = [run.model_copy(update=bare) for run in summary.runs]
    # One that was interrupted tells its own folder.
    command = f"rdrop compare {(STUDY / name / 'recipe.yaml').relative_to(ROOT)}"
    environment = summary.environment.model_copy(update={"command": command})
    target = STUDY / name / "answer" / SUMMARY_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        target, summary.model_copy(update={"runs": runs, "environment": environment}).model_dump_json(indent=1) + "\n"
    )


def page() -> str:
    """The page in Markdown."""
    text = (STUDY / "README.md").read_text(encoding="utf-8")
    return text.replace(TABLES, "\n".join(line for part in parts() for line in _section(part)))


def _section(part: Part) -> Iterator[str]:
    summary, main = part.summary, part.summary.metrics[0]
    yield f"### {summary.title} {{ #{part.name} }}"
    yield ""
    yield f"{summary.data} {len(summary.arms[0].seeds)} seeds."
    yield ""
    # Not by a fragment in the address, to which the browser would move the page around the frame as well.
    scroll = "this.contentWindow.scrollTo(0, this.contentDocument.getElementById('cost').offsetTop)"
    yield frame(part.report, f"{summary.title}: gain against cost", 34, scroll)
    yield ""
    heads = [f"{metric_format(summary, metric).heading} − `plain`" for metric in (part.likelihood, main)]
    yield from table(
        ["arm", "alpha", "operations of a run", "time of a step", heads[0], "share of the gain", heads[1]],
        [_row(part, arm, main) for arm in sorted(summary.arms[1:], key=lambda arm: arm.total_compute)],
    )
    yield failures(summary)
    yield ""
    yield from origin(summary, part.report)


def _row(part: Part, arm: Arm, main: Metric) -> list[str]:
    time = part.summary.timing.step_ratio.get(arm.name)
    return [
        f"`{arm.name}`",
        f"{arm.alpha:g}" if arm.passes > 1 else "",
        ratio(arm.total_compute),
        MISSING if time is None else ratio(time.mean),
        _difference(part, arm, part.likelihood),
        _share(part, arm),
        _difference(part, arm, main),
    ]


def _difference(part: Part, arm: Arm, metric: Metric) -> str:
    """A difference to plain training."""
    found = arm.differences.get(metric.name)
    if found is None:
        return MISSING
    shown = metric_format(part.summary, metric)
    return f"{shown.interval(found, sign=True)} {p_value(found.p_value)}".rstrip()


def _share(part: Part, arm: Arm) -> str:
    """The gain in likelihood as a share of that of the full form; nothing where that has none."""
    name = part.likelihood.name
    full = next(each for each in part.summary.arms if each.name == "rdrop").differences[name]
    found = arm.differences.get(name)
    if arm.name == "rdrop" or found is None or full.mean >= 0 or (full.p_value or 1.0) > SURE:
        return MISSING
    return f"{100 * found.mean / full.mean:.0f}%".replace("-", "\N{MINUS SIGN}")


def on_files(files: Any, config: Any) -> Any:
    """Adds the reports to the site; called by mkdocs."""
    from mkdocs.structure.files import File

    for part in parts():
        files.append(File.generated(config, part.report, content=render_report(part.summary)))
    return files


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--keep", folder, name]:
            keep(Path(folder), name)
        case []:
            pass
        case _:
            sys.exit(__doc__)
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
