from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from chromium import NEEDS_CHROMIUM, Mode, assert_no_wider_than, chromium, opened_files
from rdrop.report.page import render_report
from rdrop.toolkit.summary import Summary

pytestmark = NEEDS_CHROMIUM

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def files(
    make_summary: Callable[..., Summary], pages: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The reports that the tests open."""
    folder = tmp_path_factory.mktemp("report")
    long_name = "an_arm_with_a_very_long_name" * 2
    summaries = {
        "one seed, failed arm": make_summary(seeds=[0], failed=[("rdrop", 0)]),
        "many arms": make_summary(
            seeds=[0, 1, 2],
            arms=["plain", "twice", "rdrop", "longer", long_name, *"abcd"],
            failed=[("twice", 1)],
        ),
    }
    texts = pages | {name: render_report(summary) for name, summary in summaries.items()}
    paths = {name: folder / f"{index}.html" for index, name in enumerate(texts)}
    for name, text in texts.items():
        paths[name].write_text(text, encoding="utf-8")
    return paths


@pytest.fixture
def report(browser: Browser, files: dict[str, Path]) -> Iterator[Open]:
    """Opens a report; afterwards, nothing may have been logged or asked from anywhere but its file."""
    with opened_files(browser) as open_file:

        def open_report(variant: str = "digits", width: int = 1280, mode: Mode = "light") -> Page:
            return open_file(files[variant], width, mode)

        yield open_report


@pytest.mark.parametrize(
    "variant", ["digits", "plants", "translation", "language", "one seed, failed arm", "many arms"]
)
def test_no_page_is_wider_than_a_small_phone(report: Open, variant: str) -> None:
    page = report(variant, width=360)
    assert_no_wider_than(page, 360)


@pytest.mark.parametrize("width", [360, 1280])
def test_the_text_of_charts_is_readable_and_inside(report: Open, width: int) -> None:
    page = report(width=width)
    texts = page.evaluate(
        """() => [...document.querySelectorAll('svg.chart')].flatMap(svg => {
            const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
            return [...svg.querySelectorAll('text')].map(text => {
                const inner = text.getBoundingClientRect();
                return {size: parseFloat(getComputedStyle(text).fontSize) * scale, text: text.textContent,
                        inside: inner.left >= box.left - 1 && inner.right <= box.right + 1
                             && inner.top >= box.top - 1 && inner.bottom <= box.bottom + 1};
            });
        })"""
    )
    assert len(texts) > 50
    assert [each for each in texts if each["size"] < 9.5 or not each["inside"]] == []


def test_labels_of_charts_do_not_overlap(report: Open) -> None:
    page = report()
    overlaps = page.evaluate(
        """() => [...document.querySelectorAll('svg.chart')].flatMap(svg => {
            const texts = [...svg.querySelectorAll('text')];
            const boxes = texts.map(text => [text.textContent, text.getBoundingClientRect()]);
            return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([b, q]) =>
                p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 2 && q.top < p.bottom - 2
            ).map(([b]) => [svg.querySelector('title').textContent, a, b]));
        })"""
    )
    assert overlaps == []


@pytest.mark.parametrize(
    ("variant", "mode"),
    [
        ("digits", "light"),
        ("digits", "dark"),
        ("one seed, failed arm", "light"),
        ("plants", "dark"),
        ("translation", "dark"),
        ("language", "light"),
    ],
)
def test_axe_finds_nothing(report: Open, variant: str, mode: Mode) -> None:
    page = report(variant, width=390, mode=mode)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_dark_mode_has_colours_of_its_own_and_both_have_contrast(
    report: Open, contrast: Callable[[Sequence[float], Sequence[float]], float]
) -> None:
    colours = []
    for mode in ("light", "dark"):
        page = report(mode=mode)
        style = "getComputedStyle(document.body)"
        line = "getComputedStyle(document.querySelector('path[style*=\"stroke: var(--arm-2)\"]')).stroke"
        computed = page.evaluate(f"[{style}.backgroundColor, {style}.color, {line}]")
        ground, ink, stroke = ([int(part) for part in re.findall(r"\d+", colour)] for colour in computed)
        assert contrast(ground, ink) >= 7, mode
        assert contrast(ground, stroke) >= 3, mode
        colours += computed
    assert len(set(colours)) == 6


def test_a_screen_reader_meets_names(report: Open, summary: Summary) -> None:
    page = report()
    assert page.get_by_role("heading", level=1).inner_text() == summary.title
    named = re.compile(r"\w")
    assert page.locator("figure").count() == page.get_by_role("figure", name=named).count() == 9
    assert page.locator("svg.chart").count() == page.get_by_role("img", name=named).count() == 8 + 4
    assert page.get_by_role("figure", name="NLL while training", exact=True).count() == 1
    assert page.get_by_role("img", name="Reliability of rdrop").count() == 1
    assert page.get_by_role("region", name="Results of each arm").get_by_role("row").count() == 2 + 4


def test_the_keyboard_reaches_the_results_and_scrolls_the_table(report: Open) -> None:
    page = report(width=360)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    region = page.get_by_role("region", name="Results of each arm")
    region.focus()
    page.keyboard.press("ArrowRight")
    for _ in range(40):  # not `wait_for_function`, which the page's policy against scripts forbids
        if region.evaluate("region => region.scrollLeft") > 0:
            break
        page.wait_for_timeout(50)
    assert region.evaluate("region => region.scrollLeft") > 0
    header = region.get_by_role("rowheader").first.bounding_box()
    assert header is not None
    assert header["x"] >= 0


def test_print_shows_the_charts(report: Open) -> None:
    page = report()
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert page.locator("svg.chart").first.is_visible()


def test_pictures_are_shown_square_and_small_ones_with_their_pixels(report: Open) -> None:
    page = report("plants")
    pictures = page.evaluate(
        """() => [...document.images].map(image => {
            const box = image.getBoundingClientRect();
            return {natural: [image.naturalWidth, image.naturalHeight], ratio: box.width / box.height,
                    rendering: getComputedStyle(image).imageRendering};
        })"""
    )
    assert len(pictures) == 4 * 5
    assert {tuple(each["natural"]) for each in pictures} == {(24, 24), (96, 64)}
    for each in pictures:
        assert each["ratio"] == pytest.approx(1, abs=0.02)
        assert each["rendering"] == ("pixelated" if each["natural"] == [24, 24] else "auto")


def test_pictures_and_matrices_have_names(report: Open) -> None:
    page = report("plants")
    assert page.get_by_role("img", name="plot_00.jpg", exact=True).count() == 4
    matrix = page.get_by_role("region", name="Which class was taken for which, rdrop").get_by_role("table")
    assert matrix.get_by_role("columnheader").all_inner_texts()[3:] == ["sprout", "seedling", "rosette", "heading"]
    sprout = matrix.get_by_role("row").filter(has=page.get_by_role("rowheader", name="sprout"))
    cells = sprout.get_by_role("cell").all_text_contents()
    assert sum(int(text.replace(",", "")) for text in cells[:-1]) == 1200
    assert cells[-1].endswith("%")


def test_matrices_stand_side_by_side_where_there_is_room(report: Open) -> None:
    lefts = {}
    for width in (1280, 360):
        regions = report("plants", width=width).locator(".matrices").first.locator("> div").all()
        boxes = [region.bounding_box() for region in regions]
        lefts[width] = len({round(box["x"]) for box in boxes if box})
        assert len(boxes) == 4
    assert lefts[1280] > 1
    assert lefts[360] == 1


@pytest.mark.parametrize("width", [360, 1280])
def test_texts_wrap_run_in_their_direction_and_open_at_a_click(report: Open, width: int) -> None:
    page = report("translation", width=width)
    texts = page.evaluate(
        """() => [...document.querySelectorAll('.texts td, .example dd')].map(cell => ({
            text: cell.textContent, direction: getComputedStyle(cell).direction,
            fits: cell.scrollWidth <= cell.clientWidth
        }))"""
    )
    assert len(texts) == 4 * 4
    assert all(each["fits"] for each in texts)
    assert [each["direction"] for each in texts if "\N{HEBREW LETTER SHIN}" in each["text"]] == ["rtl"]
    assert {each["direction"] for each in texts if "two" in each["text"]} == {"ltr"}
    rest = page.locator("details.rest").first
    assert "Ein langer Satz" not in rest.inner_text()
    rest.locator("summary").click()
    assert "Ein langer Satz" in rest.inner_text()


@pytest.mark.parametrize("variant", ["plants", "translation", "language"])
def test_a_closer_look_fits_on_paper(report: Open, variant: str) -> None:
    page = report(variant, width=700)  # about the width of A4 between its margins
    page.emulate_media(media="print")
    cut = page.evaluate(
        """() => [...document.querySelectorAll('.exhibit table, .exhibit img')].filter(e =>
            e.getBoundingClientRect().right > 700.5).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert cut == []
    assert page.locator(".exhibit").first.is_visible()
    assert page.locator("details.rest").evaluate_all("all => all.every(each => each.checkVisibility())")
    assert not page.get_by_text("Most frequent mistakes").first.is_visible()
