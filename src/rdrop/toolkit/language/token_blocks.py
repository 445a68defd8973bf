"""Running text as blocks of tokens, in which every token is predicted exactly once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from rdrop.integrations.objective_config import IGNORE_INDEX
from rdrop.toolkit.language.documents import Piece

CHARACTERS = 2**18  # that are made tokens at a time: the tokenizer's own record of a token is some hundred bytes

Ids = NDArray[np.int32]


class TokenPiece(NamedTuple):
    """A part of a document as tokens."""

    ids: Sequence[int]
    ends: bool
    """Whether the document ends here."""


@dataclass(frozen=True)
class Layout:
    """How tokens are laid out in blocks.

    Every document stands between a start token, which is given, and an end token, which is to be predicted. Where the
    two are one token, as in GPT-2, the end of a document is the start of the next in its block.
    """

    size: int
    """Tokens in a block, at least 2."""
    step: int
    """Tokens that a block predicts beyond the one before it, at most size - 1; the others are context alone."""
    start: int
    """The start token."""
    end: int
    """The end token."""
    across: bool
    """Whether a document begins in the block where the one before it ends, and so sees it; else that block is short."""

    def blocks(self, pieces: Iterable[TokenPiece]) -> Iterator[dict[str, Ids]]:
        """The blocks of some documents.

        `labels` are the `input_ids`, not shifted, with -100 where a token is not to be predicted: it was, by an earlier
        block, or it is a start token. So each token of a text and each end token has a label in exactly one block, and
        the first token of a block never has one.

        Args:
            pieces: The documents; they are read one piece ahead of the blocks.

        Yields:
            `input_ids` and `labels` of a block.

        >>> layout = Layout(size=4, step=3, start=1, end=2, across=True)
        >>> for block in layout.blocks([TokenPiece([7, 8], True), TokenPiece([9], True)]):
        ...     print(block["input_ids"], block["labels"])
        [1 7 8 2] [-100    7    8    2]
        [2 1 9 2] [-100 -100    9    2]
        """
        ids = labels = np.empty(0, np.int32)
        begins = True
        for piece in pieces:
            given = [self.start] if begins and not (len(ids) and self.start == self.end) else []
            text = np.asarray([*piece.ids, *([self.end] if piece.ends else [])], dtype=np.int32)
            ids = np.concatenate([ids, np.asarray(given, np.int32), text])
            labels = np.concatenate([labels, np.full(len(given), IGNORE_INDEX, np.int32), text])
            first = 0
            while len(ids) - first >= self.size:
                yield self._block(ids[first:], labels[first:])
                first += self.step
            ids, labels = ids[first:], labels[first:]
            begins = piece.ends
            if piece.ends and not self.across:
                yield from self._rest(ids, labels)
                ids = labels = ids[:0]
        yield from self._rest(ids, labels)

    def _block(self, ids: Ids, labels: Ids) -> dict[str, Ids]:
        """The first block of these tokens; its labels are used up."""
        block = {"input_ids": ids[: self.size].copy(), "labels": labels[: self.size].copy()}
        labels[: self.size] = IGNORE_INDEX
        return block

    def _rest(self, ids: Ids, labels: Ids) -> Iterator[dict[str, Ids]]:
        """The tokens that do not fill a block, if there is one among them that was not predicted."""
        if (labels != IGNORE_INDEX).any():
            yield self._block(ids, labels)


@dataclass(frozen=True, eq=False)
class Blocks(Dataset[dict[str, Ids]]):
    """A split as blocks, with what was counted on the way."""

    rows: Sequence[dict[str, Ids]]
    characters: int
    """Characters of the text."""
    tokens: int
    """Tokens of the text, the ends of documents not counted."""
    unknown: int
    """Those of them that are the unknown token."""
    documents: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Ids]:
        return self.rows[index]


def token_pieces(tokenizer: PreTrainedTokenizerBase, pieces: Iterable[Piece]) -> Iterator[TokenPiece]:
    """The tokens of each piece, read some pieces ahead.

    Args:
        tokenizer: A tokenizer; its special tokens are not put around the texts.
        pieces: Pieces of documents.

    Yields:
        One for each.
    """
    held: list[Piece] = []
    characters = 0
    for piece in pieces:
        held.append(piece)
        characters += len(piece.text)
        if characters >= CHARACTERS:
            yield from _tokens(tokenizer, held)
            held, characters = [], 0
    yield from _tokens(tokenizer, held)


def _tokens(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Piece]) -> Iterator[TokenPiece]:
    if pieces:
        # verbose: no word about texts that are longer than the model takes; they are cut into blocks.
        texts = [piece.text for piece in pieces]
        found = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        for piece, ids in zip(pieces, found, strict=True):
            yield TokenPiece(ids, piece.ends)


def packed(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Piece], layout: Layout) -> Blocks:
    """A text as blocks, all in memory.

    Args:
        tokenizer: Makes the tokens.
        pieces: The text.
        layout: How the tokens are laid out.
    """
    tokens = unknown = 0

    def counted() -> Iterator[TokenPiece]:
        nonlocal tokens, unknown
        for piece in token_pieces(tokenizer, pieces):
            tokens += len(piece.ids)
            unknown += list(piece.ids).count(tokenizer.unk_token_id)
            yield piece

    rows = list(layout.blocks(counted()))
    characters, documents = sum(len(piece.text) for piece in pieces), sum(piece.ends for piece in pieces)
    return Blocks(rows, characters=characters, tokens=tokens, unknown=unknown, documents=documents)


def padded(rows: Sequence[dict[str, Ids]], pad: int) -> dict[str, Tensor]:
    """Blocks as a batch: the shorter ones are filled up behind, with label -100 and attention 0.

    Args:
        rows: Blocks (B) of at most T tokens.
        pad: The token to fill up with.

    Returns:
        `input_ids`, `attention_mask` and `labels`, each `(B, T)` in int64.
    """
    ids = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows]
    labels = [torch.as_tensor(row["labels"], dtype=torch.long) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
    }


def next_labels(labels: Tensor) -> Tensor:
    """For each position the label that its logits predict, the next one; -100 at the last.

    Args:
        labels: `(B, T)`, not shifted.

    Returns:
        `(B, T)`.

    >>> next_labels(torch.tensor([[-100, 7, 8]])).tolist()
    [[7, 8, -100]]
    """
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
