from __future__ import annotations

import pytest

from rdrop.toolkit.headline import NO_ANSWER, Finding, headline, with_intervals
from rdrop.toolkit.metrics import CLASSIFICATION_METRICS
from rdrop.toolkit.statistics import paired_difference

ACCURACY, NLL = CLASSIFICATION_METRICS[:2]
UP, DOWN, EITHER = [0.010, 0.011, 0.012], [-0.010, -0.011, -0.012], [-0.010, 0.000, 0.012]


def findings(accuracy: list[float], nll: list[float]) -> list[Finding]:
    """R-Drop minus the opponent, one value for each seed."""
    found = []
    for metric, values in ((ACCURACY, accuracy), (NLL, nll)):
        difference = paired_difference(dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0))
        assert difference is not None
        found.append((metric, difference))
    return found


@pytest.mark.parametrize(
    ("accuracy", "nll", "claim"),
    [
        (UP, DOWN, "R-Drop was better in Accuracy (+1.10 points) and NLL (−0.0110) than plain training"),
        (DOWN, UP, "R-Drop was worse in Accuracy (−1.10 points) and NLL (+0.0110) than plain training"),
        (
            EITHER,
            DOWN,
            "R-Drop was better in NLL (−0.0110) than plain training, and no difference could be shown in "
            "Accuracy (+0.07 points)",
        ),
        (DOWN, DOWN, "R-Drop was better in NLL (−0.0110) and worse in Accuracy (−1.10 points) than plain training"),
        (
            EITHER,
            EITHER,
            "no difference could be shown in Accuracy (+0.07 points) or NLL (+0.001) against plain training",
        ),
        (
            [0.01] * 3,
            [-0.01] * 3,
            "no difference could be shown in Accuracy (+1.00 points) or NLL (−0.0100) against plain training",
        ),
    ],
    ids=["better", "worse", "likelihood-only", "mixed", "nothing", "no-variation"],
)
def test_the_claim_is_what_the_intervals_bear(accuracy: list[float], nll: list[float], claim: str) -> None:
    text = headline(findings(accuracy, nll), [], step_compute=1.1)
    assert text == f"Over 3 seeds, {claim}, at 1.10 times the operations of a plain step."


def test_one_seed_claims_nothing() -> None:
    text = headline(findings([0.05], [-0.2]), [], step_compute=2.0)
    assert text == (
        "With a single seed chance cannot be told from an effect: Accuracy +5.00 points and NLL −0.2000 against plain "
        "training, at 2.00 times the operations of a plain step."
    )
    assert with_intervals(findings([0.05], [-0.2])) == "Accuracy +5.00 points, NLL −0.2000"


def test_equal_compute_is_told_with_its_own_claim() -> None:
    text = headline(findings(UP, DOWN), findings(EITHER, DOWN), step_compute=1.234)
    assert "at 1.23 times the operations of a plain step. With equal computation, R-Drop was better in NLL" in text
    assert text.endswith("no difference could be shown in Accuracy (+0.07 points).")
    assert with_intervals(findings(UP, EITHER)).startswith(
        "Accuracy +1.10 points (95% interval +0.85 to +1.35, p = 0.0027)"
    )


def test_no_shared_seed_is_no_answer() -> None:
    assert headline([], findings(UP, DOWN), step_compute=1.1) == NO_ANSWER
    assert headline(findings(UP, DOWN), [], step_compute=None) == NO_ANSWER
