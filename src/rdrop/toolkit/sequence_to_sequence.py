"""What translation and summarization share: encoder-decoder models that write a text for a text.

Shapes: B rows of a batch, S source tokens, T target tokens, C tokens of the vocabulary, N rows of a split.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from rdrop.errors import UserError
from rdrop.integrations.transformers import IGNORE_INDEX, RDropTrainer
from rdrop.toolkit.file_data import TableData, draw, hold_out, named_path, split_seed
from rdrop.toolkit.generated_text import Generation, log_probabilities, outputs, search, token_nll
from rdrop.toolkit.length_batches import BatchedRows, LengthBatches, LengthBatchTrainer
from rdrop.toolkit.metrics.language import language_metrics
from rdrop.toolkit.pretrained import apply_dropout, from_pretrained, load_weights
from rdrop.toolkit.recipe import Model, Rate, Recipe, Training, fault
from rdrop.toolkit.rows import BadRows, Row, text_value
from rdrop.toolkit.summary import Exhibit, Listing
from rdrop.toolkit.tables import read_table
from rdrop.toolkit.task import Evaluation, Rows, Splits, Task
from rdrop.toolkit.text_lines import text_lines
from rdrop.toolkit.text_pairs import TextPair, TokenLimit, read_pairs, token_rows
from rdrop.toolkit.vocabulary import train_vocabulary

DROPOUT = 0.3  # of a network from scratch, as in the paper's translations of small data
SHOWN = 12  # examples in a listing
SHOWN_CHARACTERS = 400  # of a text in a listing


class SequenceData(TableData):
    """What to train and test on."""

    max_source_length: Annotated[int, Field(ge=2)] = Field(
        default=128, description="Most tokens of a source; longer ones are cut, and counted."
    )
    max_target_length: Annotated[int, Field(ge=2)] = Field(
        default=128, description="Most tokens of a target in training and in the NLL; longer ones are cut, and counted."
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
    encoder_layers: Annotated[int, Field(ge=1)] = Field(default=3, description="Layers of the encoder.")
    decoder_layers: Annotated[int, Field(ge=1)] = Field(default=3, description="Layers of the decoder.")
    heads: Annotated[int, Field(ge=1)] = Field(default=4, description="Attention heads of each layer.")
    ffn_dim: Annotated[int, Field(ge=1)] = Field(default=1024, description="Width inside the feed-forward layers.")
    dropout: Rate | None = Field(
        default=None,
        description="Probability of dropping a unit: of embeddings and of what each sublayer adds in a network from "
        "scratch, in every dropout layer of a pretrained one. null: 0.3 from scratch, a pretrained network's own rates.",
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
        description="`random`: batches of `batch_size` examples; `length`: examples of about one length together; "
        "`tokens`: the same, with as many examples as `batch_tokens` and `batch_size` allow.",
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(
        default=32, description="Examples in a step; where `batching` is `tokens`, at most."
    )
    batch_tokens: Annotated[int, Field(ge=1)] = Field(
        default=4096,
        description="Most tokens in a batch, padding included, of its sources and of its targets, where `batching` is "
        "`tokens`.",
    )
    consistency_rows: Annotated[int, Field(ge=1)] | None = Field(
        default=200,
        description="Rows of the judged split, the first ones, on which the consistency gap is measured; null: all.",
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
            raise fault(f"got {model.heads}, expected a divisor of model.d_model, {model.d_model}", "model.heads")
        if model.architecture == "marian" and model.d_model % 2:
            raise fault(f"got {model.d_model}, expected an even number for sinusoidal positions", "model.d_model")
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


R = TypeVar("R", bound=SequenceRecipe)


class SequenceTask(Task[R]):
    """Texts written for texts.

    Args:
        recipe: A checked recipe of the family.
    """

    trainer_class = LengthBatchTrainer
    OUTPUT: ClassVar[str]
    """What an output is called, in a word."""

    def __init__(self, recipe: R) -> None:
        super().__init__(recipe)
        self.tokenizer: PreTrainedTokenizerBase
        self.start: int
        """The token that every output starts from."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, str]:
        """The columns of sources and of targets."""

    @abstractmethod
    def text_metrics(
        self, written: Sequence[str], references: Sequence[Sequence[str]], summed_nll: float, tokens: int
    ) -> dict[str, float]:
        """The metrics of the outputs, one for each row, and of the likelihood of the targets."""

    @property
    def further_references(self) -> str | None:
        """The column with further references in validation and test tables."""
        return None

    def load(self, seed: int) -> Splits:
        """Token ids of sources and targets; the other splits have their texts beside them.

        Args:
            seed: Seed of what is drawn, unless the recipe has its own, and of the batches.

        Raises:
            UserError: The data are not what the recipe says; the message names file and row.
        """
        data, draws = self.recipe.data, split_seed(self.recipe.data, seed)
        bad_rows = BadRows(data.on_bad_row)
        training, validation, test = (self._pairs(key, bad_rows) for key in ("train", "validation", "test"))
        assert training is not None
        kept = np.arange(len(training))
        if validation is None and data.validation_fraction > 0:
            kept, held_out = hold_out(None, len(training), data.validation_fraction, draws, name=data.train)
            validation = [training[index] for index in held_out]
        elif validation is None and test is None:
            raise UserError(
                "data.validation and data.test are null and data.validation_fraction is 0, so nothing is left to judge "
                "the runs on; set one of them"
            )
        kept = draw(None, kept, data.train_size, draws, name=data.train)
        training = [training[index] for index in kept]
        self.tokenizer = self._tokenizer(training)
        notes = bad_rows.sentences()
        rows = {
            name: None if pairs is None else self._rows(pairs, name, notes)
            for name, pairs in (("training", training), ("validation", validation), ("test", test))
        }
        return Splits(
            train=self._batched(rows["training"], seed),
            validation=rows["validation"],
            test=rows["test"],
            description=self._description(rows),
            notes=tuple(notes),
        )

    def _pairs(self, key: str, bad_rows: BadRows) -> list[TextPair] | None:
        """The pairs of the table that a key of the recipe names."""
        data, path = self.recipe.data, named_path(self.recipe.data, key)
        if path is None:
            return None
        extra = self.further_references if key != "train" else None
        rows = read_table(
            path,
            [*self.columns, *([extra] if extra else [])],
            delimiter=data.delimiter,
            quoting=data.quoting,
            encoding=data.encoding,
            bad_rows=bad_rows,
        )
        return read_pairs(rows, *self.columns, references=extra, bad_rows=bad_rows)

    def _tokenizer(self, training: Sequence[TextPair]) -> PreTrainedTokenizerBase:
        model = self.recipe.model
        if model.name is not None:
            loaded: PreTrainedTokenizerBase = from_pretrained(AutoTokenizer, model.name)
            return loaded
        texts = chain.from_iterable((model.prefix + pair.source, pair.target) for pair in training)
        return train_vocabulary(texts, "bpe", model.vocab_size, append_end=True)

    def _limits(self) -> tuple[TokenLimit, TokenLimit]:
        """What makes tokens of sources and of targets."""
        data = self.recipe.data
        return (
            TokenLimit(self.tokenizer, data.max_source_length, prefix=self.recipe.model.prefix),
            TokenLimit(self.tokenizer, data.max_target_length, is_target=True),
        )

    def _rows(self, pairs: Sequence[TextPair], split: str, notes: list[str]) -> Dataset:
        """A split as tokens; notes get a sentence on what was cut. Texts are kept where they will be shown or scored."""
        source, target = self._limits()
        rows = token_rows(pairs, source, target)
        for limit, key in ((source, "max_source_length"), (target, "max_target_length")):
            if limit.cut:
                notes.append(
                    f"{limit.cut:,} of {limit.read:,} {'targets' if limit.is_target else 'sources'} of the {split} split "
                    f"were cut to {limit.most} tokens (data.{key})."
                )
        if split == "training":
            return rows
        rows = rows.add_column("source", [pair.source for pair in pairs])
        return rows.add_column("references", [pair.references for pair in pairs])

    def _batched(self, rows: Dataset, seed: int) -> Rows:
        training = self.recipe.training
        if training.batching == "random":
            return rows
        lengths = [max(map(len, pair)) for pair in zip(rows["input_ids"], rows["labels"], strict=True)]
        tokens = training.batch_tokens if training.batching == "tokens" else None
        return BatchedRows(rows, LengthBatches(lengths, rows=training.batch_size, tokens=tokens, seed=seed))

    def _description(self, rows: Mapping[str, Dataset | None]) -> str:
        data = self.recipe.data
        counts = [f"{len(split):,} {name} pairs" for name, split in rows.items() if split is not None]
        held_out = (
            "" if data.validation is not None or rows["validation"] is None else ", the validation pairs held out of it"
        )
        tokens = "" if self.recipe.model.name else f"; a vocabulary of {len(self.tokenizer):,} tokens learned from them"
        return f"{data.train}{held_out}: {', '.join(counts)}{tokens}."

    def batches_per_epoch(self, train: Rows) -> int | None:
        """Those of the sampler, where there is one."""
        return len(train.batches) if isinstance(train, BatchedRows) else super().batches_per_epoch(train)

    def build_model(self) -> nn.Module:
        """The network from scratch, or the pretrained one."""
        model = self._pretrained(self.recipe.model.name) if self.recipe.model.name else self._from_scratch()
        return self._ready(model)

    def _from_scratch(self) -> nn.Module:
        model, tokenizer = self.recipe.model, self.tokenizer
        longest = max(
            self.recipe.data.max_source_length, self.recipe.data.max_target_length, self.recipe.longest_output()
        )
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
            "max_position_embeddings": longest + 1,
            "scale_embedding": True,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "decoder_start_token_id": tokenizer.bos_token_id,
            "forced_eos_token_id": None,
        }
        if model.architecture == "bart":
            return BartForConditionalGeneration(BartConfig(**shared))
        return MarianMTModel(MarianConfig(activation_function="relu", **shared))

    def _pretrained(self, name: str) -> nn.Module:
        """A model of transformers with the rates of the recipe, if it can read and write texts of these lengths."""
        model = load_weights(AutoModelForSeq2SeqLM, name)
        config: Any = model.config
        if config.decoder_start_token_id is None:
            raise UserError(
                f"model.name: {name} does not say which token its outputs start from (decoder_start_token_id); set it in "
                "its config.json, or choose another model"
            )
        data = self.recipe.data
        lengths = {"data.max_source_length": data.max_source_length, "data.max_target_length": data.max_target_length}
        limit = getattr(config, "max_position_embeddings", None)
        for key, length in (lengths | {"generation.max_length": self.recipe.longest_output()}).items():
            if limit is not None and length > limit:
                raise UserError(f"{key} is {length:,}, but {name} reads and writes at most {limit:,} tokens; lower it")
        return apply_dropout(model, self.recipe.model.dropout)

    def _ready(self, model: nn.Module) -> nn.Module:
        """The model, which is asked for keys and values of the past only where an output is searched for."""
        config: Any = model.config
        config.use_cache = False
        self.start = config.decoder_start_token_id
        return model

    def collate(self, rows: Any) -> dict[str, Tensor]:
        """Sources `(B, S)`, and where there are targets, labels `(B, T)` and what the decoder reads `(B, T)`."""
        sources = [torch.tensor(row["input_ids"]) for row in rows]
        batch = {
            "input_ids": pad_sequence(sources, batch_first=True, padding_value=self._pad()),
            "attention_mask": pad_sequence([torch.ones_like(ids) for ids in sources], batch_first=True),
        }
        if "labels" not in rows[0]:
            return batch
        targets = [torch.tensor(row["labels"]) for row in rows]
        return self._with_labels(batch, pad_sequence(targets, batch_first=True, padding_value=IGNORE_INDEX))

    def _with_labels(self, batch: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """The batch with labels `(B, T)` and the decoder's input.

        Models make that input from labels, which they are not given by a Trainer that smooths labels.
        """
        shifted = labels.roll(1, dims=1)
        shifted[:, 0] = self.start
        return {
            **batch,
            "decoder_input_ids": shifted.masked_fill(shifted == IGNORE_INDEX, self._pad()),
            "labels": labels,
        }

    def _pad(self) -> int:
        pad = self.tokenizer.pad_token_id
        assert isinstance(pad, int)
        return pad

    def scores(self, logits: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        """NLL of the right token and the most probable one, both `(B, T)`: C values for each position would be many."""
        found = logits[0] if isinstance(logits, tuple) else logits  # the encoder's states come along
        return token_nll(found, labels), found.argmax(-1)

    def measure(self, scores: Any, labels: NDArray[Any]) -> dict[str, float]:
        """Likelihood of the targets, each token of which is predicted from the right ones before it."""
        nll, predicted = scores
        return language_metrics(nll, predicted, labels)

    def evaluate(self, trainer: RDropTrainer, rows: Rows, *, seed: int, exhibits: bool) -> Evaluation:
        """Metrics of the outputs and of the likelihood, the consistency gap, and examples."""
        prediction = trainer.predict(rows)
        nll, _ = prediction.predictions
        counts = np.asarray(prediction.label_ids) != IGNORE_INDEX
        summed = np.where(counts, nll, 0.0).sum(1, dtype=np.float64)
        model: Any = trainer.model
        written = self.write(model, rows)
        metrics = self.text_metrics(written, rows["references"], float(summed.sum()), int(counts.sum()))
        limit = self.recipe.training.consistency_rows or len(rows)
        gap = self.consistency(trainer, rows.select(range(min(limit, len(rows)))), seed)
        return Evaluation(
            metrics | gap, exhibits=self._listings(rows, written, summed / counts.sum(1)) if exhibits else []
        )

    def write(self, model: nn.Module, rows: Rows) -> list[str]:
        """An output for each row; rows of about one length are searched together."""
        order = np.argsort([-len(ids) for ids in rows["input_ids"]], kind="stable").tolist()
        found = [""] * len(order)
        config = search(model, self.recipe.generation, self.recipe.longest_output())
        batches = self.batches(rows.select(order).select_columns("input_ids"), model)
        written = chain.from_iterable(self._texts(outputs(model, batch, config)) for batch in batches)
        for index, text in zip(order, written, strict=True):
            found[index] = text
        return found

    def _texts(self, ids: Tensor) -> list[str]:
        """What ids `(B, T)` spell."""
        texts: list[str] = self.tokenizer.batch_decode(
            ids.masked_fill(ids == IGNORE_INDEX, self._pad()), skip_special_tokens=True
        )
        return [text.strip() for text in texts]

    def _listings(self, rows: Rows, written: Sequence[str], nll: NDArray[np.float64]) -> list[Exhibit]:
        """The first examples, and those whose targets are least probable."""
        columns = ["Source", "Reference", self.OUTPUT.capitalize(), "NLL"]

        def listing(title: str, reading: str, indices: Sequence[int]) -> Listing:
            shown = [
                [*map(_shortened, (row["source"], row["references"][0], written[index])), f"{nll[index]:.2f}"]
                for index, row in zip(indices, rows.select(indices), strict=True)
            ]
            return Listing(title=title, reading=reading, columns=columns, rows=shown)

        worst = np.argsort(-nll, kind="stable")[:SHOWN].tolist()
        likelihood = "NLL is that of the reference, for each of its tokens, in nats"
        return [
            listing("Examples", f"The first rows; {likelihood}.", range(min(SHOWN, len(rows)))),
            listing(
                "Least probable references", f"Rows whose reference surprises the model most; {likelihood}.", worst
            ),
        ]

    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes a folder of transformers: configuration, weights and tokenizer."""
        host: Any = model
        host.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def restore(self, folder: Path) -> nn.Module:
        """The model and the tokenizer of the folder."""
        self.tokenizer = from_pretrained(AutoTokenizer, str(folder))
        model = load_weights(AutoModelForSeq2SeqLM, str(folder))
        # A configuration does not know the rates that were set later.
        return self._ready(model if self.recipe.model.name is None else apply_dropout(model, self.recipe.model.dropout))

    def read(self, paths: Sequence[Path]) -> Dataset:
        """Sources: the lines of `.txt` files, or a column of tables.

        Raises:
            UserError: A file cannot be used; the message names it.
        """
        column, bad_rows = self.columns[0], BadRows(self.recipe.data.on_bad_row)
        sources: list[str] = []
        for row in chain.from_iterable(self._source_rows(path, bad_rows) for path in paths):
            with bad_rows.guard(row):
                sources.append(text_value(row, column))
        if not sources:
            raise UserError(f"there is no text in {', '.join(map(str, paths))}; expected at least one line or row")
        limit, _ = self._limits()
        return Dataset.from_dict({"source": sources, "input_ids": limit.ids(sources)})

    def _source_rows(self, path: Path, bad_rows: BadRows) -> Iterator[Row]:
        data, column = self.recipe.data, self.columns[0]
        if Path(path.name.lower().removesuffix(".gz")).suffix == ".txt" and data.delimiter is None:
            for number, line in enumerate(text_lines(path, data.encoding), 1):
                yield Row(path, number, {column: line.rstrip("\r\n")})
            return
        yield from read_table(
            path,
            [column],
            delimiter=data.delimiter,
            quoting=data.quoting,
            encoding=data.encoding,
            bad_rows=bad_rows,
        )

    def predict(self, model: nn.Module, rows: Rows, *, samples: int, seed: int) -> Iterator[Mapping[str, Any]]:
        """What the model writes for each row, and how probable it finds that.

        Args:
            model: A restored model.
            rows: What `read` gave.
            samples: Monte Carlo dropout: how often the output, which is searched for with dropout off, is scored again
                with dropout on; 0 for once with dropout off.
            seed: Seed of the masks.

        Yields:
            The source; the output; `confidence`, the geometric mean of the probabilities of its tokens;
            `log_probability`, that of the whole output, in nats. With samples these two are means over the masks, and
            `spread` and `log_probability_spread` their standard deviations.
        """
        set_seed(seed)
        config = search(model, self.recipe.generation, self.recipe.longest_output())
        sources = iter(rows["source"])
        for batch in self.batches(rows.select_columns("input_ids"), model):
            ids = outputs(model, batch, config)
            labels = self._with_labels(batch, ids)
            sums = torch.stack(list(log_probabilities(model, labels, samples))).double()
            means = (sums / (ids != IGNORE_INDEX).sum(-1)).exp()
            for index, text in enumerate(self._texts(ids)):
                answer = {"source": next(sources), self.OUTPUT: text, "confidence": float(means[:, index].mean())}
                if samples:
                    answer["spread"] = float(means[:, index].std(correction=0))
                answer["log_probability"] = float(sums[:, index].mean())
                if samples:
                    answer["log_probability_spread"] = float(sums[:, index].std(correction=0))
                yield answer


def _shortened(text: str) -> str:
    """A text as it is shown."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS].rstrip()} ..."
