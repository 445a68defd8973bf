"""What numbers cannot show about a model of texts: the examples it gets most wrong, and how it does on each label.

Shapes: N examples, C classes or labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from rdrop.toolkit.summary import Listing

SHOWN = 20  # examples
CHARACTERS = 300  # of a text


def cut(text: str) -> str:
    """The beginning of a text that is too long to show.

    >>> len(cut("a" * 1000))
    300
    """
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 3] + "..."


def most_confidently_wrong(
    texts: Sequence[Sequence[str]],
    columns: Sequence[str],
    logits: NDArray[Any],
    labels: NDArray[Any],
    names: Sequence[str],
) -> Listing:
    """The examples whose wrong class had the highest probability.

    Args:
        texts: What to show of each example.
        columns: A heading for each part of it.
        logits: Unnormalised log-probabilities `(N, C)`.
        labels: Class ids `(N,)`.
        names: Names of the C classes.

    >>> listing = most_confidently_wrong([("Hm.",)], ["Text"], np.log([[0.8, 0.2]]), np.array([1]), ["bad", "good"])
    >>> listing.rows
    [['Hm.', 'good', 'bad', '80.0%']]
    """
    probabilities = softmax(logits.astype(np.float64), axis=-1)
    predicted, confidence = probabilities.argmax(-1), probabilities.max(-1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:SHOWN]
    return Listing(
        title="Most confidently wrong",
        reading=f"Of {len(wrong):,} wrong answers of {len(labels):,}, the ones with the highest confidence.",
        columns=[*columns, "Right", "Predicted", "Confidence"],
        rows=[
            [*map(cut, texts[i]), names[labels[i]], names[predicted[i]], f"{100 * confidence[i]:.1f}%"] for i in worst
        ],
    )


def largest_errors(
    texts: Sequence[Sequence[str]], columns: Sequence[str], predictions: NDArray[Any], targets: NDArray[Any]
) -> Listing:
    """The examples whose number was missed by most.

    Args:
        texts: What to show of each example.
        columns: A heading for each part of it.
        predictions: Predicted numbers `(N,)`.
        targets: The right ones `(N,)`.

    >>> largest_errors([("a",), ("b",)], ["Text"], np.array([1.0, 2.0]), np.array([1.5, 5.0])).rows[0]
    ['b', '5', '2', '-3']
    """
    errors = predictions.astype(np.float64) - targets
    worst = np.argsort(-np.abs(errors), kind="stable")[:SHOWN]
    return Listing(
        title="Largest errors",
        reading=f"Of {len(targets):,} examples, the ones whose number was missed by most.",
        columns=[*columns, "Right", "Predicted", "Error"],
        rows=[[*map(cut, texts[i]), f"{targets[i]:.4g}", f"{predictions[i]:.4g}", f"{errors[i]:.4g}"] for i in worst],
    )


def label_table(scores: Iterable[tuple[str, int, float, float, float]], noun: str) -> Listing:
    """Precision, recall and F1 of each label, the most frequent ones first.

    Args:
        scores: Name, count in the references, precision, recall and F1 of each label, the last three in 0..1.
        noun: What is counted, in the plural.

    >>> label_table([("joy", 4, 0.5, 0.25, 1 / 3)], "examples").rows
    [['joy', '4', '50.0%', '25.0%', '33.3%']]
    """
    ordered = sorted(scores, key=lambda score: -score[1])
    return Listing(
        title="Label by label",
        reading=f"Every label with its number of {noun}, the most frequent one first; what was never predicted has 0% "
        "precision.",
        columns=["Label", noun.capitalize(), "Precision", "Recall", "F1"],
        rows=[[name, f"{count:,}", *(f"{100 * value:.1f}%" for value in values)] for name, count, *values in ordered],
    )
