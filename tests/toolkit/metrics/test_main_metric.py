from __future__ import annotations

import pytest

from rdrop.errors import UserError
from rdrop.toolkit.metrics import CLASSIFICATION_METRICS, TWO_CLASS_METRICS, with_main_metric


def order(name: str) -> list[str]:
    return [metric.name for metric in with_main_metric(TWO_CLASS_METRICS, name)]


def test_the_chosen_metric_comes_first_and_the_likelihood_stays_second() -> None:
    assert order("f1") == ["f1", "nll", "accuracy", "ece", "macro_f1", "matthews"]
    assert order("accuracy") == [metric.name for metric in TWO_CLASS_METRICS]


def test_the_likelihood_as_main_metric_has_the_usual_one_beside_it() -> None:
    assert order("nll") == ["nll", "accuracy", "ece", "macro_f1", "matthews", "f1"]


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    known = "accuracy, nll, ece, macro_f1, matthews$"
    with pytest.raises(UserError, match=f"the main metric is 'f1'; expected one of {known}"):
        with_main_metric(CLASSIFICATION_METRICS, "f1")
