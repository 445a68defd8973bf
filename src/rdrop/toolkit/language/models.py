"""Causal language models: pretrained ones of transformers, or a GPT-2 of any size from scratch; and what they write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
)

from rdrop.errors import UserError
from rdrop.stochastic import randomness_off
from rdrop.toolkit.pretrained import apply_dropout, from_pretrained, load_weights, quiet_loading, saved_weights
from rdrop.toolkit.recipe import Layers, Model, Rate, Section, fault

Count = Annotated[int, Field(ge=1)]


class CausalModel(Model):
    """The network."""

    name: str | None = Field(
        default=None,
        description="A causal language model of transformers: a folder, or a name on the Hugging Face hub. null: a "
        "GPT-2 from scratch, of the sizes below.",
    )
    width: Count = Field(default=128, description="Length of a token's vector in a model from scratch.")
    layers: Layers = Field(default=4, description="Layers of a model from scratch.")
    heads: Count = Field(
        default=4, description="Attention heads in a layer of a model from scratch; they share the width evenly."
    )
    dropout: Rate | None = Field(
        default=0.1,
        description="Probability of dropping a unit, in every dropout layer: of embeddings, attention and residual "
        "branches; null leaves the network's own rates.",
    )

    @model_validator(mode="after")
    def _even(self) -> Self:
        if self.width % self.heads:
            raise fault(
                f"got {self.heads}, expected a number that divides model.width, which is {self.width}",
                "model.heads",
                "model.width",
            )
        return self


class Continuation(Section):
    """How prompts are continued, by `rdrop predict` and in the report."""

    tokens: Annotated[int, Field(ge=1)] = Field(
        default=40, description="Most tokens of a continuation; it ends earlier where the document does."
    )
    temperature: Annotated[float, Field(ge=0, le=10)] = Field(
        default=0.8, description="Divides the logits before a token is drawn; 0: always the most probable token."
    )


def build_causal(model: CausalModel, tokenizer: PreTrainedTokenizerBase, block_size: int) -> nn.Module:
    """The network of a recipe; one from scratch is drawn from torch's global generator.

    Args:
        model: Which model.
        tokenizer: Its tokenizer.
        block_size: Tokens that it has to read at a time.

    Raises:
        UserError: There is no such model, or it does not fit the tokenizer or the blocks, or is not causal.
    """
    if model.name is None:
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=block_size,
            n_embd=model.width,
            n_layer=model.layers,
            n_head=model.heads,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return apply_dropout(_telling_its_loss(GPT2LMHeadModel(config)), model.dropout)
    built: Any = _telling_its_loss(load_weights(AutoModelForCausalLM, model.name))
    positions = getattr(built.config, "max_position_embeddings", None) or block_size
    if block_size > positions:
        raise UserError(
            f"data.block_size is {block_size}, but {model.name} (model.name) reads {positions} tokens at most; set it "
            "to at most that"
        )
    if len(tokenizer) > built.get_input_embeddings().num_embeddings:
        raise UserError(
            f"model.name: the tokenizer of {model.name} has {len(tokenizer):,} tokens, its model only "
            f"{built.get_input_embeddings().num_embeddings:,}; expected the tokenizer that the model was trained with"
        )
    if not _is_causal(built):
        raise UserError(
            f"model.name: what {model.name} says about a token depends on the tokens after it, so it would be given "
            "the answers; expected a causal language model such as GPT-2"
        )
    return apply_dropout(built, model.dropout)


def _telling_its_loss(model: Any) -> nn.Module:
    """The model; transformers cannot guess the loss of every class from its name, not that of GPT-2, and would warn."""
    model.loss_type = model.loss_type or "ForCausalLM"
    built: nn.Module = model
    return built


def _is_causal(model: nn.Module) -> bool:
    """Whether the logits of a position do not change with the token after it."""
    with torch.no_grad(), randomness_off(model):
        first, second = model(input_ids=torch.tensor([[0, 1], [0, 2]]))["logits"][:, 0]
    return torch.allclose(first, second, atol=1e-4)


def pretrained_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a causal model, able to pad.

    Args:
        name: A folder, or a name on the hub.

    Raises:
        UserError: There is none, or it has no token for the end of a document.
    """
    tokenizer: PreTrainedTokenizerBase = from_pretrained(AutoTokenizer, name)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model.name: the tokenizer of {name} has no token for the end of a document; expected one with eos_token"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def restore_causal(folder: Path, dropout: float | None) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """What `save_with_tokenizer` wrote.

    Args:
        folder: The folder.
        dropout: `model.dropout` of the recipe; the configuration has the rates from before it was applied.

    Raises:
        UserError: The folder holds no such model.
    """
    model: Any = _telling_its_loss(saved_weights(AutoModelForCausalLM, folder))
    saved = ", ".join(model.config.architectures or ["model of no name"])
    if type(model).__name__ != saved:
        raise UserError(
            f"{folder} holds a {saved}, expected a {type(model).__name__}; the folder belongs to another recipe"
        )
    return apply_dropout(model, dropout), pretrained_tokenizer(str(folder))


def continued(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], how: Continuation, context: int
) -> list[int]:
    """What a model writes after a prompt, with dropout off.

    Tokens are drawn from torch's global generator unless the temperature is 0.

    Args:
        model: A causal model.
        tokenizer: Its tokenizer.
        prompt: Token ids, at least one; of a long prompt the last ones are read.
        how: Length and temperature.
        context: Tokens that the model reads at most, more than `how.tokens`.

    Returns:
        Token ids, without the prompt; the last one is that of the document's end where the model came to it.
    """
    host: Any = model
    ids = torch.tensor([list(prompt[how.tokens - context :])], device=next(model.parameters()).device)
    no_text = {tokenizer.pad_token_id, tokenizer.bos_token_id} - {tokenizer.eos_token_id, None}
    drawing = {"do_sample": True, "temperature": how.temperature, "top_k": 0} if how.temperature else {}
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=how.tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        suppress_tokens=sorted(no_text) or None,
        use_cache=True,
        **drawing,
    )
    # quiet: transformers warns where a prompt begins with the token that also pads, as with GPT-2.
    with torch.no_grad(), randomness_off(model), quiet_loading():
        written = host.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    found: list[int] = written[0, ids.size(1) :].tolist()
    return found
