"""The recipe of models that write a text for a text: the fields that translation and summarization share."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rdrop.toolkit.data.file_data import TableData
from rdrop.toolkit.recipe import Layers, Model, Rate, Recipe, Training, fault
from rdrop.toolkit.sequences.generated_text import Generation


class SequenceData(TableData):
    """What to train and test on."""

    max_source_length: Annotated[int, Field(ge=2)] = Field(
        default=128, description="Most tokens of a source; longer ones are cut, and counted."
    )
    max_target_length: Annotated[int, Field(ge=2)] = Field(
        default=128, description="Most tokens of a target in training and in the NLL; longer ones are cut, and counted."
    )
    consistency_rows: Annotated[int, Field(ge=1)] | None = Field(
        default=200,
        description="Rows of the judged split, the first ones, on which the consistency gap is measured; null: all.",
    )


class SequenceModel(Model):
    """The network."""

    name: str | None = Field(
        default=None,
        description="Pretrained encoder-decoder model: a local folder, or a name on the Hugging Face hub; null: a "
        "network from scratch, which the fields below describe, and a vocabulary learned from the training split.",
    )
    prefix: str = Field(default="", description='Put before every source, such as "summarize: " for T5.')
    architecture: Literal["marian", "bart"] = Field(
        default="marian",
        description="`marian`: the Transformer of 2017, with sinusoidal positions; `bart`: learned positions, "
        "normalised embeddings and GELU.",
    )
    vocab_size: Annotated[int, Field(ge=259)] = Field(
        default=8000, description="Tokens of the vocabulary that source and target share (byte-pair encoding)."
    )
    d_model: Annotated[int, Field(ge=2)] = Field(default=256, description="Width of the network.")
    encoder_layers: Layers = Field(default=3, description="Layers of the encoder.")
    decoder_layers: Layers = Field(default=3, description="Layers of the decoder.")
    heads: Annotated[int, Field(ge=1)] = Field(default=4, description="Attention heads of each layer.")
    ffn_dim: Annotated[int, Field(ge=1)] = Field(default=1024, description="Width inside the feed-forward layers.")
    dropout: Rate | None = Field(
        default=None,
        description="Probability of dropping a unit: of embeddings and of what each sublayer adds in a network from "
        "scratch, in every dropout layer of a pretrained one. null: 0.3 from scratch, else the network's own rates.",
    )
    attention_dropout: Rate = Field(
        default=0.0, description="Probability of dropping an attention weight in a network from scratch."
    )
    activation_dropout: Rate = Field(
        default=0.0, description="Probability of dropping a unit inside a feed-forward layer from scratch."
    )


class SequenceTraining(Training):
    """How a run is trained; the same for every arm."""

    batching: Literal["random", "length", "tokens"] = Field(
        default="tokens",
        description="`random`: batches of `batch_size` examples, which `data.streaming` needs; `length`: examples of "
        "about one length together; `tokens`: the same, with as many examples as `batch_tokens` and `batch_size` "
        "allow.",
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(
        default=32, description="Examples in a step; where `batching` is `tokens`, at most."
    )
    batch_tokens: Annotated[int, Field(ge=1)] = Field(
        default=4096,
        description="Most tokens in a batch, padding included, of its sources and of its targets, where `batching` is "
        "`tokens`.",
    )


class SequenceRecipe(Recipe):
    """A complete comparison of models that write a text for a text."""

    data: SequenceData = Field(default=SequenceData(), description="What to train and test on.")
    model: SequenceModel = Field(default=SequenceModel(), description="The network.")
    training: SequenceTraining = Field(
        default=SequenceTraining(), description="How a run is trained; the same for every arm."
    )
    generation: Generation = Field(default=Generation(), description="How outputs are searched for.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        model, data, training = self.model, self.data, self.training
        if model.d_model % model.heads:
            raise fault(
                f"got {model.heads}, expected a number that divides model.d_model, which is {model.d_model}",
                "model.heads",
                "model.d_model",
            )
        if data.streaming and training.batching != "random":
            raise fault(
                f"got {training.batching}, but of a streamed training split the lengths are not known; write random",
                "training.batching",
                "data.streaming",
            )
        longest = max(data.max_source_length, data.max_target_length)
        if training.batching == "tokens" and training.batch_tokens < longest:
            raise fault(
                f"got {training.batch_tokens}, expected at least {longest}, the longest text of "
                "data.max_source_length and data.max_target_length",
                "training.batch_tokens",
                "data.max_source_length",
                "data.max_target_length",
            )
        if self.generation.min_length > self.longest_output():
            raise fault(
                f"got {self.generation.min_length}, expected at most {self.longest_output()}, the most tokens of an "
                "output",
                "generation.min_length",
                "generation.max_length",
                "data.max_target_length",
            )
        return self

    def longest_output(self) -> int:
        """Most tokens of an output."""
        return self.generation.max_length or self.data.max_target_length

    def without_dropout_twice_is_plain(self) -> bool:
        """From scratch there are other rates than `model.dropout`."""
        model = self.model
        return model.name is not None or model.attention_dropout == model.activation_dropout == 0
