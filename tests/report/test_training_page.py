from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from chromium import NEEDS_CHROMIUM, Mode, assert_no_wider_than, chromium, opened_files
from rdrop.report.training_page import render_training_report, run_names, write_training_report
from rdrop.toolkit.single_run import TrainingRecord
from rdrop.toolkit.summary import Curve, Summary

Open = Callable[..., Page]


def record_of(summary: Summary, arm: str, seed: int = 0, **changes: Any) -> TrainingRecord:
    """A run of a comparison as one that stands alone; `changes` are fields of its record."""
    position = [each.name for each in summary.arms].index(arm)
    record = TrainingRecord(
        title=summary.title,
        task=summary.task,
        data=summary.data,
        recipe=summary.recipe,
        split="test",
        metrics=summary.metrics,
        run=next(run for run in summary.runs if (run.arm, run.seed) == (arm, seed)),
        passes=summary.arms[position].passes,
        alpha=summary.arms[position].alpha,
        step_compute=summary.arms[position].step_compute,
        notes=[],
        seconds=61.5,
        environment=summary.environment.model_copy(update={"command": f"rdrop train digits --arm {arm}"}),
    )
    return record.model_copy(update=changes)


@pytest.fixture(scope="module")
def one(summary: Summary) -> TrainingRecord:
    record = record_of(summary, "rdrop")
    agreement = Curve(steps=[100, 300, 600], values=[0.5, 0.75, 0.96875])
    curves = {**record.run.curves, "agreement": agreement}
    return record.model_copy(update={"run": record.run.model_copy(update={"curves": curves})})


@pytest.fixture(scope="module")
def variants(one: TrainingRecord, summary: Summary, families: dict[str, Summary]) -> dict[str, list[TrainingRecord]]:
    """The runs of each page that the tests look at."""
    plants, translation = families["plants"], families["translation"]
    noted = ["Two rows were skipped.", "A long note. " * 40]
    return {
        "one": [one],
        "three": [record_of(summary, arm) for arm in ("rdrop", "plain", "longer")],
        "plants": [record_of(plants, "rdrop", notes=noted)],
        "translations": [record_of(translation, arm) for arm in ("plain", "rdrop")],
        "unlike": [record_of(plants, "plain", title="Plants"), record_of(translation, "rdrop", split="validation")],
        "many": [record_of(summary, "rdrop", seed=seed, title="A very long title " * 8) for seed in range(9)],
        "bare": [one.model_copy(update={"run": one.run.model_copy(update={"curves": {}, "reliability": []})})],
    }


@pytest.fixture(scope="module")
def pages(variants: dict[str, list[TrainingRecord]]) -> dict[str, str]:
    return {name: render_training_report(records) for name, records in variants.items()}


def headings(page: str, level: int = 3) -> list[str]:
    return re.findall(rf"<h{level}[^>]*>(?:<svg.*?</svg>)?(.*?)</h{level}>", page, re.DOTALL)


def section(page: str, key: str) -> str:
    match = re.search(rf'<section[^>]*aria-labelledby="{key}".*?</section>', page, re.DOTALL)
    assert match, key
    return match[0]


def test_equal_records_give_equal_pages(one: TrainingRecord, pages: dict[str, str]) -> None:
    assert render_training_report([one]) == pages["one"]


def test_a_run_is_told_by_its_leading_metrics(one: TrainingRecord, pages: dict[str, str]) -> None:
    accuracy, nll = (one.run.metrics[name] for name in ("accuracy", "nll"))
    assert f'<p class="headline">Accuracy {100 * accuracy:.2f}%, NLL {nll:.4f} on the test split.</p>' in pages["one"]
    facts = re.findall(r'<p class="big">(.*?) <small>(.*?)</small>', pages["one"])
    assert facts == [(f"{100 * accuracy:.2f}", "%"), (f"{nll:.4f}", ""), ("600", "optimizer steps")]
    assert re.findall(r"<dt>(.*?)</dt><dd>([0-9,]+ steps, .*?)</dd>", pages["three"]) == [
        ("plain", "600 steps, 1 pass"),
        ("longer", "1,200 steps, 1 pass"),
    ]
    assert "2 passes in each, 1.99\N{MULTIPLICATION SIGN} the operations of a plain step." in pages["one"]


def test_the_table_has_every_metric_of_every_run(
    variants: dict[str, list[TrainingRecord]], pages: dict[str, str]
) -> None:
    table = section(pages["three"], "table")
    rows = re.findall(r'<tr><th scope="row">(.*?) <span', table)
    assert rows == [f"{m.label}{' (%)' if m.percent else ''}" for m in variants["three"][0].metrics]
    values = [float(value) for value in re.findall(r'<span class="value">(.*?)</span>', table)]
    expected = [
        (100 if metric.percent else 1) * record.run.metrics[metric.name]
        for metric in variants["three"][0].metrics
        for record in variants["three"]
    ]
    assert values == pytest.approx(expected, rel=1e-2)


def test_curves_confidence_and_exhibits_have_their_charts(pages: dict[str, str]) -> None:
    assert headings(section(pages["one"], "training")) == [
        "Accuracy (%) while training",
        "NLL while training",
        "Divergence between the passes while training",
        "Agreement of the passes while training (%)",
        "Task loss while training",
        "Loss while training",
    ]
    assert headings(section(pages["one"], "trust")) == ["Confidence against correctness"]
    assert "Classified worst" in headings(section(pages["plants"], "closer"))
    assert headings(section(pages["translations"], "closer")) == ["Translations"]


def test_agreement_is_drawn_in_percent_on_an_even_axis(pages: dict[str, str]) -> None:
    figure = next(part for part in pages["one"].split("<figure") if "Agreement of the passes" in part)
    assert "Mean over the last tenth of the training: rdrop 96.9%." in figure
    assert "logarithmic" not in figure


def test_one_run_needs_no_legend_and_no_name_in_its_exhibits(pages: dict[str, str]) -> None:
    assert 'class="legend"' not in pages["one"]
    assert "<h4>" not in pages["plants"]
    assert pages["three"].count('class="legend"') == len(headings(section(pages["three"], "training")))


def test_no_chart_of_single_runs_speaks_of_means_over_seeds(pages: dict[str, str]) -> None:
    for name in ("one", "three", "many"):
        assert "over seeds" not in re.sub(r'<section aria-labelledby="reading".*', "", pages[name], flags=re.DOTALL)
        assert "all seeds" not in pages[name]


def test_what_has_no_numbers_has_no_section(pages: dict[str, str]) -> None:
    links = re.findall(r'<li><a href="#(.*?)">', pages["bare"])
    assert links == ["table", "reading", "run"]
    for page in pages.values():
        links = re.findall(r'<li><a href="#(.*?)">', page)
        assert links == re.findall(r'<h2 id="(.*?)">', page)


def test_every_id_is_there_once(pages: dict[str, str]) -> None:
    for page in pages.values():
        ids = re.findall(r'\bid="(.*?)"', page)
        assert len(ids) == len(set(ids))
        body = page[page.index("<body>") :]
        assert set(re.findall(r'aria-(?:labelledby|describedby)="(.*?)"', body)) <= set(ids)


def test_runs_that_cannot_be_set_against_each_other_are_said_so(pages: dict[str, str]) -> None:
    assert (
        "These runs differ in the task, the data and the split, so their numbers cannot be set against each other."
        in pages["unlike"]
    )
    assert all("cannot be set against" not in pages[name] for name in ("one", "three", "many"))
    assert '<span class="value">\N{EN DASH}</span>' in section(pages["unlike"], "table")


def test_what_was_run_can_be_repeated(pages: dict[str, str]) -> None:
    ran = section(pages["three"], "run")
    for arm in ("rdrop", "plain", "longer"):
        assert f"<code>rdrop train digits --arm {arm}</code>" in ran
    assert ran.count("train_size: 300") == 3
    assert "torch 2.15.0" in ran
    assert "2026-01-31T12:00:00Z, in 62 s" in ran


def test_notes_are_listed(pages: dict[str, str]) -> None:
    assert "<li>Two rows were skipped.</li>" in section(pages["plants"], "notes")
    assert 'id="notes"' not in pages["one"]


HOSTILE = "<script>alert(1)</script>\"'&{{ 7 * 7 }}"


def test_words_of_others_stay_words(one: TrainingRecord) -> None:
    metric = one.metrics[0].model_copy(update={"label": HOSTILE, "explanation": HOSTILE})
    hostile = one.model_copy(
        update={
            "title": HOSTILE,
            "data": HOSTILE,
            "task": HOSTILE,
            "notes": [HOSTILE],
            "metrics": [metric, *one.metrics[1:]],
            "recipe": {"title": HOSTILE},
            "environment": one.environment.model_copy(
                update={"command": HOSTILE, "machine": HOSTILE, "versions": {HOSTILE: HOSTILE}}
            ),
        }
    )
    for records in ([hostile], [hostile, one]):
        page = render_training_report(records)
        assert "<script" not in page
        assert "49" not in re.findall(r"<h1>(.*?)</h1>", page)[0]
        assert page.count("&lt;script&gt;alert(1)") > 8


def test_the_page_names_no_other_file(pages: dict[str, str]) -> None:
    for page in pages.values():
        assert not re.search(r'(?:src|href|url)\s*[=(]\s*"?(?:https?:|//)', page)
        assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ([{}], ["rdrop"]),
        ([{"arm": "plain"}, {}], ["plain", "rdrop"]),
        ([{}, {"alpha": 3.0}], ["rdrop, alpha 1", "rdrop, alpha 3"]),
        ([{}, {"seed": 7}], ["rdrop, seed 0", "rdrop, seed 7"]),
        (
            [{}, {"seed": 7}, {"alpha": 3.0}],
            ["rdrop, alpha 1, seed 0", "rdrop, alpha 1, seed 7", "rdrop, alpha 3, seed 0"],
        ),
        ([{}, {"title": "Other"}], ["Digits with 300 labels: rdrop, alpha 1, seed 0", "Other: rdrop, alpha 1, seed 0"]),
        (
            [{}, {}],
            ["1. Digits with 300 labels: rdrop, alpha 1, seed 0", "2. Digits with 300 labels: rdrop, alpha 1, seed 0"],
        ),
    ],
)
def test_names_are_as_long_as_it_takes_to_tell_runs_apart(
    one: TrainingRecord, changes: list[dict[str, Any]], names: list[str]
) -> None:
    records = [
        one.model_copy(
            update={**change, "run": one.run.model_copy(update={k: change[k] for k in ("arm", "seed") if k in change})}
        )
        for change in changes
    ]
    assert run_names(records) == names


def test_a_run_without_metrics_has_a_page(one: TrainingRecord) -> None:
    empty = one.model_copy(update={"metrics": [], "run": one.run.model_copy(update={"metrics": {}})})
    assert "The run has no metrics." in render_training_report([empty])


def test_no_record_is_refused() -> None:
    with pytest.raises(ValueError, match="got no record of a run; a report needs at least one"):
        render_training_report([])


def test_the_file_is_written_whatever_the_words(one: TrainingRecord, tmp_path: Path) -> None:
    write_training_report([one.model_copy(update={"title": "half \ud800 pair"})], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h1>half ? pair</h1>" in text
    assert text.rstrip().endswith("</html>")


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def report(browser: Browser, pages: dict[str, str], tmp_path: Path) -> Iterator[Open]:
    """Opens a page; afterwards, nothing may have been logged or asked from anywhere but its file."""
    with opened_files(browser) as open_file:

        def open_report(variant: str, width: int = 1280, mode: Mode = "light") -> Page:
            file = tmp_path / f"{variant}.html"
            file.write_text(pages[variant], encoding="utf-8")
            return open_file(file, width, mode)

        yield open_report


class TestInABrowser:
    pytestmark = NEEDS_CHROMIUM

    @pytest.mark.parametrize("variant", ["one", "three", "plants", "translations", "unlike", "many", "bare"])
    def test_no_page_is_wider_than_a_small_phone(self, report: Open, variant: str) -> None:
        page = report(variant, width=360)
        assert_no_wider_than(page, 360)

    @pytest.mark.parametrize(
        ("variant", "mode"),
        [("one", "light"), ("three", "dark"), ("plants", "dark"), ("translations", "light"), ("many", "light")],
    )
    def test_axe_finds_nothing(self, report: Open, variant: str, mode: Mode) -> None:
        page = report(variant, width=390, mode=mode)
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()

    @pytest.mark.parametrize(("variant", "width"), [("one", 1280), ("three", 1280), ("three", 360)])
    def test_the_text_of_charts_has_the_size_of_the_page_around_it(
        self, report: Open, variant: str, width: int
    ) -> None:
        page = report(variant, width=width)
        sizes = page.evaluate(
            """() => [...document.querySelectorAll('svg.chart')].flatMap(svg => {
                const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
                return [...svg.querySelectorAll('text')].map(t => parseFloat(getComputedStyle(t).fontSize) * scale);
            })"""
        )
        assert len(sizes) > 30
        assert min(sizes) > 9.5
        assert max(sizes) < 20

    def test_a_screen_reader_meets_names(self, report: Open, variants: dict[str, list[TrainingRecord]]) -> None:
        page = report("three")
        assert page.get_by_role("heading", level=1).inner_text() == variants["three"][0].title
        named = re.compile(r"\w")
        assert page.locator("figure").count() == page.get_by_role("figure", name=named).count() == 6
        assert page.locator("svg.chart").count() == page.get_by_role("img", name=named).count() == 5 + 3
        table = page.get_by_role("region", name="Every metric of every run").get_by_role("table")
        assert table.get_by_role("columnheader").all_inner_texts() == ["Metric", "rdrop", "plain", "longer"]
        assert page.get_by_role("region", name="Recipe of plain").count() == 0  # folded
        page.get_by_text("The recipe of plain").click()
        assert "train_size: 300" in page.get_by_role("region", name="Recipe of plain").inner_text()

    def test_print_shows_the_charts(self, report: Open) -> None:
        page = report("plants", width=700)
        page.emulate_media(media="print")
        assert not page.locator("nav").is_visible()
        assert page.locator("svg.chart").first.is_visible()
        assert page.locator(".exhibit").first.is_visible()
