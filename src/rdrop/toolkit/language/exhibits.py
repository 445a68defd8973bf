"""What perplexity does not show of a language model: how it writes, and what surprises it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerBase

from rdrop.integrations.objective_config import IGNORE_INDEX
from rdrop.toolkit.language.models import Continuation, continued
from rdrop.toolkit.language.token_blocks import Blocks
from rdrop.toolkit.summary import Listing

PROMPTS = 4
PROMPT_TOKENS = 32
HARDEST = 8
BEFORE = 12  # tokens that are shown before a hard one


def continuations(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Blocks, how: Continuation, context: int
) -> Listing:
    """Starts of blocks, how the text goes on, and how the model continues it; tokens are drawn from torch's generator.

    Args:
        model: A causal model.
        tokenizer: Its tokenizer.
        rows: The split.
        how: Length and temperature.
        context: Tokens that the model reads at most.
    """
    found = []
    for index in evenly_spread(len(rows), PROMPTS):
        ids = rows[index]["input_ids"].tolist()
        cut = min(PROMPT_TOKENS, context - how.tokens, len(ids) // 2)
        written = continued(model, tokenizer, ids[:cut], how, context)
        found.append([str(tokenizer.decode(part)) for part in (ids[:cut], ids[cut : cut + how.tokens], written)])
    drawn = f"drawn at temperature {how.temperature:g}" if how.temperature else "each the most probable one"
    return Listing(
        title="Continuations",
        reading=f"Starts of blocks of the split, how the text goes on, and up to {how.tokens} tokens that the model "
        f"puts there, {drawn}.",
        columns=["Text", "Goes on", "Continuation"],
        rows=found,
    )


def least_expected(
    tokenizer: PreTrainedTokenizerBase,
    rows: Blocks,
    nll: NDArray[np.floating[Any]],
    predicted: NDArray[np.integer[Any]],
    labels: NDArray[np.integer[Any]],
) -> Listing:
    """The tokens that the model held for least probable.

    Args:
        tokenizer: Its tokenizer.
        rows: The split, of N blocks of at most T tokens.
        nll: -log of the probability of the token after each position `(N, T)`, in nats.
        predicted: The most probable token after each position `(N, T)`.
        labels: Labels of the blocks `(N, T)`, not shifted.
    """
    losses = np.where(labels[:, 1:] == IGNORE_INDEX, -np.inf, nll[:, :-1])
    worst = np.argsort(-losses, axis=None, kind="stable")[:HARDEST]
    found = []
    for row, position in zip(*(axis.tolist() for axis in np.unravel_index(worst, losses.shape)), strict=True):
        if not np.isfinite(losses[row, position]):
            break  # fewer tokens than rows to show
        ids = rows[row]["input_ids"].tolist()
        before = str(tokenizer.decode(ids[max(0, position + 1 - BEFORE) : position + 1]))
        tokens = [_visible(tokenizer, token) for token in (ids[position + 1], int(predicted[row, position]))]
        found.append([before, *tokens, f"{losses[row, position]:.2f}"])
    return Listing(
        title="Least expected tokens",
        reading="The tokens of the split that the model held for least probable, what it held for most probable in "
        "their place, and -log of the probability that it gave to the token, in nats; the worst first.",
        columns=["Text before", "Token", "Most probable", "-log p"],
        rows=found,
    )


def evenly_spread(count: int, most: int) -> list[int]:
    """At most so many positions, evenly spread over a split.

    >>> evenly_spread(10, 4)
    [0, 3, 6, 9]
    """
    return [int(index) for index in np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))]


def _visible(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """The text of a token, with white space that is all of it made visible."""
    text = str(tokenizer.decode([token]))
    return text if text.strip() else text.replace("\n", "\u23ce").replace(" ", "\u2423")
