from __future__ import annotations

import jinja2
import pytest

from rdrop.report.charts import Table
from rdrop.report.svg import arm_style
from rdrop.report.templates import resource, template


def test_values_are_escaped() -> None:
    parts = template("parts.html.jinja").module
    text = str(parts.data_table(Table("<b>", ["<i>"], [["<u>"]])))  # type: ignore[attr-defined]
    assert "&lt;b&gt;" in text
    assert not {"<b>", "<i>", "<u>"} & set(text.split("\n"))
    assert "<u>" not in text


def test_a_name_that_was_not_given_is_refused() -> None:
    parts = template("parts.html.jinja").module
    with pytest.raises(jinja2.UndefinedError, match="caption"):
        parts.data_table({})  # type: ignore[attr-defined]


def test_a_swatch_has_colour_and_marker() -> None:
    style = arm_style(1)
    text = str(template("parts.html.jinja").module.swatch(style))  # type: ignore[attr-defined]
    assert f"var({style.variable})" in text
    assert style.marker_path in text
    assert 'stroke-dasharray="5 2"' in text


def test_a_resource_is_read_as_utf8() -> None:
    assert "\N{RIGHT SINGLE QUOTATION MARK}" in resource("page.html.jinja")
