from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from rdrop.report.page import render_report, write_report
from rdrop.report.svg import ARM_COLOURS
from rdrop.toolkit.summary import Confusion, Difference, Metric, Run, Summary

MakeSummary = Callable[..., Summary]
Contrast = Callable[[Sequence[float], Sequence[float]], float]
Themes = dict[str, dict[str, tuple[int, ...]]]
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects elements, ids and headings, and refuses tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"closed, but not open: {tag}"
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text(pages: dict[str, str]) -> str:
    return pages["digits"]


def without_style(page: str) -> str:
    return re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)


def test_equal_summaries_give_equal_pages(make_summary: MakeSummary) -> None:
    assert render_report(make_summary(seeds=[0])) == render_report(make_summary(seeds=[0]))


def test_the_page_survives_the_way_through_json(families: dict[str, Summary], pages: dict[str, str]) -> None:
    again = Summary.model_validate_json(families["plants"].model_dump_json())
    assert render_report(again) == pages["plants"]


def test_write_report_writes_utf8(summary: Summary, text: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(summary, path)
    assert path.read_bytes().decode("utf-8") == text


def test_half_a_pair_of_surrogates_in_a_file_name_does_not_stop_the_report(
    make_summary: MakeSummary, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    summary = make_summary(seeds=[0], arms=["plain", "rdrop"])
    write_report(summary.model_copy(update={"notes": ["skipped leaf\udcff.png"]}), path)
    assert "skipped leaf?.png" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("family", ["digits", "plants", "translation", "language", "similarity"])
def test_structure(family: str, pages: dict[str, str]) -> None:
    page = Page(pages[family])
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(name) is None or attributes[name] in ids
        target = attributes.get("href")
        assert target is None or target.removeprefix("#") in ids
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert [page.all(tag) != [] for tag in ("header", "nav", "main", "footer")] == [True] * 4
    assert page.all("html")[0]["lang"] == "en"
    assert all(attributes.get("scope") for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    for svg in page.all("svg"):
        assert svg.get("aria-hidden") == "true" or svg.get("role") == "img"
    assert all(image["alt"] for image in page.all("img"))
    assert len({figure["aria-labelledby"] for figure in page.all("figure")}) == len(page.all("figure"))


def headings(text: str) -> list[str]:
    return re.findall(r"<h3 id=[^>]*>(.*?)</h3>", text)


@pytest.mark.parametrize(
    ("family", "charts"),
    [
        (
            "digits",
            [
                "Accuracy (%) while training",
                "NLL while training",
                "Divergence between the passes while training",
                "Task loss while training",
                "Loss while training",
                "Accuracy: each seed against plain",
                "NLL: each seed against plain",
                "Confidence against correctness",
                "Consistency gap of each arm",
            ],
        ),
        (
            "plants",
            [
                "Accuracy (%) while training",
                "NLL while training",
                "Divergence between the passes while training",
                "Task loss while training",
                "Loss while training",
                "Accuracy: each seed against plain",
                "NLL: each seed against plain",
                "Confidence against correctness",
                "Consistency gap of each arm",
                "Which class was taken for which",
                "Which species",
                "Classified worst",
            ],
        ),
        (
            "translation",
            [
                "BLEU while training",
                "NLL while training",
                "Loss in evaluations while training",
                "Divergence between the passes while training",
                "Task loss while training",
                "Loss while training",
                "BLEU: each seed against plain",
                "NLL: each seed against plain",
                "Translations",
            ],
        ),
        (
            "language",
            [
                "Perplexity while training",
                "NLL while training",
                "Divergence between the passes while training",
                "Task loss while training",
                "Loss while training",
                "Perplexity: each seed against plain",
                "NLL: each seed against plain",
                "Confidence against correctness",
                "Consistency gap of each arm",
                "Least expected",
            ],
        ),
        (
            "similarity",
            [
                "Pearson correlation while training",
                "MSE while training",
                "Divergence between the passes while training",
                "Task loss while training",
                "Loss while training",
                "Pearson correlation: each seed against plain",
                "MSE: each seed against plain",
            ],
        ),
    ],
)
def test_figures_are_those_that_the_task_has_numbers_for(family: str, charts: list[str], pages: dict[str, str]) -> None:
    assert headings(pages[family]) == charts


@pytest.mark.parametrize("family", ["translation", "language", "similarity"])
def test_the_words_fit_other_tasks_than_images(family: str, pages: dict[str, str]) -> None:
    text = without_style(pages[family])
    words = set(re.findall(r"[a-z]+", re.sub(r"<[^>]*>", " ", text).lower()))
    assert not words & {"image", "images", "picture", "pictures", "pixel", "pixels", "photo", "digits"}
    assert "accuracy" not in words or family == "language"


def test_the_section_on_trust_is_named_after_what_is_in_it(make_summary: MakeSummary, pages: dict[str, str]) -> None:
    assert '<h2 id="trust">Confidence and consistency</h2>' in pages["digits"]
    summary = make_summary(seeds=[0], arms=["plain", "rdrop"])
    without_bins = [run.model_copy(update={"reliability": []}) for run in summary.runs]
    shown = {
        "Consistency": summary.model_copy(update={"runs": without_bins}),
        "Confidence": summary.model_copy(update={"metrics": summary.metrics[:3]}),
    }
    for title, each in shown.items():
        assert f'<h2 id="trust">{title}</h2>' in render_report(each)
    assert 'id="trust"' not in pages["translation"]


def test_the_loss_is_not_drawn_twice_where_no_arm_weighs_a_divergence(summary: Summary) -> None:
    plain = {"arms": summary.arms[:2], "runs": [run for run in summary.runs if run.arm in ("plain", "twice")]}
    drawn = headings(render_report(summary.model_copy(update=plain)))
    assert "Task loss while training" in drawn
    assert "Loss while training" not in drawn


def test_a_closer_look_is_at_the_first_run_of_each_arm_that_has_something_to_show(
    make_summary: MakeSummary, make_confusion: Callable[..., Confusion]
) -> None:
    summary = make_summary(seeds=[3, 4, 5], failed=[("plain", 3)])
    assert "A closer look" not in render_report(summary)

    def shown(run: Run) -> list[Confusion]:
        title = f"Matrix of {run.arm} with seed {run.seed}"
        exhibits = {"plain": (3, 4, 5), "rdrop": (4,), "longer": (3, 4)}.get(run.arm, ())
        return [make_confusion(0, ["a", "b"]).model_copy(update={"title": title})] if run.seed in exhibits else []

    runs = [run.model_copy(update={"exhibits": shown(run)}) for run in summary.runs]
    text = render_report(summary.model_copy(update={"runs": runs}))
    told = re.findall(r"Matrix of \w+ with seed \d(?=</h3>)", text)
    assert told == ["Matrix of plain with seed 4", "Matrix of rdrop with seed 4", "Matrix of longer with seed 3"]
    assert "From one run of each arm: plain with seed 4, rdrop with seed 4, longer with seed 3." in text
    assert '<a href="#closer">A closer look</a>' in text
    # The same seed everywhere needs to be said only once.
    same = [run.model_copy(update={"exhibits": [] if run.seed == 3 else run.exhibits}) for run in runs]
    assert "From the run with seed 4 of each arm." in render_report(summary.model_copy(update={"runs": same}))


def test_arms_stand_side_by_side_in_the_closer_look(pages: dict[str, str]) -> None:
    text = pages["plants"]
    closer = text[text.index('id="closer"') : text.index('id="reading"')]
    assert re.findall(r"<h4>.*?</svg>(.*?)</h4>", closer) == 3 * ["plain", "twice", "rdrop", "longer"]
    page = Page(text)
    assert len(page.all("img")) == 4 * 5
    assert {(image["src"] or "")[:22] for image in page.all("img")} == {
        "data:image/png;base64,",
        "data:image/jpeg;base64",
    }
    assert text.count("Not shown:") == 4
    assert page.all("script") == []


def test_nothing_comes_from_outside(text: str) -> None:
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & {tag for tag, _ in page.elements}
    assert not re.search(r"https?:|@import|@font-face|//[a-z]", text)
    policy = next(meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_everything_is_escaped(make_summary: MakeSummary) -> None:
    evil = "<script>alert('x')</script>&\"</style></title></svg>"
    summary = make_summary(seeds=[0, 1], failed=[("twice", 0)], error=evil)
    arms = [
        arm.model_copy(update={"name": evil, "description": evil, "strategy": evil}) if arm.name == "rdrop" else arm
        for arm in summary.arms
    ]
    runs = [run.model_copy(update={"arm": evil}) if run.arm == "rdrop" else run for run in summary.runs]
    metrics = [metric.model_copy(update={"label": evil, "explanation": evil}) for metric in summary.metrics]
    clean = Page(render_report(summary))
    page = Page(
        render_report(
            summary.model_copy(
                update={
                    "title": evil,
                    "task": evil,
                    "data": evil,
                    "headline": evil,
                    "notes": [evil, evil],
                    "recipe": {evil: evil},
                    "arms": arms,
                    "runs": runs,
                    "metrics": metrics,
                    "environment": summary.environment.model_copy(
                        update={"created": evil, "machine": evil, "command": evil, "versions": {evil: evil}}
                    ),
                }
            )
        )
    )
    assert page.all("script") == []
    assert [tag for tag, _ in page.elements if tag in ("style", "title", "main", "section", "li", "td")] == [
        tag for tag, _ in clean.elements if tag in ("style", "title", "main", "section", "li", "td")
    ]


def test_the_facts_are_those_of_rdrop(summary: Summary, text: str) -> None:
    facts = text[text.index('class="facts"') : text.index("<nav")]
    difference = summary.arms[2].differences["accuracy"]
    assert f"+{100 * difference.mean:.2f} <small>points</small>" in facts
    assert "Accuracy, rdrop minus plain" in facts
    assert f"{100 * (difference.low or 0):+.2f} to {100 * (difference.high or 0):+.2f}" in facts
    assert facts.count("Better") == 2
    assert "1.78\N{MULTIPLICATION SIGN}" in facts


@pytest.mark.parametrize(
    ("low", "high", "higher_is_better", "p", "verdict"),
    [
        (0.01, 0.03, True, 0.01, "Better"),
        (0.01, 0.03, False, 0.01, "Worse"),
        (-0.03, -0.01, False, 0.01, "Better"),
        (-0.01, 0.05, True, 0.3, "No clear difference"),
        (float("nan"), float("nan"), True, float("nan"), "No clear difference"),
        (0.02, 0.02, True, None, "No clear difference"),
    ],
)
def test_verdicts(
    summary: Summary, low: float, high: float, higher_is_better: bool, p: float | None, verdict: str
) -> None:
    metric = Metric(
        name="accuracy",
        label="score",
        higher_is_better=higher_is_better,
        percent=True,
        explanation="A score.",
    )
    difference = Difference(mean=(low + high) / 2, low=low, high=high, p_value=p, per_seed={0: low, 1: high})
    arms = [summary.arms[0], summary.arms[2].model_copy(update={"differences": {"accuracy": difference}})]
    text = render_report(summary.model_copy(update={"metrics": [metric], "arms": arms}))
    assert re.findall(r'<p class="verdict">(.*?)</p>', text) == [verdict]


def test_failed_seeds_stay_in_the_table(make_summary: MakeSummary) -> None:
    text = render_report(make_summary(seeds=[0, 1, 2], failed=[("twice", 1), ("longer", 0)]))
    assert text.count("2 of 3 seeds finished") == 2
    assert "twice, seed 1</strong>, after 212 optimizer steps" in text
    assert text.count("the loss of step 212 is not finite") == 2


def test_an_arm_of_which_nothing_finished(make_summary: MakeSummary) -> None:
    text = render_report(make_summary(seeds=[0, 1], failed=[("rdrop", 0), ("rdrop", 1)]))
    assert "No result" in text
    assert "No seed finished</td>" in text
    assert "0 of 2 seeds finished" in text
    Page(text)


def test_all_runs_failed(make_summary: MakeSummary) -> None:
    arms = ("plain", "twice", "rdrop", "longer")
    text = render_report(make_summary(seeds=[0], failed=[(arm, 0) for arm in arms]))
    assert text.count("No seed finished</td>") == 4
    assert "<figure" not in text
    Page(text)


def test_one_seed_has_no_intervals(make_summary: MakeSummary) -> None:
    text = without_style(render_report(make_summary(seeds=[0])))
    assert text.count("One seed cannot tell") == 2
    assert "1 seed: no interval" in text
    assert not re.search(r"\[[^<\]]*, [^<\]]*\]", text)
    assert 'class="strip"' not in text


def test_other_metrics_and_no_curves(summary: Summary) -> None:
    bleu = Metric(name="bleu", label="BLEU", higher_is_better=True, percent=False, explanation="Overlap of words.")
    arms = [
        arm.model_copy(
            update={
                "metrics": {"bleu": arm.metrics["accuracy"]},
                "differences": {"bleu": arm.differences["accuracy"]} if arm.differences else {},
            }
        )
        for arm in summary.arms
    ]
    runs = [run.model_copy(update={"metrics": {}, "curves": {}, "reliability": []}) for run in summary.runs]
    only_bleu = {"metrics": [bleu], "arms": arms, "runs": runs, "headline": "BLEU rose."}
    text = render_report(summary.model_copy(update=only_bleu))
    assert "BLEU, rdrop minus plain" in text
    assert "points" not in text[text.index('class="facts"') : text.index("<nav")]
    assert Page(text).all("figure") != []
    assert "accuracy" not in text.lower()


def test_only_plain(make_summary: MakeSummary, summary: Summary) -> None:
    text = render_report(
        summary.model_copy(update={"arms": summary.arms[:1], "runs": [r for r in summary.runs if r.arm == "plain"]})
    )
    assert 'class="facts"' not in text
    Page(text)


def test_a_summary_without_arms_or_metrics_is_refused(summary: Summary) -> None:
    with pytest.raises(ValueError, match="0 arms and 7 metrics"):
        render_report(summary.model_copy(update={"arms": []}))
    with pytest.raises(ValueError, match="4 arms and 0 metrics"):
        render_report(summary.model_copy(update={"metrics": []}))


def test_what_was_run_is_on_the_page(summary: Summary, text: str) -> None:
    assert "rdrop compare --seeds 10 --out rdrop-runs/digits" in text
    assert "  train_size: 300\n" in text
    assert "torch 2.15.0" in text
    assert all(note in text for note in summary.notes)
    assert all(metric.explanation in text for metric in summary.metrics)
    assert "not adjusted" in text


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_every_text_colour_has_enough_contrast(mode: str, themes: Themes, contrast: Contrast) -> None:
    colours = themes[mode]
    names = ["--ink", "--muted", "--link", "--better", "--worse", *(f"--arm-{i}" for i in range(ARM_COLOURS))]
    for name in names:
        for ground in ("--card", "--paper"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (mode, name, ground)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_translucent_marks_have_enough_contrast(mode: str, themes: Themes, contrast: Contrast) -> None:
    colours = themes[mode]
    ground = colours["--card"]
    for i in range(ARM_COLOURS):
        colour = colours[f"--arm-{i}"]
        mixed = [0.75 * over + 0.25 * under for over, under in zip(colour, ground, strict=True)]
        assert contrast(mixed, ground) >= 3, (mode, i)
