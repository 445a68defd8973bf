"""What translation and summarization share: encoder-decoder models that write a text for a text.

Shapes: B rows of a batch, S source tokens, T target tokens, C tokens of the vocabulary, N rows of a split.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from warnings import warn

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from pyarrow.compute import list_value_length
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedTokenizerBase, set_seed

from rdrop.errors import RDropWarning, UserError
from rdrop.integrations.objective_config import IGNORE_INDEX
from rdrop.integrations.transformers import RDropTrainer
from rdrop.toolkit.data.file_data import draw, hold_out, split_seed
from rdrop.toolkit.data.labelled_splits import split_paths, streamed
from rdrop.toolkit.data.rows import BadRows, Row, text_value
from rdrop.toolkit.data.tables import read_table
from rdrop.toolkit.data.text_lines import text_lines
from rdrop.toolkit.metrics.language import language_metrics
from rdrop.toolkit.pretrained import from_pretrained, save_with_tokenizer
from rdrop.toolkit.sequences.generated_text import log_probabilities, outputs, search, token_nll
from rdrop.toolkit.sequences.length_batches import BatchedRows, LengthBatches, LengthBatchTrainer
from rdrop.toolkit.sequences.models import build_sequence_model, restore_sequence_model
from rdrop.toolkit.sequences.pairs import TextPair, TokenLimit, read_pairs, token_columns, token_rows
from rdrop.toolkit.sequences.recipe import SequenceRecipe
from rdrop.toolkit.summary import Exhibit, Listing
from rdrop.toolkit.task import Evaluation, Rows, Splits, Task
from rdrop.toolkit.text.exhibits import SHOWN, cut
from rdrop.toolkit.text.vocabulary import train_vocabulary

_PURPOSES = {"validation": "validation", "test": "testing"}

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
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._start: int | None = None  # the token that every output starts from

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """That of the data, or of the restored model."""
        assert self._tokenizer is not None
        return self._tokenizer

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
        """Token ids of sources and targets; validation and test have their texts beside them.

        Args:
            seed: Seed of what is drawn, unless the recipe has its own, and of the batches.

        Raises:
            UserError: The data are not what the recipe says; the message names file and row.
        """
        data, bad_rows = self.recipe.data, BadRows(self.recipe.data.on_bad_row)
        paths = split_paths(data)
        path = paths.pop("train")
        pairs: dict[str, list[TextPair]] = {}
        training: Iterable[TextPair] = self._pairs(path, bad_rows, judged=False)
        if not data.streaming:
            training, held_out = self._drawn(list(training), split_seed(data, seed))
            pairs = {"validation": held_out} if held_out else {}
        self._tokenizer = self._tokenizer_of(training)
        pairs |= {split: list(self._pairs(other, bad_rows, judged=True)) for split, other in paths.items()}
        if not pairs:
            raise UserError(
                "data.validation and data.test are null and data.validation_fraction is 0, so there is nothing to "
                "judge the runs on; set one of them"
            )
        notes = bad_rows.sentences()
        if isinstance(training, list):
            read, rows = f"{len(training):,} pairs", self._batched(training, seed, notes)
        else:
            read, rows = "Streamed pairs", self._streamed(path, seed, notes)
        judged = {split: self._judged(some, split, notes) for split, some in pairs.items()}
        where = {split: getattr(data, split) or f"held out of {data.train}" for split in judged}
        counts = "".join(f", {len(some):,} for {_PURPOSES[split]} ({where[split]})" for split, some in judged.items())
        learned = f"; {len(self.tokenizer):,} tokens, learned from the training split"
        vocabulary = "" if self.recipe.model.name else learned
        return Splits(
            train=rows,
            validation=judged.get("validation"),
            test=judged.get("test"),
            description=f"{read} of {data.train} for training{counts}{vocabulary}.",
            notes=tuple(notes),
        )

    def _pairs(self, path: Path, bad_rows: BadRows, *, judged: bool) -> Iterator[TextPair]:
        """The pairs of a table; a table of outputs to be judged may have further references."""
        data, references = self.recipe.data, self.further_references if judged else None
        columns = [*self.columns, *([references] if references else [])]
        rows = read_table(
            path,
            columns,
            **data.form,
            bad_rows=bad_rows,
        )
        return read_pairs(rows, *self.columns, references=references, bad_rows=bad_rows)

    def _drawn(self, everything: list[TextPair], seed: int) -> tuple[list[TextPair], list[TextPair]]:
        """The pairs to train on, and those that are held out."""
        data = self.recipe.data
        kept, held_out = np.arange(len(everything)), np.arange(0)
        if data.validation is None and data.validation_fraction > 0:
            kept, held_out = hold_out(None, len(everything), data.validation_fraction, seed, name=data.train)
        kept = draw(None, kept, data.train_size, seed, name=data.train)
        return [everything[i] for i in kept], [everything[i] for i in held_out]

    def _tokenizer_of(self, training: Iterable[TextPair]) -> PreTrainedTokenizerBase:
        """That of the pretrained model, or a vocabulary that sources and targets share."""
        model = self.recipe.model
        if model.name is None:
            texts = chain.from_iterable((model.prefix + pair.source, pair.target) for pair in training)
            return train_vocabulary(texts, "bpe", model.vocab_size, append_end=True)
        for _ in training:  # so that a streamed table is read and checked before anything is trained
            pass
        loaded: PreTrainedTokenizerBase = from_pretrained(AutoTokenizer, model.name)
        return loaded

    def _limits(self) -> tuple[TokenLimit, TokenLimit]:
        """What makes tokens of sources and of targets."""
        data = self.recipe.data
        return (
            TokenLimit(self.tokenizer, data.max_source_length, prefix=self.recipe.model.prefix),
            TokenLimit(self.tokenizer, data.max_target_length, is_target=True),
        )

    def _rows(self, pairs: Sequence[TextPair], split: str, notes: list[str]) -> Dataset:
        """A split as tokens; notes get a sentence about what was cut."""
        source, target = self._limits()
        rows = token_rows(pairs, source, target)
        for limit, what in ((source, "source"), (target, "target")):
            if limit.cut:
                notes.append(
                    f"{limit.cut:,} of {limit.read:,} {what}s of the {split} split have more than {limit.most:,} "
                    f"tokens (data.max_{what}_length) and were cut."
                )
        return rows

    def _judged(self, pairs: Sequence[TextPair], split: str, notes: list[str]) -> Dataset:
        """A split on which outputs are shown and scored."""
        rows = self._rows(pairs, split, notes).add_column("source", [pair.source for pair in pairs])
        return rows.add_column("references", [pair.references for pair in pairs])

    def _batched(self, pairs: Sequence[TextPair], seed: int, notes: list[str]) -> Rows:
        """The training split, with its batches if they are not random."""
        training, rows = self.recipe.training, self._rows(pairs, "training", notes)
        if training.batching == "random":
            return rows
        source, target = (list_value_length(rows.data.column(side)).to_numpy() for side in ("input_ids", "labels"))
        lengths = np.maximum(source, target).tolist()
        tokens = training.batch_tokens if training.batching == "tokens" else None
        return BatchedRows(rows, LengthBatches(lengths, rows=training.batch_size, tokens=tokens, seed=seed))

    def _streamed(self, path: Path, seed: int, notes: list[str]) -> Rows:
        """The training split, read anew in every epoch."""
        data, (source, target) = self.recipe.data, self._limits()
        notes.append(
            f"The training split is streamed and its order random within {data.shuffle_buffer:,} pairs; how many of "
            "its texts have more tokens than data.max_source_length and data.max_target_length, and are cut, is not "
            "counted."
        )
        return streamed(
            lambda: self._pairs(path, BadRows(data.on_bad_row), judged=False),
            lambda some: token_columns(some, source, target),
            buffer=data.shuffle_buffer,
            seed=split_seed(data, seed),
        )

    def batches_per_epoch(self, train: Rows) -> int | None:
        """Those of the sampler, where there is one."""
        return len(train.batches) if isinstance(train, BatchedRows) else super().batches_per_epoch(train)

    def build_model(self) -> nn.Module:
        """The network from scratch, or the pretrained one."""
        return self._starting(build_sequence_model(self.recipe, self.tokenizer))

    def _starting(self, model: nn.Module) -> nn.Module:
        """The model, whose first token `collate` then knows."""
        config: Any = model.config
        self._start = config.decoder_start_token_id
        return model

    def collate(self, rows: Any) -> dict[str, Tensor]:
        """Sources `(B, S)`, and where there are targets, labels `(B, T)` and what the decoder reads `(B, T)`."""
        sources = [torch.tensor(row["input_ids"]) for row in rows]
        batch = {
            "input_ids": pad_sequence(sources, batch_first=True, padding_value=self.tokenizer.pad_token_id),
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
        assert self._start is not None
        shifted[:, 0] = self._start
        return {
            **batch,
            "decoder_input_ids": shifted.masked_fill(shifted == IGNORE_INDEX, self.tokenizer.pad_token_id),
            "labels": labels,
        }

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
        prediction: Any = trainer.predict(rows)
        nll, _ = prediction.predictions
        counts = np.asarray(prediction.label_ids) != IGNORE_INDEX
        summed = np.where(counts, nll, 0.0).sum(1, dtype=np.float64)
        model: Any = trainer.model
        written = self.write(model, rows)
        metrics = self.text_metrics(written, rows["references"], float(summed.sum()), int(counts.sum()))
        limit = self.recipe.data.consistency_rows or len(rows)
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
            ids.masked_fill(ids == IGNORE_INDEX, self.tokenizer.pad_token_id), skip_special_tokens=True
        )
        return [text.strip() for text in texts]

    def _listings(self, rows: Rows, written: Sequence[str], nll: NDArray[np.float64]) -> list[Exhibit]:
        """The first examples, and those whose targets are least probable."""
        columns = ["Source", "Reference", self.OUTPUT.capitalize(), "NLL"]

        def listing(title: str, reading: str, indices: Sequence[int]) -> Listing:
            shown = [
                [*map(cut, (row["source"], row["references"][0], written[index])), f"{nll[index]:.2f}"]
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
        save_with_tokenizer(model, self.tokenizer, folder)

    def restore(self, folder: Path) -> nn.Module:
        """The model and the tokenizer of the folder."""
        model, tokenizer = restore_sequence_model(folder, self.recipe.model)
        if self._tokenizer is not None and self._tokenizer.get_vocab() != tokenizer.get_vocab():
            # What `load` gave is written in another vocabulary.
            raise UserError(
                f"the vocabulary that {self.recipe.data.train} gives (data.train) is not that of the model in "
                f"{folder}; expected the training data that the model was trained with"
            )
        self._tokenizer = tokenizer
        return self._starting(model)

    def read(self, paths: Sequence[Path]) -> Dataset:
        """Sources: the lines of `.txt` files, or a column of tables.

        Raises:
            UserError: A file cannot be used; the message names it.

        Warns:
            RDropWarning: Rows were left out, as `data.on_bad_row` says.
        """
        column, bad_rows = self.columns[0], BadRows(self.recipe.data.on_bad_row)
        sources: list[str] = []
        for row in chain.from_iterable(self._source_rows(path, bad_rows) for path in paths):
            with bad_rows.guard(row):
                sources.append(text_value(row, column))
        for sentence in bad_rows.sentences():
            warn(sentence, RDropWarning, stacklevel=2)
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
            **data.form,
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
