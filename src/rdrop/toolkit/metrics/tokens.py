"""What every kind of answer that consists of tokens is measured by."""

from __future__ import annotations

from rdrop.errors import UserError
from rdrop.toolkit.summary import Metric

TOKEN_NLL = Metric(
    name="nll",
    label="NLL",
    higher_is_better=False,
    percent=False,
    explanation="Negative log-likelihood: the mean over all target tokens of -log of the probability given to the "
    "right one, in nats.",
)
TOKEN_ACCURACY = Metric(
    name="token_accuracy",
    label="Token accuracy",
    higher_is_better=True,
    percent=True,
    explanation="Target tokens for which the most probable answer is the right one.",
)


def mean_nll(summed_nll: float, tokens: int) -> float:
    """Negative log-likelihood of a token, in nats, every token of the split having the same weight.

    Args:
        summed_nll: Sum over the tokens of -log of the probability given to the right one, in nats.
        tokens: How many tokens were summed.

    Returns:
        The mean.

    Raises:
        UserError: If there is no token.

    >>> mean_nll(6.0, 4)
    1.5
    """
    if tokens < 1:
        raise UserError(
            "there are no target tokens to score: every target of the split is empty; give it one that is not"
        )
    return summed_nll / tokens
