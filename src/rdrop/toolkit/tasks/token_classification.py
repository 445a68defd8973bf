"""Sentences with a tag for each word, such as the names in them, and an encoder that reads them.

Shapes: B rows of a batch, T tokens, C tags, N rows of a split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from pydantic import Field
from seqeval.metrics import classification_report
from seqeval.metrics.sequence_labeling import get_entities
from torch import Tensor, nn
from transformers import (
    AutoModelForTokenClassification,
    BatchEncoding,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerBase,
    set_seed,
)

from rdrop.errors import UserError
from rdrop.integrations.objective_config import IGNORE_INDEX
from rdrop.integrations.transformers import RDropTrainer
from rdrop.toolkit.data.label_names import LabelNames, without_examples
from rdrop.toolkit.data.labelled_splits import (
    LabelledData,
    Table,
    labelled_splits,
    tokenized,
    tokenized_splits,
    unlabelled,
)
from rdrop.toolkit.data.rows import BadRows, Row
from rdrop.toolkit.data.text_lines import text_lines
from rdrop.toolkit.metrics import CONSISTENCY_METRICS
from rdrop.toolkit.metrics.tagging import TAGGING_METRICS, require_entity_tags, tagging_metrics
from rdrop.toolkit.monte_carlo import sampled
from rdrop.toolkit.pretrained import save_with_tokenizer
from rdrop.toolkit.recipe import Recipe
from rdrop.toolkit.sequences.generated_text import token_nll
from rdrop.toolkit.summary import Listing, Metric
from rdrop.toolkit.task import Evaluation, Rows, Splits, Task
from rdrop.toolkit.text.encoders import (
    EncoderModel,
    build_encoder,
    encoder_tokenizer,
    first_output,
    label_options,
    model_inputs,
    restore_encoder,
)
from rdrop.toolkit.text.exhibits import SHOWN, cut, label_table
from rdrop.toolkit.text.tagged_sentences import sentence_rows, tags_value, words_value


class TokenData(LabelledData):
    """What to train and test on."""

    train: str = Field(default="train.jsonl", description="Training split.")
    tokens: str = Field(default="tokens", description="Column of the words, a list for each sentence.")
    tags: str = Field(default="tags", description="Column of their tags, a list of the same length.")
    max_length: Annotated[int, Field(ge=8)] = Field(
        default=128, description="Tokens of a row at most; longer sentences stand in several rows, and are counted."
    )


class TokenRecipe(Recipe):
    """A complete comparison on tagged sentences."""

    FAMILY = "token-classification"
    DEFAULTS = {
        "training": {"learning_rate": 5e-5, "lr_scheduler": "linear", "warmup_ratio": 0.1, "eval_batch_size": 128}
    }

    task: Literal["token-classification"] = Field(default="token-classification", description="What is learned.")
    title: str = Field(default="Token classification", description="Heading of the report.")
    data: TokenData = Field(default=TokenData(), description="What to train and test on.")
    model: EncoderModel = Field(default=EncoderModel(), description="The network.")


@dataclass(frozen=True)
class Sentence:
    """Words and their tags."""

    words: list[str]
    tags: list[str] | None


class SentenceTable(Table[Sentence]):
    """Files of tagged sentences.

    Args:
        data: Names the columns.
    """

    def __init__(self, data: TokenData) -> None:
        self.data = data

    def examples(self, path: Path, names: LabelNames | None, bad_rows: BadRows) -> Iterator[Sentence]:
        """The sentences with their tags."""
        data = self.data
        for row in sentence_rows(path, data.tokens, data.tags, data.encoding, bad_rows):
            with bad_rows.guard(row):
                words = words_value(row, data.tokens)
                tags = tags_value(row, data.tags, words)
                yield Sentence(words, tags if names is None else [names.known(tag, data.tags) for tag in tags])

    def unanswered(self, path: Path, bad_rows: BadRows) -> Iterator[Sentence]:
        """The sentences of a file; in a .txt file each line is one, with spaces between its words."""
        data = self.data
        if path.name.lower().removesuffix(".gz").endswith(".txt"):
            lines = enumerate(text_lines(path, data.encoding), 1)
            rows: Iterator[Row] = (Row(path, number, {data.tokens: line.split()}) for number, line in lines)
        else:
            rows = sentence_rows(path, data.tokens, None, data.encoding, bad_rows)
        for row in rows:
            with bad_rows.guard(row):
                yield Sentence(words_value(row, data.tokens), None)

    def labels(self, example: Sentence) -> Iterable[str]:
        """The tags."""
        return example.tags or ()

    def check(self, names: LabelNames, counts: Counter[str], path: Path) -> list[str]:
        """They must say where entities are, and there must be one; those that no word has are noted."""
        try:
            require_entity_tags(names.names)
        except UserError as error:
            raise UserError(
                f"{names.path}: {error}. Where tags are numbers, data.labels names the file of names."
            ) from None
        if not any(tag != "O" for tag in counts):
            raise UserError(f"{path}: every tag is O (column {self.data.tags}); expected at least one entity")
        return without_examples(names, counts)


class TokenTask(Task[TokenRecipe]):
    """Words and their tags."""

    RECIPE = TokenRecipe

    def __init__(self, recipe: TokenRecipe) -> None:
        super().__init__(recipe)
        self.table = SentenceTable(recipe.data)
        self.names: tuple[str, ...] = ()
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """That of the model, after `load` or `restore`."""
        assert self._tokenizer is not None
        return self._tokenizer

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Those of entities, and how consistent the model is about words."""
        return (*TAGGING_METRICS, *CONSISTENCY_METRICS)

    def load(self, seed: int) -> Splits:
        """The sentences, drawn from and tokenized."""
        data = self.recipe.data
        splits = labelled_splits(data, seed, self.table)
        self.names = splits.names
        texts = (" ".join(sentence.words) for sentence in splits.train())
        self._tokenizer = encoder_tokenizer(self.recipe.model, texts, data.max_length, in_words=True)
        heading = f"Sentences with one of {len(self.names)} tags for each word"
        consequence = "stand in several rows: an entity across a cut counts as two"
        return tokenized_splits(splits, self._columns, data, seed, heading=heading, consequence=consequence)

    def _columns(self, sentences: Sequence[Sentence]) -> tuple[dict[str, Any], int]:
        """Columns for the model and for people, a long sentence in several rows, and how many sentences are long.

        `positions` has the first token of each word; the label of every other token is -100, so that task loss and
        divergence are over words.
        """
        encoded = self._encoded([sentence.words for sentence in sentences])
        sentence_of: list[int] = encoded["overflow_to_sample_mapping"]
        columns: dict[str, list[Any]] = {name: encoded[name] for name in self.tokenizer.model_input_names}
        columns |= {"sentence": sentence_of, "words": [], "positions": []}
        ids = {name: index for index, name in enumerate(self.names)}
        labels: list[list[int]] = []
        latest = -1
        for row, index in enumerate(sentence_of):
            if row == 0 or index != sentence_of[row - 1]:
                latest = -1
            starts: list[tuple[int, int]] = []
            for position, word in enumerate(encoded.word_ids(row)):
                # Tokens that go on with a word follow its first one, maybe from the row before.
                if word is not None and word > latest:
                    starts.append((position, word))
                    latest = word
            columns["words"].append([sentences[index].words[word] for _, word in starts])
            columns["positions"].append([position for position, _ in starts])
            labels.append([IGNORE_INDEX] * len(encoded["input_ids"][row]))
            for position, word in starts:
                tags = sentences[index].tags
                labels[row][position] = IGNORE_INDEX if tags is None else ids[tags[word]]
        if sentences[0].tags is not None:
            columns["labels"] = labels
        return columns, sum(count > 1 for count in Counter(sentence_of).values())

    def _encoded(self, sentences: list[list[str]]) -> BatchEncoding:
        """Tokens of sentences, with at least one for every word."""

        def encode(words: list[list[str]]) -> BatchEncoding:
            length = self.recipe.data.max_length
            made: BatchEncoding = self.tokenizer(
                words, is_split_into_words=True, truncation=True, max_length=length, return_overflowing_tokens=True
            )
            return made

        encoded = encode(sentences)
        found: list[set[int | None]] = [set() for _ in sentences]
        for row, index in enumerate(encoded["overflow_to_sample_mapping"]):
            found[index].update(encoded.word_ids(row))
        if all(set(range(len(words))) <= there for words, there in zip(sentences, found, strict=True)):
            return encoded
        # Tokenizers drop some characters, such as joiners of emojis; a word of such characters alone still has a tag.
        unknown = self.tokenizer.unk_token or "?"
        return encode(
            [
                [word if index in there else unknown for index, word in enumerate(words)]
                for words, there in zip(sentences, found, strict=True)
            ]
        )

    def build_model(self) -> nn.Module:
        """An encoder with a head for the tags."""
        model, length = self.recipe.model, self.recipe.data.max_length
        options = label_options(self.names)
        return build_encoder(AutoModelForTokenClassification, model, self.tokenizer, length, **options)

    def collate(self, rows: Any) -> dict[str, Tensor]:
        """The batch, padded to its longest row."""
        pad = DataCollatorForTokenClassification(self.tokenizer, label_pad_token_id=IGNORE_INDEX)
        return dict(pad([model_inputs(row, self.tokenizer) for row in rows]))

    def scores(self, logits: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The most probable tag, and -log of the probability of the right one, each `(B, T)`."""
        logits = first_output(logits)
        return logits.argmax(-1), token_nll(logits, labels)

    def measure(self, scores: Any, labels: NDArray[Any]) -> dict[str, float]:
        """The metrics of entities, over all rows."""
        predicted, nll = scores
        counted = labels != IGNORE_INDEX
        summed, count = float(nll[counted].sum(dtype=np.float64)), int(counted.sum())
        return tagging_metrics(self._tags(predicted, counted), self._tags(labels, counted), summed, count)

    def _tags(self, ids: NDArray[Any], counted: NDArray[np.bool_]) -> list[list[str]]:
        """Names of the tags of the words in each row."""
        return [[self.names[i] for i in row[counts]] for row, counts in zip(ids, counted, strict=True)]

    def evaluate(self, trainer: RDropTrainer, rows: Rows, *, seed: int, exhibits: bool) -> Evaluation:
        """Metrics, consistency, entities by type, and the sentences that are most wrong."""
        prediction = trainer.predict(rows)
        scores: Any = prediction.predictions
        labels = np.asarray(prediction.label_ids)
        metrics = self.measure(scores, labels) | self.consistency(trainer, rows, seed)
        if not exhibits:
            return Evaluation(metrics)
        counted = labels != IGNORE_INDEX
        predicted, right = self._tags(scores[0], counted), self._tags(labels, counted)
        nll = np.where(counted, scores[1], 0).sum(axis=1)
        return Evaluation(
            metrics, exhibits=[_by_type(predicted, right), _most_wrong(rows["words"], predicted, right, nll)]
        )

    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes a folder of transformers, with the names of the tags in its configuration."""
        save_with_tokenizer(model, self.tokenizer, folder)

    def restore(self, folder: Path) -> nn.Module:
        """The model of such a folder, with its tokenizer and tags."""
        auto, rate = AutoModelForTokenClassification, self.recipe.model.dropout
        model, self._tokenizer, self.names = restore_encoder(
            auto, folder, rate, loaded=(self._tokenizer, self.names), in_words=True
        )
        return model

    def read(self, paths: Sequence[Path]) -> Dataset:
        """Files of the kinds of training without tags, or .txt files with a sentence in each line."""
        return tokenized(unlabelled(paths, self.recipe.data, self.table), self._columns)[0]

    def predict(self, model: nn.Module, rows: Rows, *, samples: int, seed: int) -> Iterator[Mapping[str, Any]]:
        """The tags of each sentence and the entities in it; `confidence` is that of the least certain tag."""
        set_seed(seed)
        parts: list[dict[str, Any]] = []
        remaining = iter(rows)
        for batch in self.batches(rows, model):
            for mean, spread in zip(*sampled(model, batch, samples), strict=True):
                row = next(remaining)
                if parts and parts[0]["sentence"] != row["sentence"]:
                    yield self._answer(parts, samples)
                    parts = []
                words = row["positions"]
                parts.append({**row, "probabilities": mean[words].cpu(), "spread": spread[words].cpu()})
        yield self._answer(parts, samples)

    def _answer(self, parts: Sequence[Mapping[str, Any]], samples: int) -> dict[str, Any]:
        """What is said about a sentence, from its rows."""
        words = [word for part in parts for word in part["words"]]
        confidence, best = torch.cat([part["probabilities"] for part in parts]).max(-1)
        tags = [self.names[tag] for tag in best.tolist()]
        least = int(confidence.argmin())
        answer = {"tokens": words, "tags": tags, "confidence": float(confidence[least])}
        if samples:
            answer["spread"] = float(torch.cat([part["spread"] for part in parts])[least, best[least]])
        answer["confidences"] = confidence.tolist()
        answer["entities"] = [{"type": kind, "text": text} for kind, text in _entities(words, tags)]
        return answer


def _entities(words: Sequence[str], tags: Sequence[str]) -> list[tuple[str, str]]:
    """Type and words of the entities in a sentence."""
    found = get_entities(list(tags))
    return [(str(kind), " ".join(words[first : last + 1])) for kind, first, last in found]


def _by_type(predicted: list[list[str]], right: list[list[str]]) -> Listing:
    """How well entities of each type are found."""
    report = classification_report(right, predicted, output_dict=True, zero_division=0)
    scores = [
        (str(name), int(row["support"]), row["precision"], row["recall"], row["f1-score"])
        for name, row in report.items()
        if name not in ("micro avg", "macro avg", "weighted avg")
    ]
    return label_table(scores, "entities")


def _most_wrong(
    words: Sequence[Sequence[str]], predicted: list[list[str]], right: list[list[str]], nll: NDArray[Any]
) -> Listing:
    """The sentences with a wrong tag whose right tags were the least probable."""
    wrong = [row for row in range(len(right)) if predicted[row] != right[row]]
    worst = sorted(wrong, key=lambda row: -float(nll[row]))[:SHOWN]

    def told(row: int, tags: Sequence[str]) -> str:
        return ", ".join(f"{text} ({kind})" for kind, text in _entities(words[row], tags)) or "none"

    return Listing(
        title="Most wrong",
        reading=f"Of {len(wrong):,} rows with a wrong tag of {len(right):,}, those whose right tags were the least "
        "probable.",
        columns=["Sentence", "Right", "Predicted"],
        rows=[[cut(" ".join(words[row])), told(row, right[row]), told(row, predicted[row])] for row in worst],
    )
