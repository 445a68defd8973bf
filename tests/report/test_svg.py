from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from rdrop.report.svg import INK, arm_style, drawing, inline_svg


def picture(key: str, name: str = "plain", colour: str = INK) -> str:
    with drawing(200, 100) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1, 2], [2, 1, 3], color=colour, marker="o", clip_on=True)
        axes.fill_between([0, 1, 2], [1, 0, 2], [3, 2, 4], color=arm_style(1).colour)
        axes.set_title(name)
        return inline_svg(figure, key, f"Title of {name}", f"Words about {name}")


def test_equal_figures_give_equal_text() -> None:
    assert picture("a") == picture("a")
    assert "metadata" not in picture("a")


def test_ids_of_two_pictures_never_meet_and_references_resolve() -> None:
    ids: list[set[str]] = []
    for key in ("first", "second"):
        text = picture(key)
        ids.append(set(re.findall(r'\bid="([^"]+)"', text)))
        references = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
        assert references
        assert references <= ids[-1]
    assert len(ids[0]) > 2
    assert not ids[0] & ids[1]


def test_colours_are_variables_of_the_page() -> None:
    text = picture("a")
    assert "var(--ink)" in text
    assert "var(--arm-1)" in text
    assert not re.search(r"#[0-9a-fA-F]{6}\b", text)


def test_a_colour_that_no_theme_knows_is_refused() -> None:
    with pytest.raises(KeyError, match="#ff0000"):
        picture("a", colour="red")


def test_fonts_are_those_of_the_page() -> None:
    text = picture("a")
    assert "DejaVu" not in text
    assert "font-family" not in text
    assert "calc(11.5px * var(--text-scale, 1))" in text


def test_text_is_text_and_is_escaped() -> None:
    text = picture("a", name="<script>alert(1)</script> $x^2$ \N{CJK UNIFIED IDEOGRAPH-5B66}")
    assert "<script" not in text
    root = ElementTree.fromstring(text)
    drawn = ["".join(node.itertext()) for node in root.iter("text")]
    assert "<script>alert(1)</script> $x^2$ \N{CJK UNIFIED IDEOGRAPH-5B66}" in drawn


def test_a_picture_has_a_name_and_a_description() -> None:
    root = ElementTree.fromstring(picture("a"))
    assert root.get("role") == "img"
    by_id = {node.get("id"): node.text for node in root.iter() if node.get("id")}
    assert by_id[root.get("aria-labelledby")] == "Title of plain"
    assert by_id[root.get("aria-describedby")] == "Words about plain"
    assert root.get("width") is None


def test_arms_differ_in_more_than_colour() -> None:
    looks = [(arm_style(i).colour, arm_style(i).marker, arm_style(i).dashes) for i in range(24)]
    assert len(set(looks)) == 24
    assert len({marker for _, marker, _ in looks[:7]}) == 7
    assert all(arm_style(i).marker_path.startswith("M") for i in range(8))
