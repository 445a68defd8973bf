"""Translation: sentences in two languages, models from scratch or pretrained, BLEU and chrF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field

from rdrop.toolkit.metrics import CONSISTENCY_METRICS
from rdrop.toolkit.metrics.translation import (
    TRANSLATION_METRICS,
    Tokenizer,
    translation_metrics,
    translation_signatures,
)
from rdrop.toolkit.sequences.recipe import SequenceData, SequenceRecipe
from rdrop.toolkit.sequences.task import SequenceTask
from rdrop.toolkit.summary import Metric
from rdrop.toolkit.task import Splits


class TranslationData(SequenceData):
    """What to train and test on."""

    train: str = Field(default="train.tsv", description="Training split.")
    source: str = Field(default="source", description="Column of the sentences to translate.")
    target: str = Field(default="target", description="Column of their translations.")
    bleu_tokenizer: Tokenizer = Field(
        default="13a",
        description="How BLEU cuts a text into words: `13a` for languages that write spaces, `intl` for the same by "
        "Unicode, `zh` for Chinese, `char` for others.",
    )


class TranslationRecipe(SequenceRecipe):
    """A complete comparison of translations."""

    FAMILY = "translation"
    DEFAULTS = {
        "training": {
            "epochs": 20,
            "batch_size": 256,
            "learning_rate": 1e-3,
            "lr_scheduler": "inverse_sqrt",
            "warmup_steps": 1000,
            "adam_beta2": 0.98,
            "weight_decay": 1e-4,
            "label_smoothing": 0.1,
            "max_grad_norm": 0.0,
        },
        "rdrop": {"alpha": 2.5},
        "compare": {"seeds": [0, 1, 2]},
    }

    task: Literal["translation"] = Field(default="translation", description="What is learned.")
    title: str = Field(default="Translation", description="Heading of the report.")
    data: TranslationData = Field(default=TranslationData(), description="What to train and test on.")


class TranslationTask(SequenceTask[TranslationRecipe]):
    """Sentences in another language."""

    RECIPE = TranslationRecipe
    OUTPUT = "translation"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """BLEU, the likelihood of the references, chrF, and the consistency of their tokens."""
        return (*TRANSLATION_METRICS, *CONSISTENCY_METRICS)

    @property
    def columns(self) -> tuple[str, str]:
        """Source and target."""
        return self.recipe.data.source, self.recipe.data.target

    def load(self, seed: int) -> Splits:
        """The splits, with the signatures of BLEU and chrF among the notes."""
        splits = super().load(seed)
        signatures = translation_signatures(self.recipe.data.bleu_tokenizer)
        told = f"sacreBLEU's signatures: BLEU {signatures['bleu']}, chrF {signatures['chrf']}."
        return replace(splits, notes=(*splits.notes, told))

    def text_metrics(
        self, written: Sequence[str], references: Sequence[Sequence[str]], summed_nll: float, tokens: int
    ) -> dict[str, float]:
        """BLEU, chrF and the likelihood."""
        tokenizer = self.recipe.data.bleu_tokenizer
        return translation_metrics(written, [first for first, *_ in references], summed_nll, tokens, tokenizer)
