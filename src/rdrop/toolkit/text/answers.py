"""The three ways to answer a text: one class, a number, any number of labels.

Shapes: B rows of a batch, N rows of a split, C classes or labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor, nn
from transformers import set_seed

from rdrop.errors import UserError
from rdrop.options import Kind
from rdrop.toolkit.data.label_names import LabelNames, require_examples, without_examples
from rdrop.toolkit.data.rows import BadValue, Row, label_value, number_value, shown_value
from rdrop.toolkit.metrics import CLASSIFICATION_METRICS, TWO_CLASS_METRICS, classification_metrics, confusion
from rdrop.toolkit.metrics.multi_label import MULTI_LABEL_METRICS, multi_label_metrics
from rdrop.toolkit.metrics.regression import REGRESSION_METRICS, regression_metrics
from rdrop.toolkit.monte_carlo import Prediction, class_predictions, sampled
from rdrop.toolkit.summary import Exhibit, Metric
from rdrop.toolkit.text.exhibits import label_table, largest_errors, most_confidently_wrong

AnswerName = Literal["classification", "regression", "multi-label"]
Batches = Iterable[Mapping[str, Tensor]]
Told = Iterator[Prediction]

NOT_COUNTED = -100.0  # the label that every part of the engine leaves out


@dataclass(frozen=True)
class Judged:
    """A split and what a model said about it."""

    texts: Sequence[Sequence[str]]
    """N lists of one text for each of `columns`."""
    columns: Sequence[str]
    logits: NDArray[Any]
    """`(N, C)`."""
    labels: NDArray[Any]
    """Targets of N answers."""
    names: Sequence[str]
    """Names of the C classes."""


class Answer(ABC):
    """One way to answer a text.

    Args:
        column: The column of the answers.
        separator: What stands between the labels of a text.
    """

    kind: ClassVar[Kind]
    problem_type: ClassVar[str]
    """What `transformers` calls it."""

    def __init__(self, column: str, separator: str) -> None:
        self.column = column
        self.separator = separator

    @abstractmethod
    def read(self, row: Row, names: LabelNames | None) -> Any:
        """The answer in a row.

        Args:
            row: The row.
            names: The labels that there are; None: whatever the rows have.

        Raises:
            BadValue: There is none, or no such label.
        """

    @abstractmethod
    def described(self, names: Sequence[str]) -> str:
        """What every text has, for people."""

    @abstractmethod
    def target(self, answer: Any, names: Sequence[str]) -> Any:
        """The answer as an entry of `labels` in a batch."""

    @abstractmethod
    def metrics(self, classes: int) -> tuple[Metric, ...]:
        """What is measured, the main metric first."""

    @abstractmethod
    def measure(self, logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
        """The values of `metrics`, of logits `(N, C)` and the targets of N answers."""

    @abstractmethod
    def exhibits(self, judged: Judged) -> list[Exhibit]:
        """What the numbers do not show."""

    @abstractmethod
    def predictions(self, model: nn.Module, batches: Batches, names: Sequence[str], samples: int, seed: int) -> Told:
        """What a model says about each row; arguments as in `rdrop.toolkit.monte_carlo.class_predictions`."""

    def stratum(self, answer: Any) -> object:  # noqa: ARG002
        """The class by which rows are drawn; None: there are no classes."""
        return None

    def labels(self, answer: Any) -> tuple[str, ...]:  # noqa: ARG002
        """The labels in an answer."""
        return ()

    def check(self, names: LabelNames, counts: Counter[str], path: Path) -> list[str]:  # noqa: ARG002
        """Refuses training answers that teach nothing; returns what is to be noted about them."""
        return []


class OneClass(Answer):
    """One of C classes: softmax and cross-entropy."""

    kind = "categorical"
    problem_type = "single_label_classification"

    def read(self, row: Row, names: LabelNames | None) -> str:
        """The name of the class."""
        label = label_value(row, self.column)
        return label if names is None else names.known(label, self.column)

    def described(self, names: Sequence[str]) -> str:
        """So many classes."""
        return f"one of {len(names)} classes"

    def target(self, answer: str, names: Sequence[str]) -> int:
        """Its number."""
        return names.index(answer)

    def metrics(self, classes: int) -> tuple[Metric, ...]:
        """Accuracy, likelihood, calibration and correlations; F1 where there are two classes."""
        return TWO_CLASS_METRICS if classes == 2 else CLASSIFICATION_METRICS

    def measure(self, logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
        """Their values."""
        return classification_metrics(logits, labels)

    def exhibits(self, judged: Judged) -> list[Exhibit]:
        """Which class was taken for which, and the worst answers."""
        return [
            confusion(judged.logits, judged.labels, judged.names),
            most_confidently_wrong(judged.texts, judged.columns, judged.logits, judged.labels, judged.names),
        ]

    def predictions(self, model: nn.Module, batches: Batches, names: Sequence[str], samples: int, seed: int) -> Told:
        """The most probable class."""
        return class_predictions(model, batches, names, samples=samples, seed=seed)

    def stratum(self, answer: str) -> str:
        """The class."""
        return answer

    def labels(self, answer: str) -> tuple[str, ...]:
        """The class."""
        return (answer,)

    def check(self, names: LabelNames, counts: Counter[str], path: Path) -> list[str]:
        """Every class needs an example, and there must be two."""
        require_examples(names, counts, path, column=self.column)
        return []


class Number(Answer):
    """A number: squared error."""

    kind = "regression"
    problem_type = "regression"

    def read(self, row: Row, names: LabelNames | None) -> float:
        """The number."""
        del names
        number = number_value(row, self.column)
        if number == NOT_COUNTED:
            raise BadValue(
                f"{self.column}: got {number:g}, the number that marks a row without a target; write the targets in "
                "another unit, for example divided by 100"
            )
        return number

    def described(self, names: Sequence[str]) -> str:
        """The column."""
        del names
        return f"a number ({self.column})"

    def target(self, answer: float, names: Sequence[str]) -> list[float]:
        """The number as a row of its own, since the logits are `(B, 1)`."""
        del names
        return [answer]

    def metrics(self, classes: int) -> tuple[Metric, ...]:
        """Correlations and the squared error."""
        del classes
        return REGRESSION_METRICS

    def measure(self, logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
        """Their values."""
        return regression_metrics(logits[:, 0], labels[:, 0])

    def exhibits(self, judged: Judged) -> list[Exhibit]:
        """The worst answers."""
        return [largest_errors(judged.texts, judged.columns, judged.logits[:, 0], judged.labels[:, 0])]

    def predictions(self, model: nn.Module, batches: Batches, names: Sequence[str], samples: int, seed: int) -> Told:
        """The number, as `value`, and with samples its `spread`."""
        del names
        set_seed(seed)
        for batch in batches:
            for values in zip(*sampled(model, batch, samples, activation=lambda logits: logits), strict=True):
                value, spread = (float(part[0]) for part in values)
                yield {"value": value, "spread": spread} if samples else {"value": value}


class LabelSet(Answer):
    """Any number of C labels, each decided on its own: sigmoid and binary cross-entropy."""

    kind = "binary"
    problem_type = "multi_label_classification"

    def read(self, row: Row, names: LabelNames | None) -> tuple[str, ...]:
        """The names of the labels, each once: from a list, or from a text with separators."""
        value = row.values.get(self.column)
        if isinstance(value, str):
            parts: list[Any] = [part for part in value.split(self.separator) if part.strip()]
        elif isinstance(value, list):
            parts = value
        else:
            raise BadValue(
                f"{self.column}: got {shown_value(value)}, expected a list of labels or a text with "
                f"{self.separator!r} between them; no label at all is an empty list or text"
            )
        labels = [label_value(Row(row.path, row.number, {self.column: part}), self.column) for part in parts]
        known = labels if names is None else [names.known(label, self.column) for label in labels]
        return tuple(dict.fromkeys(known))

    def described(self, names: Sequence[str]) -> str:
        """So many labels."""
        return f"any of {len(names)} labels"

    def target(self, answer: tuple[str, ...], names: Sequence[str]) -> list[float]:
        """1 where a label is there, 0 elsewhere."""
        return [float(name in answer) for name in names]

    def metrics(self, classes: int) -> tuple[Metric, ...]:
        """F1, likelihood and exact matches."""
        del classes
        return MULTI_LABEL_METRICS

    def measure(self, logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
        """Their values."""
        return multi_label_metrics(logits, labels)

    def exhibits(self, judged: Judged) -> list[Exhibit]:
        """How well each label is found."""
        precision, recall, f1, count = precision_recall_fscore_support(
            judged.labels.astype(int), (judged.logits > 0).astype(int), average=None, zero_division=0
        )
        return [label_table(zip(judged.names, map(int, count), precision, recall, f1, strict=True), "examples")]

    def predictions(self, model: nn.Module, batches: Batches, names: Sequence[str], samples: int, seed: int) -> Told:
        """The `labels` above one half; `confidence` and `spread` are those of the least certain decision."""
        set_seed(seed)
        for batch in batches:
            for probabilities, spread in zip(*sampled(model, batch, samples, activation=torch.sigmoid), strict=True):
                certainty = torch.maximum(probabilities, 1 - probabilities)
                least = int(certainty.argmin())
                answer: Prediction = {
                    "labels": [name for name, p in zip(names, probabilities.tolist(), strict=True) if p > 0.5],
                    "confidence": float(certainty[least]),
                }
                if samples:
                    answer["spread"] = float(spread[least])
                answer["probabilities"] = dict(zip(names, probabilities.tolist(), strict=True))
                yield answer

    def labels(self, answer: tuple[str, ...]) -> tuple[str, ...]:
        """All of them."""
        return answer

    def check(self, names: LabelNames, counts: Counter[str], path: Path) -> list[str]:
        """There must be a label; those that no row has are noted."""
        if not counts:
            raise UserError(f"{path}: no row has a label (column {self.column}); expected at least one")
        return without_examples(names, counts)


ANSWERS: Mapping[AnswerName, type[Answer]] = {
    "classification": OneClass,
    "regression": Number,
    "multi-label": LabelSet,
}
"""Every way by the name that a recipe gives it."""
