"""Encoders of texts with their tokenizers: pretrained ones of transformers, or a small BERT from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import AutoConfig, AutoTokenizer, BertConfig, PreTrainedTokenizerBase

from rdrop.errors import UserError
from rdrop.toolkit.pretrained import apply_dropout, from_pretrained, load_weights, saved_weights
from rdrop.toolkit.recipe import Layers, Model, fault
from rdrop.toolkit.text.vocabulary import BOS, EOS, train_vocabulary

Count = Annotated[int, Field(ge=1)]


class EncoderModel(Model):
    """The network."""

    name: str | None = Field(
        default="bert-base-uncased",
        description="An encoder of transformers: a folder, or a name on the Hugging Face hub. null: a small BERT from "
        "scratch, of the sizes below.",
    )
    vocabulary_size: Annotated[int, Field(ge=300)] = Field(
        default=8000,
        description="Tokens of the vocabulary that a model from scratch learns from the training examples.",
    )
    width: Count = Field(default=128, description="Length of a token's vector in a model from scratch.")
    layers: Layers = Field(default=2, description="Layers of a model from scratch.")
    heads: Count = Field(
        default=2, description="Attention heads in a layer of a model from scratch; they share the width evenly."
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


def encoder_tokenizer(
    model: EncoderModel, texts: Iterable[str], max_length: int, *, in_words: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a recipe's model.

    Args:
        model: Which model.
        texts: Training texts; a model from scratch learns its vocabulary from them.
        max_length: Tokens of an example at most.
        in_words: Whether examples come as lists of words.

    Raises:
        UserError: There is no such tokenizer, or the model cannot read examples of that length.

    >>> tokenizer = encoder_tokenizer(EncoderModel(name=None, vocabulary_size=300), ["a rose"], max_length=16)
    >>> tokenizer.convert_ids_to_tokens(tokenizer("a", "o")["input_ids"])
    ['<s>', 'a', '</s>', 'o', '</s>']
    """
    if model.name is None:
        tokenizer: PreTrainedTokenizerBase = train_vocabulary(texts, "bpe", model.vocabulary_size)
        ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (BOS, EOS)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{BOS} $A {EOS}", pair=f"{BOS} $A {EOS} $B:1 {EOS}:1", special_tokens=ids
        )
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # what is saved
        return tokenizer
    tokenizer = usable_tokenizer(model.name, in_words=in_words)
    positions = getattr(from_pretrained(AutoConfig, model.name), "max_position_embeddings", None) or 0
    limits = [limit for limit in (tokenizer.model_max_length, positions) if limit > 0]
    if max_length > min(limits, default=max_length):
        raise UserError(
            f"data.max_length is {max_length}, but {model.name} (model.name) reads {min(limits)} tokens at most; "
            "set data.max_length to at most that"
        )
    return tokenizer


def usable_tokenizer(name: str, *, in_words: bool = False) -> PreTrainedTokenizerBase:
    """A pretrained tokenizer that pads, and that tells which word a token belongs to.

    Args:
        name: A folder, or a name on the hub.
        in_words: Whether texts come as lists of words.

    Raises:
        UserError: There is none.
    """
    # Byte-level vocabularies tell the beginning of a word by the space before it, which words in a list have not.
    options = {"add_prefix_space": True} if in_words else {}
    tokenizer: PreTrainedTokenizerBase = from_pretrained(AutoTokenizer, name, **options)
    if not tokenizer.is_fast:
        raise UserError(
            f"model.name: the tokenizer of {name} has no tokenizer.json, so it cannot tell where its tokens come from; "
            "choose a model whose tokenizer has one"
        )
    if tokenizer.pad_token is None:  # models that only continue texts
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def build_encoder(
    auto: Any, model: EncoderModel, tokenizer: PreTrainedTokenizerBase, max_length: int, **options: Any
) -> nn.Module:
    """The network of a recipe; what is not pretrained is drawn from torch's global generator.

    Args:
        auto: A class such as `transformers.AutoModelForSequenceClassification`.
        model: Which model.
        tokenizer: Its tokenizer.
        max_length: Tokens of an example at most.
        **options: Fields of its configuration: the labels, the kind of problem.

    Raises:
        UserError: There is no such model.
    """
    options["pad_token_id"] = tokenizer.pad_token_id
    if model.name is None:
        sizes = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=model.width,
            num_hidden_layers=model.layers,
            num_attention_heads=model.heads,
            intermediate_size=4 * model.width,
            max_position_embeddings=max_length,
            **options,
        )
        built: nn.Module = auto.from_config(sizes)
    else:
        # The head of a model that was trained for other classes is replaced.
        built = load_weights(auto, model.name, ignore_mismatched_sizes=True, **options)
    return apply_dropout(built, model.dropout)


def label_options(names: Sequence[str]) -> dict[str, Any]:
    """The part of a configuration that names the labels.

    >>> label_options(["no", "yes"])["id2label"]
    {0: 'no', 1: 'yes'}
    """
    id2label = dict(enumerate(names))
    return {"num_labels": len(names), "id2label": id2label, "label2id": {name: i for i, name in id2label.items()}}


def restore_encoder(
    auto: Any,
    folder: Path,
    dropout: float | None,
    *,
    loaded: tuple[PreTrainedTokenizerBase | None, tuple[str, ...]],
    problem_type: str | None = None,
    in_words: bool = False,
) -> tuple[nn.Module, PreTrainedTokenizerBase, tuple[str, ...]]:
    """What `save_with_tokenizer` wrote.

    Args:
        auto: The class that the model was built by.
        folder: The folder.
        dropout: `model.dropout` of the recipe; the configuration has the rates from before it was applied.
        loaded: The tokenizer and the names of the labels by which data were loaded before; None if none were.
        problem_type: The one that the configuration must have; None: any.
        in_words: Whether examples come as lists of words.

    Returns:
        The model, its tokenizer and the names of its labels.

    Raises:
        UserError: The folder holds no such model, or data were loaded for another one.
    """
    model: Any = saved_weights(auto, folder)
    config, tokenizer = model.config, usable_tokenizer(str(folder), in_words=in_words)
    if problem_type is not None and config.problem_type != problem_type:
        raise UserError(
            f"{folder / 'config.json'}: problem_type is {config.problem_type}, but data.answer needs {problem_type}; "
            "the model belongs to another recipe"
        )
    names = tuple(config.id2label[index] for index in range(config.num_labels))
    before, names_before = loaded
    if before is not None and (names_before != names or before.get_vocab() != tokenizer.get_vocab()):
        what = "labels" if names_before != names else "vocabulary"
        raise UserError(
            f"{folder}: the {what} of the model and of the training split differ; evaluate the model with "
            "the data.train, data.train_size and seed that it was trained with"
        )
    return apply_dropout(model, dropout), tokenizer, names


def first_output(outputs: Any) -> Any:
    """The logits among what a model returned in evaluation; some return states of their encoder beside them."""
    return outputs[0] if isinstance(outputs, tuple | list) else outputs


def model_inputs(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the model reads of a row, and its labels if it has any."""
    return {name: row[name] for name in (*tokenizer.model_input_names, "labels") if name in row}
