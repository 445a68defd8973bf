"""Encoder-decoder models: pretrained ones of transformers, or a Transformer of any size from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerBase,
)

from rdrop.errors import UserError
from rdrop.toolkit.pretrained import apply_dropout, from_pretrained, load_weights, saved_weights
from rdrop.toolkit.sequences.recipe import SequenceModel, SequenceRecipe

DROPOUT = 0.3  # of a network from scratch, as in the paper's translations between languages with little data


def build_sequence_model(recipe: SequenceRecipe, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """The network of a recipe; one from scratch is drawn from torch's global generator.

    Args:
        recipe: Which model, and how long its texts are.
        tokenizer: Its tokenizer.

    Raises:
        UserError: There is no such model, or it does not fit the tokenizer or the texts.
    """
    name, data = recipe.model.name, recipe.data
    lengths = {
        "data.max_source_length": data.max_source_length,
        "data.max_target_length": data.max_target_length,
        "generation.max_length": recipe.longest_output(),
    }
    if name is None:
        return _without_cache(_from_scratch(recipe.model, tokenizer, max(lengths.values())))
    built: Any = load_weights(AutoModelForSeq2SeqLM, name)
    positions = getattr(built.config, "max_position_embeddings", None)
    for key, length in lengths.items():
        if positions is not None and length > positions:
            raise UserError(
                f"{key} is {length:,}, but {name} (model.name) reads and writes at most {positions:,} tokens; set it "
                "to at most that"
            )
    if len(tokenizer) > built.get_input_embeddings().num_embeddings:
        raise UserError(
            f"model.name: the tokenizer of {name} has {len(tokenizer):,} tokens, its model only "
            f"{built.get_input_embeddings().num_embeddings:,}; expected the tokenizer that the model was trained with"
        )
    if built.config.decoder_start_token_id is None:
        raise UserError(
            f"model.name: {name} does not say which token its outputs start from (decoder_start_token_id); set it in "
            "its config.json, or choose another model"
        )
    return _without_cache(apply_dropout(built, recipe.model.dropout))


def _from_scratch(model: SequenceModel, tokenizer: PreTrainedTokenizerBase, longest: int) -> nn.Module:
    """A network whose encoder, decoder and output share one table of embeddings."""
    shared: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "d_model": model.d_model,
        "encoder_layers": model.encoder_layers,
        "decoder_layers": model.decoder_layers,
        "encoder_attention_heads": model.heads,
        "decoder_attention_heads": model.heads,
        "encoder_ffn_dim": model.ffn_dim,
        "decoder_ffn_dim": model.ffn_dim,
        "dropout": DROPOUT if model.dropout is None else model.dropout,
        "attention_dropout": model.attention_dropout,
        "activation_dropout": model.activation_dropout,
        "scale_embedding": True,
        "max_position_embeddings": longest + 1,  # the decoder reads the token that outputs start from
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.bos_token_id,
        "forced_eos_token_id": None,
    }
    if model.architecture == "bart":
        return BartForConditionalGeneration(BartConfig(**shared))
    return MarianMTModel(MarianConfig(activation_function="relu", **shared))


def _without_cache(model: Any) -> nn.Module:
    """The model, which keeps keys and values of the past only where an output is searched for."""
    model.config.use_cache = False
    built: nn.Module = model
    return built


def restore_sequence_model(folder: Path, model: SequenceModel) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """What `save_with_tokenizer` wrote.

    Args:
        folder: The folder.
        model: What the recipe says about it; the configuration of a pretrained one has the rates from before they
            were set.

    Raises:
        UserError: The folder holds no such model.
    """
    restored = saved_weights(AutoModelForSeq2SeqLM, folder)
    if model.name is not None:
        apply_dropout(restored, model.dropout)
    return _without_cache(restored), from_pretrained(AutoTokenizer, str(folder))
