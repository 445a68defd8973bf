"""Texts that an encoder-decoder model writes, and the probability that it gives to them.

Shapes: B rows of a batch, S source tokens, T tokens of an output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig

from rdrop.integrations.objective_config import IGNORE_INDEX
from rdrop.stochastic import randomness_off, randomness_on
from rdrop.toolkit.recipe import Section

Batch = Mapping[str, Tensor]


class Generation(Section):
    """How outputs are searched for."""

    beams: Annotated[int, Field(ge=1, le=64)] = Field(
        default=5, description="Beams of the search; 1 takes the most probable token each time."
    )
    length_penalty: float = Field(
        default=1.0,
        description="Exponent of the length by which the log-probability of an output is divided; above 1 prefers long "
        "ones.",
    )
    max_length: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Most tokens of an output; null: as many as a target may have."
    )
    min_length: Annotated[int, Field(ge=0)] = Field(default=0, description="Fewest tokens of an output.")
    no_repeat_ngram: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Sequences of so many tokens occur only once in an output; 0: any may be repeated."
    )


def search(model: nn.Module, generation: Generation, max_length: int) -> GenerationConfig:
    """The settings of a search; tokens that a pretrained model forces or forbids stay forced or forbidden.

    Args:
        model: An encoder-decoder model of transformers.
        generation: The settings of the recipe.
        max_length: Most tokens of an output, where the recipe leaves it open.
    """
    host: Any = model
    found: Any = deepcopy(host.generation_config)
    found.update(
        num_beams=generation.beams,
        length_penalty=generation.length_penalty if generation.beams > 1 else None,
        # When as many outputs are complete as there are beams, the search is over, as in fairseq.
        early_stopping=True if generation.beams > 1 else None,
        max_new_tokens=generation.max_length or max_length,
        min_new_tokens=generation.min_length or None,
        no_repeat_ngram_size=generation.no_repeat_ngram or None,
        max_length=None,
        min_length=None,
        do_sample=False,
        use_cache=True,
    )
    config: GenerationConfig = found
    return config


def outputs(model: nn.Module, batch: Batch, config: GenerationConfig) -> Tensor:
    """Token ids `(B, T)` of the best output for each row, without the token that every output starts from.

    Args:
        model: An encoder-decoder model of transformers; dropout is off meanwhile.
        batch: `input_ids` and `attention_mask`, both `(B, S)`.
        config: What `search` gave.

    Returns:
        The ids up to and with the end of the text; behind it, -100.
    """
    host: Any = model
    with torch.no_grad(), randomness_off(model):
        ids: Tensor = host.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], generation_config=config
        )[:, 1:]
    ends = torch.isin(ids, torch.tensor(config.eos_token_id, device=ids.device)).long()
    return ids.masked_fill(ends.cumsum(1) - ends > 0, IGNORE_INDEX)


def log_probabilities(model: nn.Module, batch: Batch, samples: int) -> Iterator[Tensor]:
    """Log-probability that the model gives to each output of a batch as a whole, in nats.

    Args:
        model: An encoder-decoder model of transformers.
        batch: `input_ids`, `attention_mask`, `decoder_input_ids` and `labels` `(B, T)`, in which -100 does not count.
        samples: Dropout-on answers; 0 for one with dropout off.

    Yields:
        Sums over the counted positions `(B,)`, one for each answer.
    """
    inputs = {name: column for name, column in batch.items() if name != "labels"}
    with torch.no_grad(), randomness_on(model) if samples else randomness_off(model):
        for _ in range(max(1, samples)):
            yield -token_nll(model(**inputs)["logits"], batch["labels"]).sum(-1)


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """-log of the probability of each label, in nats, and 0 where the label is -100.

    Args:
        logits: `(B, T, C)`.
        labels: `(B, T)`.

    >>> token_nll(torch.zeros(1, 2, 4), torch.tensor([[3, -100]])).exp().tolist()
    [[4.0, 1.0]]
    """
    return cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), reduction="none").view_as(labels)
