"""The next token of a text: perplexity, likelihood and accuracy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdrop.toolkit.metrics.tokens import TOKEN_ACCURACY, TOKEN_NLL, mean_nll
from rdrop.toolkit.summary import Metric

IGNORED = -100  # the label of a position that does not count, as in torch and transformers

LANGUAGE_METRICS = (
    Metric(
        name="perplexity",
        label="Perplexity",
        higher_is_better=False,
        percent=False,
        explanation="exp of the NLL: among how many equally probable tokens the model is left to guess.",
    ),
    TOKEN_NLL,
    TOKEN_ACCURACY,
)

BITS_PER_CHARACTER = Metric(
    name="bits_per_character",
    label="Bits per character",
    higher_is_better=False,
    percent=False,
    explanation="Negative log-likelihood of the whole text, in bits, by the number of its characters; it compares "
    "models of different vocabularies.",
)


def language_metrics(
    nll: NDArray[np.floating[Any]],
    predicted: NDArray[np.integer[Any]],
    labels: NDArray[np.integer[Any]],
    characters: int | None = None,
) -> dict[str, float]:
    """Scores of next-token predictions, those of `LANGUAGE_METRICS`.

    Every token has the same weight, whatever batch or block it stood in:

        nll = sum over counted positions of nll / their number,  perplexity = exp(nll)

    Args:
        nll: -log of the probability given to the label of each position, in nats; any shape.
        predicted: Most probable token of each position, of the same shape.
        labels: The token to predict at each position (so already shifted by one), of the same shape; -100 does not
            count, whatever stands there in `nll` and `predicted`.
        characters: How many characters the counted tokens stand for; adds `bits_per_character`.

    Returns:
        `perplexity` (inf from an `nll` of about 710 on), `nll` and `token_accuracy`, and `bits_per_character` where
        `characters` is given.

    Raises:
        UserError: If no position counts.
        ValueError: If the shapes differ, or `characters` is below 1.

    >>> half, sure = -np.log(0.5), 0.0
    >>> nll = np.array([[half, half], [sure, 9.9]])
    >>> language_metrics(nll, np.array([[4, 5], [6, 0]]), np.array([[4, 7], [6, -100]]), characters=8)["perplexity"]
    1.5874010519681994
    """
    if not nll.shape == predicted.shape == labels.shape:
        raise ValueError(f"got nll {nll.shape}, predicted {predicted.shape}, labels {labels.shape}; expected one shape")
    if characters is not None and characters < 1:
        raise ValueError(f"characters is {characters}; expected a count of at least 1")
    counts = labels != IGNORED
    summed = float(nll[counts].sum(dtype=np.float64))
    mean = mean_nll(summed, int(counts.sum()))
    with np.errstate(over="ignore"):  # a model that is this far off has a perplexity without bound
        perplexity = float(np.exp(np.float64(mean)))
    scores = {
        "perplexity": perplexity,
        "nll": mean,
        "token_accuracy": float((predicted == labels)[counts].mean()),
    }
    if characters is not None:
        scores["bits_per_character"] = summed / math.log(2) / characters
    return scores
