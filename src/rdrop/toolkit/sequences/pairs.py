"""Pairs of a source text and the target that is to be written for it: read, and turned into tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, Features, List, Value, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from rdrop.toolkit.data.rows import BadRows, BadValue, Row, text_value
from rdrop.toolkit.plain_yaml import shown

CHUNK = 10_000  # texts that are made tokens at a time; Python's own numbers need much more room than those of Arrow

TOKENS = List(Value("int32"))
FEATURES = Features({"input_ids": TOKENS, "labels": TOKENS})


@dataclass(frozen=True, slots=True)
class TextPair:
    """What one row of a table says."""

    source: str
    target: str
    references: list[str]
    """What an output is measured against: the target, and others where there are some."""


def read_pairs(
    rows: Iterable[Row], source: str, target: str, *, references: str | None = None, bad_rows: BadRows
) -> Iterator[TextPair]:
    """The pairs of a table.

    Args:
        rows: Its rows.
        source: Column of the sources.
        target: Column of the targets.
        references: Column with a list of further references for each row.
        bad_rows: What becomes of a row that cannot be used.

    Raises:
        UserError: A row cannot be used and the policy is `fail`.

    >>> from pathlib import Path
    >>> rows = [Row(Path("train.tsv"), 2, {"de": "Ein Hund.", "en": "A dog."})]
    >>> list(read_pairs(rows, "de", "en", bad_rows=BadRows()))
    [TextPair(source='Ein Hund.', target='A dog.', references=['A dog.'])]
    """
    for row in rows:
        pair = None
        with bad_rows.guard(row):
            answer = text_value(row, target)
            others = [] if references is None else _texts(row, references)
            pair = TextPair(text_value(row, source), answer, [answer, *others])
        if pair is not None:
            yield pair


def _texts(row: Row, column: str) -> list[str]:
    """The list of texts in a column."""
    values = row.values.get(column)
    if not isinstance(values, list):
        raise BadValue(
            f"{column}: got {shown(values)}, expected a list of texts; a file of lists is .jsonl or .parquet"
        )
    return [text_value(Row(row.path, row.number, {column: value}), column) for value in values]


@dataclass
class TokenLimit:
    """Makes tokens of the texts of one side, and counts those that are cut.

    Args:
        tokenizer: Puts its special tokens where they belong.
        most: Most tokens of a text, special ones included.
        is_target: Whether the texts are targets, which some tokenizers treat in their own way.
        prefix: What is put before every text.
    """

    tokenizer: PreTrainedTokenizerBase
    most: int
    is_target: bool = False
    prefix: str = ""
    read: int = field(default=0, init=False)
    cut: int = field(default=0, init=False)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        texts = [self.prefix + text for text in texts]
        found = self._encoded(texts)
        long = [index for index, ids in enumerate(found) if len(ids) > self.most]
        if long:  # again, so that the tokenizer says which tokens have to stay
            shortened = self._encoded([texts[index] for index in long], truncation=True, max_length=self.most)
            for index, ids in zip(long, shortened, strict=True):
                found[index] = ids
        self.read += len(texts)
        self.cut += len(long)
        return found

    def _encoded(self, texts: list[str], **options: Any) -> list[list[int]]:
        side = {"text_target": texts} if self.is_target else {"text": texts}
        # verbose: no word about texts that are longer than the model takes; they are cut and counted here.
        ids: list[list[int]] = self.tokenizer(**side, verbose=False, **options)["input_ids"]
        return ids


def token_columns(pairs: Sequence[TextPair], source: TokenLimit, target: TokenLimit) -> dict[str, list[list[int]]]:
    """The columns `input_ids` and `labels` of some pairs.

    Args:
        pairs: The pairs.
        source: Makes tokens of sources.
        target: Makes tokens of targets.
    """
    return {
        "input_ids": source.ids([pair.source for pair in pairs]),
        "labels": target.ids([pair.target for pair in pairs]),
    }


def token_rows(pairs: Sequence[TextPair], source: TokenLimit, target: TokenLimit) -> Dataset:
    """The same as a data set; the arguments are those of `token_columns`, and there is at least one pair."""
    chunks = (pairs[start : start + CHUNK] for start in range(0, len(pairs), CHUNK))
    return concatenate_datasets(
        [Dataset.from_dict(token_columns(chunk, source, target), features=FEATURES) for chunk in chunks]
    )
