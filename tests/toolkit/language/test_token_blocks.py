from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch

from rdrop.toolkit.language import token_blocks
from rdrop.toolkit.language.documents import Piece
from rdrop.toolkit.language.token_blocks import Blocks, Layout, TokenPiece, next_labels, packed, padded, token_pieces
from rdrop.toolkit.text.vocabulary import train_vocabulary

IGNORED = -100
START, END = 1, 2


def pieces_of(documents: list[list[int]], cut: int = 3) -> list[TokenPiece]:
    """The documents in pieces of so many tokens."""
    return [
        TokenPiece(document[i : i + cut], ends=i + cut >= len(document))
        for document in documents
        for i in range(0, len(document), cut)
    ]


def random_documents(seed: int) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(10, 1000, size).tolist() for size in generator.integers(1, 40, 12)]


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("start", [START, END])
@pytest.mark.parametrize(("size", "step"), [(2, 1), (8, 7), (8, 3), (8, 1), (64, 63), (1000, 999)])
def test_every_token_and_every_end_is_predicted_exactly_once(size: int, step: int, start: int, across: bool) -> None:
    documents = random_documents(seed=size)
    layout = Layout(size, step, start=start, end=END, across=across)
    blocks = list(layout.blocks(pieces_of(documents)))
    predicted = [label for block in blocks for label in block["labels"].tolist() if label != IGNORED]
    assert predicted == [token for document in documents for token in [*document, END]]
    for block in blocks:
        ids, labels = block["input_ids"], block["labels"]
        assert 2 <= len(ids) <= size
        assert labels[0] == IGNORED
        assert (ids[labels != IGNORED] == labels[labels != IGNORED]).all()
        assert (labels != IGNORED).sum() <= max(step, size - 1 if ids[0] == start else step)


@pytest.mark.parametrize("start", [START, END])
def test_blocks_of_one_document_overlap_by_their_context(start: int) -> None:
    document = list(range(10, 40))
    layout = Layout(8, 3, start=start, end=END, across=True)
    blocks = list(layout.blocks(pieces_of([document])))
    stream = [start, *document, END]
    assert [block["input_ids"].tolist() for block in blocks] == [
        stream[i : i + 8] for i in range(0, len(stream) - 5, 3)
    ]
    assert [np.count_nonzero(block["labels"] != IGNORED) for block in blocks] == [7, *[3] * 8]


def test_documents_that_meet_in_a_block_stand_between_start_and_end() -> None:
    documents = [[7, 8], [9]]
    apart = list(Layout(16, 15, start=START, end=END, across=True).blocks(pieces_of(documents)))
    assert [block["input_ids"].tolist() for block in apart] == [[START, 7, 8, END, START, 9, END]]
    assert apart[0]["labels"].tolist() == [IGNORED, 7, 8, END, IGNORED, 9, END]
    shared = list(Layout(16, 15, start=END, end=END, across=True).blocks(pieces_of(documents)))
    assert [block["input_ids"].tolist() for block in shared] == [[END, 7, 8, END, 9, END]]
    assert shared[0]["labels"].tolist() == [IGNORED, 7, 8, END, 9, END]


@pytest.mark.parametrize("start", [START, END])
def test_documents_that_must_not_meet_never_share_a_block(start: int) -> None:
    documents = [[100 * i + j for j in range(10, 10 + 3 * i)] for i in range(1, 8)]
    for size in (2, 7, 16):
        for block in Layout(size, size - 1, start=start, end=END, across=False).blocks(pieces_of(documents)):
            assert len({token // 100 for token in block["input_ids"].tolist() if token >= 100}) <= 1


def test_a_text_that_is_not_ended_has_no_end() -> None:
    [block] = Layout(8, 7, start=START, end=END, across=True).blocks([TokenPiece([5, 6], ends=False)])
    assert block["input_ids"].tolist() == [START, 5, 6]


def test_blocks_do_not_share_memory() -> None:
    blocks = list(Layout(4, 1, start=START, end=END, across=True).blocks([TokenPiece([5, 6, 7, 8, 9], True)]))
    before = [block["labels"].copy() for block in blocks]
    blocks[0]["labels"][:] = 0
    blocks[0]["input_ids"][:] = 0
    assert all((block["labels"] == old).all() for block, old in zip(blocks[1:], before[1:], strict=True))
    assert (blocks[1]["input_ids"] != 0).all()


def test_an_endless_text_is_read_as_its_blocks_are_asked_for() -> None:
    tokenizer = train_vocabulary(["abc \n"], "character")
    read = 0

    def endless() -> Iterator[Piece]:
        nonlocal read
        while True:
            read += 1
            assert 8000 * read < 63 * 1000 + 2 * token_blocks.CHARACTERS
            yield Piece("abc abc\n" * 1000, ends=read % 5 == 0)

    layout = Layout(64, 63, start=START, end=END, across=True)
    blocks = list(islice(layout.blocks(token_pieces(tokenizer, endless())), 1000))
    assert len(blocks) == 1000


def test_a_split_counts_its_characters_tokens_and_unknown_ones() -> None:
    tokenizer = train_vocabulary(["a rose is a rose"], "word")
    pieces = [Piece("a rose ", False), Piece("is blue", True), Piece("a <unk>", True)]
    blocks = packed(tokenizer, pieces, Layout(4, 3, start=START, end=END, across=True))
    assert (blocks.characters, blocks.tokens, blocks.unknown, blocks.documents) == (21, 6, 2, 2)
    assert len(blocks) == 3
    assert tokenizer.convert_ids_to_tokens(blocks[0]["input_ids"].tolist()) == ["<s>", "a", "rose", "is"]


def test_the_size_of_what_is_made_tokens_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_vocabulary(["a rose is a rose"], "bpe", 270)
    pieces = [Piece(f"rose {i} is\n", i % 3 == 0) for i in range(20)]
    whole = list(token_pieces(tokenizer, pieces))
    monkeypatch.setattr(token_blocks, "CHARACTERS", 1)
    assert list(token_pieces(tokenizer, pieces)) == whole
    assert [piece.ends for piece in whole] == [piece.ends for piece in pieces]
    assert tokenizer.decode(list(whole[7].ids)) == "rose 7 is\n"


def test_shorter_blocks_are_filled_up_behind() -> None:
    rows = [
        {"input_ids": np.array([1, 7, 8], np.int32), "labels": np.array([IGNORED, 7, 8], np.int32)},
        {"input_ids": [1, 9], "labels": [IGNORED, 9]},  # as a streamed data set gives them
    ]
    batch = padded(rows, pad=5)  # type: ignore[arg-type]
    assert batch["input_ids"].tolist() == [[1, 7, 8], [1, 9, 5]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 7, 8], [IGNORED, 9, IGNORED]]
    assert {column.dtype for column in batch.values()} == {torch.int64}
    assert next_labels(batch["labels"]).tolist() == [[7, 8, IGNORED], [9, IGNORED, IGNORED]]


def test_blocks_are_a_data_set() -> None:
    row = {"input_ids": np.array([1, 7], np.int32), "labels": np.array([IGNORED, 7], np.int32)}
    blocks = Blocks([row], characters=1, tokens=1, unknown=0, documents=1)
    assert blocks[0] is row
    assert len(blocks) == 1
