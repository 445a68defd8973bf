"""Texts, or pairs of them, with a class, a number or any number of labels each, and an encoder that reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, PreTrainedTokenizerBase

from rdrop.errors import UserError
from rdrop.integrations.transformers import RDropTrainer
from rdrop.toolkit.data.label_names import LabelNames
from rdrop.toolkit.data.labelled_splits import (
    LabelledData,
    Table,
    labelled_splits,
    tokenized,
    tokenized_splits,
    unlabelled,
)
from rdrop.toolkit.data.rows import BadRows, Row, text_value
from rdrop.toolkit.data.tables import read_table
from rdrop.toolkit.data.text_lines import text_lines
from rdrop.toolkit.metrics import CONSISTENCY_METRICS, reliability, with_main_metric
from rdrop.toolkit.pretrained import save_with_tokenizer
from rdrop.toolkit.recipe import Recipe, fault
from rdrop.toolkit.summary import Metric
from rdrop.toolkit.task import Evaluation, Rows, Splits, Task
from rdrop.toolkit.text.answers import ANSWERS, Answer, AnswerName, Judged
from rdrop.toolkit.text.encoders import (
    EncoderModel,
    build_encoder,
    encoder_tokenizer,
    first_output,
    label_options,
    model_inputs,
    restore_encoder,
)


class TextData(LabelledData):
    """What to train and test on."""

    text: str = Field(default="text", description="Column of the texts.")
    pair: str | None = Field(
        default=None, description="Column of a second text, where two are to be compared; null: there is none."
    )
    label: str = Field(default="label", description="Column of the answers.")
    answer: AnswerName = Field(
        default="classification",
        description="What an answer is: `classification`: one class; `regression`: a number; `multi-label`: any number "
        "of labels.",
    )
    label_separator: str = Field(
        default=",", min_length=1, description="What stands between the labels of a text where they are no list."
    )
    max_length: Annotated[int, Field(ge=8)] = Field(
        default=128, description="Tokens of an example at most; longer ones are cut, and counted."
    )
    metric: (
        Literal["accuracy", "macro_f1", "matthews", "f1", "pearson", "spearman", "micro_f1", "subset_accuracy"] | None
    ) = Field(
        default=None,
        description="The main metric. null: `accuracy`, `pearson` or `micro_f1`, whichever fits the answers. `f1` is "
        "that of the second of two classes.",
    )

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        columns = {"text": self.text, "pair": self.pair, "label": self.label}
        for key, column in columns.items():
            other = next((name for name in columns if name != key and columns[name] == column), None)
            if other is not None:
                raise fault(
                    f"got the column {column!r}, which is data.{key} too; name another one",
                    f"data.{other}",
                    f"data.{key}",
                )
        return self


class TextRecipe(Recipe):
    """A complete comparison on texts."""

    FAMILY = "text-classification"
    DEFAULTS = {
        "training": {"learning_rate": 2e-5, "lr_scheduler": "linear", "warmup_ratio": 0.1, "eval_batch_size": 128}
    }

    task: Literal["text-classification"] = Field(default="text-classification", description="What is learned.")
    title: str = Field(default="Text classification", description="Heading of the report.")
    data: TextData = Field(default=TextData(), description="What to train and test on.")
    model: EncoderModel = Field(default=EncoderModel(), description="The network.")

    @model_validator(mode="after")
    def _fits_the_answers(self) -> Self:
        answer = self.data.answer
        known = [metric.name for metric in ANSWERS[answer](self.data.label, "").metrics(classes=2)]
        if self.data.metric is not None and self.data.metric not in known:
            raise fault(
                f"got {self.data.metric}, which is no metric of {answer}; expected one of {', '.join(known)}",
                "data.metric",
                "data.answer",
            )
        if self.training.label_smoothing and answer != "classification":
            raise fault(
                f"got {self.training.label_smoothing:g}, but only classes can be smoothed, and data.answer is "
                f"{answer}; write 0",
                "training.label_smoothing",
                "data.answer",
            )
        if answer == "regression" and self.rdrop.divergence not in ("symmetric_kl", "mse"):
            raise fault(
                f"got {self.rdrop.divergence}, but numbers are compared by their squared difference; write "
                "symmetric_kl or mse, which are the same here",
                "rdrop.divergence",
                "data.answer",
            )
        if answer == "regression" and self.data.labels is not None:
            raise fault("got a file, but numbers have no names; write null", "data.labels", "data.answer")
        return self


@dataclass(frozen=True)
class Example:
    """One row of a table."""

    texts: tuple[str, ...]
    """One text, or two."""
    answer: Any


class TextTable(Table[Example]):
    """Tables of texts and their answers.

    Args:
        data: Names the columns.
        answer: What an answer is.
    """

    def __init__(self, data: TextData, answer: Answer) -> None:
        self.data = data
        self.answer = answer
        self.columns = [data.text] if data.pair is None else [data.text, data.pair]

    def examples(self, path: Path, names: LabelNames | None, bad_rows: BadRows) -> Iterator[Example]:
        """The rows with an answer."""
        for row in self._rows(path, [*self.columns, self.data.label], bad_rows):
            with bad_rows.guard(row):
                yield Example(self._texts(row), self.answer.read(row, names))

    def unanswered(self, path: Path, bad_rows: BadRows) -> Iterator[Example]:
        """The texts of a table, or the lines of a .txt file."""
        if path.name.lower().removesuffix(".gz").endswith(".txt"):
            if self.data.pair is not None:
                raise UserError(
                    f"{path}: a line holds one text, and the model compares two; put them into a table with the "
                    f"columns {self.data.text} and {self.data.pair}"
                )
            lines = enumerate(text_lines(path, self.data.encoding), 1)
            rows: Iterator[Row] = (Row(path, number, {self.data.text: line.rstrip("\r\n")}) for number, line in lines)
        else:
            rows = self._rows(path, self.columns, bad_rows)
        for row in rows:
            with bad_rows.guard(row):
                yield Example(self._texts(row), None)

    def labels(self, example: Example) -> Iterable[str]:
        """Those of the answer."""
        return self.answer.labels(example.answer)

    def check(self, names: LabelNames, counts: Counter[str], path: Path) -> list[str]:
        """As the answers want it."""
        return self.answer.check(names, counts, path)

    def stratum(self, example: Example) -> object:
        """The class, if the answers are classes."""
        return self.answer.stratum(example.answer)

    def _rows(self, path: Path, columns: list[str], bad_rows: BadRows) -> Iterator[Row]:
        data = self.data
        return read_table(path, columns, **data.form, bad_rows=bad_rows)

    def _texts(self, row: Row) -> tuple[str, ...]:
        return tuple(text_value(row, column) for column in self.columns)


class TextTask(Task[TextRecipe]):
    """Texts and their answers."""

    RECIPE = TextRecipe

    def __init__(self, recipe: TextRecipe) -> None:
        super().__init__(recipe)
        self.answer = ANSWERS[recipe.data.answer](recipe.data.label, recipe.data.label_separator)
        self.kind = self.answer.kind
        self.table = TextTable(recipe.data, self.answer)
        self.names: tuple[str, ...] = ()
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """That of the model, after `load` or `restore`."""
        assert self._tokenizer is not None
        return self._tokenizer

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Those of the answers, and for classes how consistent the model is."""
        measured = self.answer.metrics(len(self.names))
        if self.recipe.data.metric is not None:
            measured = with_main_metric(measured, self.recipe.data.metric)
        return (*measured, *CONSISTENCY_METRICS) if self.kind == "categorical" else measured

    def load(self, seed: int) -> Splits:
        """The tables, drawn from and tokenized."""
        data = self.recipe.data
        splits = labelled_splits(data, seed, self.table)
        self.names = splits.names or (data.label,)
        texts = (text for example in splits.train() for text in example.texts)
        self._tokenizer = encoder_tokenizer(self.recipe.model, texts, data.max_length)
        heading = f"{'Texts' if data.pair is None else 'Pairs of texts'} with {self.answer.described(self.names)}"
        return tokenized_splits(splits, self._columns, data, seed, heading=heading, consequence="were cut")

    def _columns(self, examples: Sequence[Example]) -> tuple[dict[str, Any], int]:
        """Columns for the model and for people, and how many examples were cut."""
        texts = [list(column) for column in zip(*(example.texts for example in examples), strict=True)]
        encoded = self.tokenizer(*texts, truncation=True, max_length=self.recipe.data.max_length)
        assert encoded.encodings is not None
        columns = {"texts": [list(example.texts) for example in examples], **encoded}
        if examples[0].answer is not None:
            columns["labels"] = [self.answer.target(example.answer, self.names) for example in examples]
        return columns, sum(bool(encoding.overflowing) for encoding in encoded.encodings)

    def build_model(self) -> nn.Module:
        """An encoder with a head for the answers."""
        options = label_options(self.names) | {"problem_type": self.answer.problem_type}
        model, length = self.recipe.model, self.recipe.data.max_length
        return build_encoder(AutoModelForSequenceClassification, model, self.tokenizer, length, **options)

    def collate(self, rows: Any) -> dict[str, Tensor]:
        """The batch, padded to its longest example."""
        pad = DataCollatorWithPadding(self.tokenizer)
        return dict(pad([model_inputs(row, self.tokenizer) for row in rows]))

    def scores(self, logits: Any, labels: Tensor) -> Any:
        """The logits alone."""
        del labels
        return first_output(logits)

    def measure(self, scores: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
        """The metrics of the answers."""
        return self.answer.measure(scores, labels)

    def evaluate(self, trainer: RDropTrainer, rows: Rows, *, seed: int, exhibits: bool) -> Evaluation:
        """Metrics, for classes consistency and reliability, and the worst answers."""
        prediction = trainer.predict(rows)
        logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        metrics = self.measure(logits, labels)
        one_class = self.kind == "categorical"
        if one_class:
            metrics |= self.consistency(trainer, rows, seed)
        data = self.recipe.data
        columns = ["Text"] if data.pair is None else [data.text, data.pair]
        judged = Judged(rows["texts"], columns, logits, labels, self.names)
        return Evaluation(
            metrics,
            reliability(logits, labels) if one_class else [],
            self.answer.exhibits(judged) if exhibits else [],
        )

    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes a folder of transformers, with the names of the classes in its configuration."""
        save_with_tokenizer(model, self.tokenizer, folder)

    def restore(self, folder: Path) -> nn.Module:
        """The model of such a folder, with its tokenizer and names."""
        auto, rate = AutoModelForSequenceClassification, self.recipe.model.dropout
        model, self._tokenizer, self.names = restore_encoder(
            auto, folder, rate, loaded=(self._tokenizer, self.names), problem_type=self.answer.problem_type
        )
        return model

    def read(self, paths: Sequence[Path]) -> Dataset:
        """Tables with the columns of texts, or, where a text stands alone, .txt files with one in each line."""
        return tokenized(unlabelled(paths, self.recipe.data, self.table), self._columns)[0]

    def predict(self, model: nn.Module, rows: Rows, *, samples: int, seed: int) -> Iterator[Mapping[str, Any]]:
        """Each text with its class, number or labels."""
        answers = self.answer.predictions(model, self.batches(rows, model), self.names, samples, seed)
        for texts, answer in zip(rows["texts"], answers, strict=True):
            yield {**dict(zip(("text", "pair"), texts, strict=False)), **answer}
