from __future__ import annotations

import pytest

from rdrop.toolkit.headline import NO_ANSWER, Finding, headline
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
        (UP, DOWN, "Over 3 seeds, R-Drop was better than plain training in Accuracy and NLL: "),
        (DOWN, UP, "Over 3 seeds, R-Drop was worse than plain training in Accuracy and NLL: "),
        (
            EITHER,
            DOWN,
            "Over 3 seeds, R-Drop was better than plain training in NLL; no difference in Accuracy could be shown: ",
        ),
        (
            DOWN,
            DOWN,
            "Over 3 seeds, R-Drop was better than plain training in NLL and worse than plain training in Accuracy: ",
        ),
        (
            EITHER,
            EITHER,
            "With 3 seeds, no difference to plain training could be shown in Accuracy or NLL: ",
        ),
        (
            [0.01] * 3,
            [-0.01] * 3,
            "With 3 seeds, no difference to plain training could be shown in Accuracy or NLL: ",
        ),
    ],
    ids=["better", "worse", "likelihood-only", "mixed", "nothing", "no-variation"],
)
def test_the_claim_is_what_the_intervals_bear(accuracy: list[float], nll: list[float], claim: str) -> None:
    text = headline(findings(accuracy, nll), [], step_compute=1.1)
    assert text.startswith(claim)


def test_one_seed_claims_nothing() -> None:
    text = headline(findings([0.05], [-0.2]), [], step_compute=2.0)
    assert text == (
        "With a single seed, chance cannot be told from an effect; R-Drop minus plain training: Accuracy "
        "+5.00 points, NLL -0.2000. A step of R-Drop took 2.00 times the computation of a plain one."
    )


def test_equal_compute_and_cost_are_told_with_their_numbers() -> None:
    text = headline(findings(UP, DOWN), findings(EITHER, DOWN), step_compute=1.234)
    assert "Accuracy +1.10 points (95% interval +0.85 to +1.35), " in text
    assert "NLL -0.0110 (95% interval -0.0135 to -0.0085)" in text
    assert "A step of R-Drop took 1.23 times the computation of a plain one." in text
    assert text.count("R-Drop was better than plain training of the same total computation in NLL;") == 1


def test_no_shared_seed_is_no_answer() -> None:
    assert headline([], findings(UP, DOWN), step_compute=1.1) == NO_ANSWER
    assert headline(findings(UP, DOWN), [], step_compute=None) == NO_ANSWER
