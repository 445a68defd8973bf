"""What a task family adds to the engine: its data, its network, its metrics, and how a model of it is used.

A family is one module in `rdrop.toolkit.tasks` with a `Recipe` and a `Task`. The engine (`rdrop.toolkit.train`) calls
the methods in the order in which they stand here. Shapes: B rows of a batch, T positions, C classes, N rows of a split.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import set_seed

from rdrop.diagnostics import consistency_gap
from rdrop.errors import UserError
from rdrop.integrations.transformers import RDropTrainer
from rdrop.options import Kind
from rdrop.toolkit.metrics import consistency_metrics
from rdrop.toolkit.recipe import Recipe, SplitName
from rdrop.toolkit.summary import Exhibit, Metric, ReliabilityBin

R = TypeVar("R", bound=Recipe)

Rows = Any
"""A split: a `torch.utils.data.Dataset` with or without a length, such as those of `datasets`."""


@dataclass(frozen=True)
class Splits:
    """The data of a run."""

    train: Rows
    validation: Rows | None
    test: Rows | None
    description: str
    """One sentence with the counts."""
    notes: tuple[str, ...] = ()
    """What a careful reader must know: rows that were skipped, texts that were cut."""

    def judged(self, name: SplitName) -> Rows:
        """The split that runs are judged on; the validation split stands in for a test split that is not there."""
        return self.test if self.judged_name(name) == "test" else self.validation

    def judged_name(self, name: SplitName) -> SplitName:
        """Its name.

        Raises:
            UserError: There is no such split.
        """
        if name == "test" and self.test is not None:
            return "test"
        if self.validation is None:
            raise UserError(
                f"compare.split is {name}, but there is no such split; name a file in data.{name}, or hold out a "
                "part of the training split with data.validation_fraction"
            )
        return "validation"

    def watched(self) -> Rows:
        """The split of the learning curves."""
        return self.test if self.validation is None else self.validation


@dataclass(frozen=True)
class Evaluation:
    """What a split says about a model."""

    metrics: dict[str, float]
    reliability: list[ReliabilityBin] = field(default_factory=list)
    exhibits: list[Exhibit] = field(default_factory=list)


class Task(ABC, Generic[R]):
    """One task with the settings of a recipe.

    Args:
        recipe: A checked recipe of the family.
    """

    RECIPE: ClassVar[type[Recipe]]
    kind: Kind = "categorical"
    """What the logits mean, see `rdrop.rdrop_loss`."""
    trainer_class: type[RDropTrainer] = RDropTrainer

    def __init__(self, recipe: R) -> None:
        self.recipe = recipe

    @property
    @abstractmethod
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics in the order of the table: the main one, then a likelihood or loss, then the others."""

    @abstractmethod
    def load(self, seed: int) -> Splits:
        """Reads and checks the data, and learns from them what the model needs: label names, a vocabulary.

        Args:
            seed: Seed of whatever is drawn, unless the recipe has its own.

        Raises:
            UserError: The data are not what the recipe says; the message names file and row.
        """

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The network to train, after `load`; the engine has seeded all generators.

        Its forward takes what `collate` gives and returns a mapping with `logits`, and with `labels` also a `loss`.
        """

    @abstractmethod
    def collate(self, rows: Any) -> dict[str, Tensor]:
        """The batch of some rows, with `labels` in which -100 does not count."""

    def batches_per_epoch(self, train: Rows) -> int | None:
        """Micro-batches in one pass over the training split; None if nobody knows."""
        return -(-len(train) // self.recipe.training.batch_size) if hasattr(train, "__len__") else None

    def scores(self, logits: Any, labels: Tensor) -> Any:  # noqa: ARG002
        """What to keep of a batch of logits in evaluation; where C is large, less than all of them."""
        return logits

    @abstractmethod
    def measure(self, scores: Any, labels: NDArray[Any]) -> dict[str, float]:
        """Metrics of the scores `(N, ...)` and labels `(N, ...)` of a whole split; those of the learning curve."""

    def evaluate(self, trainer: RDropTrainer, rows: Rows, *, seed: int, exhibits: bool) -> Evaluation:
        """Everything about a trained model on a split; metrics are those of `metrics`.

        Args:
            trainer: Holds the model, and predicts.
            rows: The split.
            seed: Seed of the masks that the consistency gap averages; the same in every arm.
            exhibits: Whether to show examples too.
        """
        del exhibits
        prediction = trainer.predict(rows)
        assert prediction.label_ids is not None
        metrics = self.measure(prediction.predictions, np.asarray(prediction.label_ids))
        return Evaluation(metrics | self.consistency(trainer, rows, seed))

    def consistency(self, trainer: RDropTrainer, rows: Rows, seed: int) -> dict[str, float]:
        """Dropout off against the average of many dropout-on predictions, for categorical answers."""
        model: Any = trainer.model
        set_seed(seed)
        gap = consistency_gap(model, self.batches(rows, model), samples=self.recipe.compare.samples)
        return consistency_metrics(gap)

    def batches(self, rows: Rows, model: nn.Module) -> Iterator[dict[str, Tensor]]:
        """A split in batches of evaluation, on the device of the model."""
        device = next(model.parameters()).device
        loader = DataLoader(rows, batch_size=self.recipe.training.eval_batch_size, collate_fn=self.collate)
        for batch in loader:
            yield {name: column.to(device) for name, column in batch.items()}

    # What follows is for one trained model on disk: `rdrop train`, `evaluate`, `predict` and `export`.

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes the model with everything that `restore` needs: safetensors, configuration, processor, label names."""

    @abstractmethod
    def restore(self, folder: Path) -> nn.Module:
        """The model of a folder that `save` wrote; afterwards `read` and `predict` work without any training data.

        Raises:
            UserError: The folder holds no such model.
        """

    @abstractmethod
    def read(self, paths: Sequence[Path]) -> Rows:
        """Unlabelled rows of the user's files, of the kinds that the family trains on.

        Raises:
            UserError: A file cannot be used; the message names it.
        """

    @abstractmethod
    def predict(self, model: nn.Module, rows: Rows, *, samples: int, seed: int) -> Iterator[Mapping[str, Any]]:
        """What the model says about each row, in order: plain values that JSON can hold.

        Args:
            model: A restored model.
            rows: What `read` gave.
            samples: Monte Carlo dropout: dropout-on predictions that are averaged; 0 for one with dropout off. With
                them each answer carries the spread of its confidence.
            seed: Seed of the masks.
        """
