from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rdrop.errors import UserError
from rdrop.toolkit.data.label_names import LabelNames
from rdrop.toolkit.data.rows import BadValue, Row
from rdrop.toolkit.text.answers import ANSWERS, AnswerName

PATH = Path("train.csv")
NAMES = LabelNames(("film", "plot"), Path("labels.txt"), numbered=True)


def read(answer: AnswerName, value: Any, names: LabelNames | None = None, separator: str = ",") -> Any:
    return ANSWERS[answer]("x", separator).read(Row(PATH, 2, {"x": value}), names)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("film", ("film",)),
        (" film , plot ", ("film", "plot")),
        ("film,,film", ("film",)),
        ("", ()),
        ([], ()),
        (["plot", "film"], ("plot", "film")),
        ([1, 0], ("1", "0")),
    ],
)
def test_a_set_of_labels_is_a_list_or_a_text_with_separators(value: Any, found: tuple[str, ...]) -> None:
    assert read("multi-label", value) == found


def test_a_set_of_labels_may_have_another_separator_and_numbers() -> None:
    assert read("multi-label", "1 | film", NAMES, separator="|") == ("plot", "film")
    assert read("multi-label", "film plot", NAMES, separator=" ") == ("film", "plot")
    assert ANSWERS["multi-label"]("x", ",").target(("plot",), NAMES.names) == [0.0, 1.0]
    for value, told in [
        (None, "got null"),
        (3, "got 3"),
        (["film", 0.5], "got 0.5"),
        ("music", "got the label 'music'"),
    ]:
        with pytest.raises(BadValue, match=f"x: {told}"):
            read("multi-label", value, NAMES)


def test_a_number_is_finite_and_not_the_mark_of_what_does_not_count() -> None:
    assert read("regression", "2.5") == 2.5
    assert ANSWERS["regression"]("x", ",").target(2.5, ("x",)) == [2.5]
    for value in ("nan", "inf", "-100", -100, "high", None):
        with pytest.raises(BadValue, match="x: got "):
            read("regression", value)


def test_a_class_is_a_word_or_a_number() -> None:
    assert read("classification", " film ") == "film"
    assert read("classification", 1, NAMES) == "plot"
    with pytest.raises(UserError, match=r"train.csv: no row has the label 'plot' of labels.txt"):
        ANSWERS["classification"]("x", ",").check(NAMES, Counter(["film"]), PATH)


class Fixed(nn.Module):
    """The same logits whatever it is asked, with a dropout that takes all or nothing."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor([logits])
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.logits * self.dropout(torch.ones(1, 1)) / 2}


@pytest.mark.parametrize(
    ("answer", "logits", "expected", "spread"),
    [
        # Means over masks of 0 and of the logits as they stand; dropout off has half of them.
        ("regression", [4.0], {"value": 2.0}, 2.0),
        ("multi-label", [4.0, -0.2], {"labels": ["film"], "confidence": 0.525}, 0.025),
        ("classification", [0.0, 4.0], {"label": "plot", "confidence": 0.881}, 0.241),
    ],
)
def test_predictions_are_of_one_model_or_of_many(
    answer: AnswerName, logits: list[float], expected: dict[str, Any], spread: float
) -> None:
    kind, model, batches = ANSWERS[answer]("x", ","), Fixed(logits), [{"x": torch.zeros(1)}]
    (one,) = kind.predictions(model, batches, NAMES.names, 0, 0)
    assert "spread" not in one
    for key, value in expected.items():
        assert one[key] == (pytest.approx(value, abs=1e-3) if isinstance(value, float) else value)
    (many,) = kind.predictions(model, batches, NAMES.names, 400, 0)
    assert many["spread"] == pytest.approx(spread, rel=0.05)
