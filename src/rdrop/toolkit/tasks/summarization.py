"""Summarization: documents with summaries, models from scratch or pretrained, ROUGE."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Annotated, Literal

from pydantic import Field

from rdrop.toolkit.metrics import CONSISTENCY_METRICS
from rdrop.toolkit.metrics.summarization import (
    SUMMARIZATION_METRICS,
    require_rouge_words,
    summarization_metrics,
)
from rdrop.toolkit.sequences.recipe import SequenceData, SequenceRecipe
from rdrop.toolkit.sequences.task import SequenceTask
from rdrop.toolkit.summary import Metric
from rdrop.toolkit.task import Splits


class SummarizationData(SequenceData):
    """What to train and test on."""

    train: str = Field(default="train.jsonl", description="Training split.")
    document: str = Field(default="document", description="Column of the texts to summarize.")
    summary: str = Field(default="summary", description="Column of their summaries.")
    references: str | None = Field(
        default=None,
        description="Column of the validation and test splits with a list of further summaries, of which the closest "
        "counts; null: there are none.",
    )
    max_source_length: Annotated[int, Field(ge=2)] = Field(
        default=512, description="Most tokens of a document; longer ones are cut, and counted."
    )
    max_target_length: Annotated[int, Field(ge=2)] = Field(
        default=128,
        description="Most tokens of a summary in training and in the NLL; longer ones are cut, and counted.",
    )


class SummarizationRecipe(SequenceRecipe):
    """A complete comparison of summaries."""

    FAMILY = "summarization"
    DEFAULTS = {
        "training": {
            "epochs": 10,
            "batch_size": 64,
            "learning_rate": 1e-3,
            "lr_scheduler": "inverse_sqrt",
            "warmup_steps": 1000,
            "adam_beta2": 0.98,
            "weight_decay": 1e-4,
            "label_smoothing": 0.1,
            "max_grad_norm": 0.0,
        },
        "rdrop": {"alpha": 0.35},
        "compare": {"seeds": [0, 1, 2]},
        "generation": {"beams": 4, "no_repeat_ngram": 3},
    }

    task: Literal["summarization"] = Field(default="summarization", description="What is learned.")
    title: str = Field(default="Summarization", description="Heading of the report.")
    data: SummarizationData = Field(default=SummarizationData(), description="What to train and test on.")


class SummarizationTask(SequenceTask[SummarizationRecipe]):
    """Short texts that say what long ones say."""

    RECIPE = SummarizationRecipe
    OUTPUT = "summary"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """ROUGE, the likelihood of the references, and the consistency of their tokens."""
        return (*SUMMARIZATION_METRICS, *CONSISTENCY_METRICS)

    @property
    def columns(self) -> tuple[str, str]:
        """Document and summary."""
        return self.recipe.data.document, self.recipe.data.summary

    @property
    def further_references(self) -> str | None:
        """The column of `data.references`."""
        return self.recipe.data.references

    def load(self, seed: int) -> Splits:
        """The splits, if ROUGE can read the references of those that it will be taken on."""
        splits = super().load(seed)
        judged = splits.judged(self.recipe.compare.split)
        require_rouge_words(chain.from_iterable(judged["references"]))
        return splits

    def text_metrics(
        self, written: Sequence[str], references: Sequence[Sequence[str]], summed_nll: float, tokens: int
    ) -> dict[str, float]:
        """ROUGE and the likelihood."""
        return summarization_metrics(written, references, summed_nll, tokens)
