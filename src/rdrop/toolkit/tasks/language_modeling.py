"""Language modelling: the next token of running text, by a causal model, judged by its perplexity."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, set_seed

from rdrop.diagnostics import consistency_gap
from rdrop.integrations.objective_config import IGNORE_INDEX
from rdrop.integrations.transformers import RDropTrainer
from rdrop.toolkit.data.file_data import draw, split_seed
from rdrop.toolkit.data.labelled_splits import split_paths, streamed
from rdrop.toolkit.data.rows import BadRows
from rdrop.toolkit.language.documents import Piece, TextData, hold_out_tail, read_documents
from rdrop.toolkit.language.exhibits import continuations, evenly_spread, least_expected
from rdrop.toolkit.language.models import (
    CausalModel,
    Continuation,
    build_causal,
    continued,
    pretrained_tokenizer,
    restore_causal,
)
from rdrop.toolkit.language.token_blocks import Blocks, Layout, TokenPiece, next_labels, packed, padded, token_pieces
from rdrop.toolkit.metrics import CONSISTENCY_METRICS, consistency_metrics
from rdrop.toolkit.metrics.language import BITS_PER_CHARACTER, LANGUAGE_METRICS, language_metrics
from rdrop.toolkit.monte_carlo import sampled
from rdrop.toolkit.pretrained import save_with_tokenizer
from rdrop.toolkit.recipe import Recipe, fault
from rdrop.toolkit.sequences.generated_text import token_nll
from rdrop.toolkit.summary import Exhibit, Metric
from rdrop.toolkit.task import Evaluation, Rows, Splits, Task
from rdrop.toolkit.text.vocabulary import VocabularyKind, train_vocabulary


class LanguageData(TextData):
    """What to train and test on."""

    TRAINED_ON = "training text"

    train_size: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Training blocks to draw; null: all of them."
    )
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1,
        description="Share of the training text that is held out where `validation` is null: its last part, not one "
        "that is drawn.",
    )
    vocabulary: VocabularyKind = Field(
        default="bpe",
        description="Tokens of a model from scratch, learned from the training text: `bpe`, pieces of words by "
        "byte-pair encoding; `word`, what stands between white space, and line ends; `character`.",
    )
    vocabulary_size: Annotated[int, Field(ge=5)] | None = Field(
        default=8000, description="Most tokens of that vocabulary; null: all that occur (not for `bpe`)."
    )
    vocabulary_minimum_count: Annotated[int, Field(ge=1)] = Field(
        default=1, description="Times that a word, a character or a pair that is to be merged has to occur."
    )
    vocabulary_sample: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Characters from the start of the training text that the vocabulary is learned from; null: all.",
    )
    block_size: Annotated[int, Field(ge=2)] = Field(
        default=128, description="Tokens that the model reads at a time; the context of a model from scratch."
    )
    cross_documents: bool = Field(
        default=True,
        description="Whether a document begins in the block where the one before it ends, and so sees it. false: every "
        "document has its own blocks, the last of which is filled up with padding.",
    )
    stride: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Tokens that a block predicts in evaluation, the last ones; the others are context. null: all but "
        "the first.",
    )
    consistency_blocks: Annotated[int, Field(ge=1)] = Field(
        default=64, description="Blocks, evenly spread over the split, on which the consistency gap is measured."
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.stride is not None and self.stride >= self.block_size:
            raise fault(
                f"got {self.stride}, expected less than data.block_size, which is {self.block_size}: the first token "
                "of a block is always context",
                "data.stride",
                "data.block_size",
            )
        return self


class LanguageRecipe(Recipe):
    """A complete comparison on running text."""

    FAMILY = "language-modeling"
    DEFAULTS = {
        "training": {
            "epochs": 10,
            "lr_scheduler": "cosine",
            "warmup_ratio": 0.05,
            "weight_decay": 0.1,
            "eval_batch_size": 32,
        },
        "rdrop": {"alpha": 0.5},
        "compare": {"seeds": [0, 1, 2]},
    }

    task: Literal["language-modeling"] = Field(default="language-modeling", description="What is learned.")
    title: str = Field(default="Language modelling", description="Heading of the report.")
    data: LanguageData = Field(default=LanguageData(), description="What to train and test on.")
    model: CausalModel = Field(default=CausalModel(), description="The network.")
    continuation: Continuation = Field(
        default=Continuation(), description="How prompts are continued, by `rdrop predict` and in the report."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.continuation.tokens >= self.data.block_size:
            raise fault(
                f"got {self.continuation.tokens}, expected less than data.block_size, which is {self.data.block_size}",
                "continuation.tokens",
                "data.block_size",
            )
        if self.model.name is None and self.data.vocabulary == "bpe" and self.data.vocabulary_size is None:
            raise fault(
                "got null, and bpe may merge without end; expected a number of tokens, for example 8000",
                "data.vocabulary_size",
                "data.vocabulary",
            )
        return self


class LanguageTask(Task[LanguageRecipe]):
    """The next token of running text."""

    RECIPE = LanguageRecipe

    def __init__(self, recipe: LanguageRecipe) -> None:
        super().__init__(recipe)
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The vocabulary, after `load` or `restore`."""
        if self._tokenizer is None:
            raise RuntimeError("the vocabulary is known after load or restore")
        return self._tokenizer

    @property
    def names(self) -> list[str]:
        """The tokens by id: text that was made tokens by other ones means nothing to a restored model."""
        ids = self.tokenizer.get_vocab()
        return sorted(ids, key=ids.__getitem__)

    @property
    def counts_characters(self) -> bool:
        """Whether the tokens stand for all characters of the text; words leave out the white space between them."""
        return self.recipe.model.name is not None or self.recipe.data.vocabulary != "word"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Perplexity, likelihood, bits per character where the vocabulary allows it, accuracy, consistency."""
        perplexity, nll, *others = LANGUAGE_METRICS
        bits = (BITS_PER_CHARACTER,) if self.counts_characters else ()
        return (perplexity, nll, *bits, *others, *CONSISTENCY_METRICS)

    def load(self, seed: int) -> Splits:
        """The splits as blocks of tokens; a model from scratch learns its vocabulary from the training text.

        Args:
            seed: Seed of the drawn training blocks, and of the order of streamed ones.
        """
        data = self.recipe.data
        bad_rows = BadRows(data.on_bad_row)
        paths = split_paths(data)
        if data.streaming:
            held_out = list(read_documents(paths["validation"], data, bad_rows))
            self._choose_tokenizer(read_documents(paths["train"], data, bad_rows))
            train: Rows = self._streamed(paths["train"], seed)
            told = f"{data.train} streamed for training"
        else:
            texts = list(read_documents(paths["train"], data, bad_rows))
            if "validation" in paths:
                held_out = list(read_documents(paths["validation"], data, bad_rows))
            else:
                texts, held_out = hold_out_tail(texts, data.validation_fraction, data.train)
            self._choose_tokenizer(texts)
            everything = packed(self.tokenizer, texts, self._layout())
            name = f"the blocks of {data.train}"
            drawn = draw(None, np.arange(len(everything)), data.train_size, split_seed(data, seed), name=name)
            train = [everything[index] for index in drawn.tolist()]
            told = f"{_counts(everything)} of {data.train} for training"
            if len(train) < len(everything):
                how = "anew for each seed" if data.split_seed is None else f"once, with seed {data.split_seed}"
                told += f", {len(train):,} of its {len(everything):,} blocks drawn {how}"
        splits = {"validation": packed(self.tokenizer, held_out, self._layout(evaluation=True))}
        if "test" in paths:
            texts = list(read_documents(paths["test"], data, bad_rows))
            splits["test"] = packed(self.tokenizer, texts, self._layout(evaluation=True))
        where = data.validation or f"the end of {data.train}"
        tested = f"{_counts(splits['test'])} of {data.test} for testing" if "test" in splits else "no test split"
        return Splits(
            train=train,
            validation=splits["validation"],
            test=splits.get("test"),
            description=f"Running text in {self._vocabulary()} and blocks of {data.block_size}: {told}, "
            f"{_counts(splits['validation'])} of {where} for validation, {tested}.",
            notes=(*bad_rows.sentences(), *_unknown(splits)),
        )

    def _choose_tokenizer(self, texts: Iterable[Piece]) -> None:
        """The tokenizer of the pretrained model, or one with a vocabulary that is learned from these texts."""
        data, name = self.recipe.data, self.recipe.model.name
        if name is not None:
            self._tokenizer = pretrained_tokenizer(name)
            return
        self._tokenizer = train_vocabulary(
            _sample(texts, data.vocabulary_sample),
            data.vocabulary,
            data.vocabulary_size,
            minimum_count=data.vocabulary_minimum_count,
        )

    def _layout(self, *, evaluation: bool = False) -> Layout:
        """How blocks are made: in evaluation they overlap by as much as the recipe says."""
        data, tokenizer = self.recipe.data, self.tokenizer
        start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        step = (data.stride if evaluation else None) or data.block_size - 1
        return Layout(data.block_size, step, start=start, end=tokenizer.eos_token_id, across=data.cross_documents)

    def _streamed(self, path: Path, seed: int) -> Rows:
        """Training blocks that are read and made as they are asked for."""
        data, tokenizer, layout = self.recipe.data, self.tokenizer, self._layout()

        def blocks() -> Iterator[Mapping[str, Any]]:
            # Rows that are skipped are counted where the vocabulary is learned, not once more in every epoch.
            return layout.blocks(token_pieces(tokenizer, read_documents(path, data, BadRows(data.on_bad_row))))

        return streamed(
            blocks,
            lambda some: {name: [block[name] for block in some] for name in ("input_ids", "labels")},
            buffer=data.shuffle_buffer,
            seed=split_seed(data, seed),
        )

    def _vocabulary(self) -> str:
        """The tokens in words."""
        kinds = {"bpe": "pieces of words", "word": "words", "character": "characters"}
        name = self.recipe.model.name
        kind = kinds[self.recipe.data.vocabulary] if name is None else f"tokens of {Path(name).name}"
        return f"{kind} (a vocabulary of {len(self.tokenizer):,})"

    def build_model(self) -> nn.Module:
        """A pretrained causal model, or a GPT-2 from scratch."""
        return build_causal(self.recipe.model, self.tokenizer, self.recipe.data.block_size)

    def collate(self, rows: Any) -> dict[str, Tensor]:
        """Blocks as a batch, padded behind; the model itself shifts the labels by one."""
        pad = self.tokenizer.pad_token_id
        assert isinstance(pad, int)
        return padded(rows, pad)

    def scores(self, logits: Any, labels: Tensor) -> Any:
        """-log of the probability of the next token and the most probable token, each `(B, T)`, at every position."""
        logits = logits[0] if isinstance(logits, tuple) else logits
        return token_nll(logits, next_labels(labels)), logits.argmax(-1)

    def measure(self, scores: Any, labels: NDArray[Any]) -> dict[str, float]:
        """Perplexity, NLL and accuracy over all tokens of a split, each predicted once."""
        nll, predicted = scores
        return language_metrics(nll[:, :-1], predicted[:, :-1], labels[:, 1:])

    def evaluate(self, trainer: RDropTrainer, rows: Rows, *, seed: int, exhibits: bool) -> Evaluation:
        """Metrics, the consistency gap on some of the blocks, continuations and the hardest tokens."""
        prediction = trainer.predict(rows)
        scores: Any = prediction.predictions
        labels = np.asarray(prediction.label_ids)
        metrics = self.measure(scores, labels)
        if self.counts_characters:
            nats = metrics["nll"] * np.count_nonzero(labels[:, 1:] != IGNORE_INDEX)
            metrics["bits_per_character"] = nats / math.log(2) / rows.characters
        metrics |= self.consistency(trainer, rows, seed)
        shown: list[Exhibit] = []
        if exhibits:
            model: Any = trainer.model
            set_seed(seed)
            shown = [
                continuations(model, self.tokenizer, rows, self.recipe.continuation, self.recipe.data.block_size),
                least_expected(self.tokenizer, rows, scores[0], scores[1], labels),
            ]
        return Evaluation(metrics, exhibits=shown)

    def consistency(self, trainer: RDropTrainer, rows: Rows, seed: int) -> dict[str, float]:
        """Dropout off against the average of many dropout-on predictions, on blocks spread over the split."""
        model: Any = trainer.model
        some = [rows[index] for index in evenly_spread(len(rows), self.recipe.data.consistency_blocks)]
        pairs = (
            ({name: batch[name] for name in ("input_ids", "attention_mask")}, next_labels(batch["labels"]))
            for batch in self.batches(some, model)
        )
        set_seed(seed)
        return consistency_metrics(consistency_gap(model, pairs, samples=self.recipe.compare.samples))

    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes a folder that `transformers` reads, with the vocabulary."""
        save_with_tokenizer(model, self.tokenizer, folder)

    def restore(self, folder: Path) -> nn.Module:
        """The model and the vocabulary of the folder."""
        model, self._tokenizer = restore_causal(folder, self.recipe.model.dropout)
        return model

    def read(self, paths: Sequence[Path]) -> list[str]:
        """The texts of the files: every line of a text file that is not blank, every row of a table."""
        data = self.recipe.data.model_copy(update={"documents": "line"})
        texts = [""]
        for path in paths:
            for piece in read_documents(path, data, BadRows("fail")):
                texts[-1] += piece.text
                if piece.ends:
                    texts.append("")
        return texts[:-1]

    def predict(self, model: nn.Module, rows: Rows, *, samples: int, seed: int) -> Iterator[Mapping[str, Any]]:
        """How probable each text is, and how the model continues it.

        Yields:
            `text`; its `continuation` and, as `confidence`, the geometric mean of the probabilities of the tokens of
            that, with samples also their `spread`, the mean of the standard deviations of these probabilities over the
            masks; the `perplexity` and the number of `tokens` of the text itself. With samples each probability is the
            mean over the masks; the continuation is written with dropout off in any case.
        """
        how, layout = self.recipe.continuation, self._layout(evaluation=True)
        for index, text in enumerate(rows):
            set_seed((seed + index) % 2**32)  # so that what is written does not depend on what was drawn before
            [piece] = token_pieces(self.tokenizer, [Piece(text, ends=False)])
            ids = list(piece.ids)
            new = continued(model, self.tokenizer, [layout.start, *ids], how, self.recipe.data.block_size)
            blocks = list(layout.blocks([TokenPiece([*ids, *new], ends=False)]))
            mean, spread = self._probabilities(model, blocks, samples)
            answer: dict[str, Any] = {
                "text": text,
                "continuation": self.tokenizer.decode(new[:-1] if new[-1] == layout.end else new),
                "confidence": float(mean[len(ids) :].log().mean().exp()),
            }
            if samples:
                answer["spread"] = float(spread[len(ids) :].mean())
            yield answer | {"perplexity": float(mean[: len(ids)].log().mean().neg().exp()), "tokens": len(ids)}

    def _probabilities(self, model: nn.Module, rows: Rows, samples: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over masks of the probability of each predicted token of some blocks."""
        found: list[tuple[Tensor, Tensor]] = []
        for batch in self.batches(rows, model):
            labels = next_labels(batch.pop("labels"))
            counts = labels != IGNORE_INDEX
            probability = functools.partial(_probability, labels=labels)
            mean, spread = sampled(model, batch, samples, probability)
            found.append((mean[counts], spread[counts]))
        means, spreads = zip(*found, strict=True)
        return torch.cat(means), torch.cat(spreads)


def _probability(logits: Tensor, labels: Tensor) -> Tensor:
    """The probability of each label; in double precision, in which a product of many stays above 0."""
    return token_nll(logits, labels).double().neg().exp()


def _sample(texts: Iterable[Piece], characters: int | None) -> Iterator[str]:
    """The first so many characters of a text."""
    for piece in texts:
        if characters is None:
            yield piece.text
        else:
            yield piece.text[:characters]
            characters -= len(piece.text)
            if characters <= 0:
                return


def _counts(split: Blocks) -> str:
    plural = "" if split.documents == 1 else "s"
    return f"{split.tokens:,} tokens of {split.documents:,} document{plural}"


def _unknown(splits: Mapping[str, Blocks]) -> Iterator[str]:
    """What the vocabulary does not know of the splits that are judged."""
    for name, split in splits.items():
        if split.unknown:
            share = split.unknown / split.tokens
            yield (
                f"{split.unknown:,} of the {split.tokens:,} tokens of the {name} split ({share:.1%}) are <unk>: they "
                "are not in the vocabulary, or are written so in the text. Perplexity counts them as predictions of "
                "<unk>, which is easier than to predict the words or characters themselves."
            )
