from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GPT2Config, MarianConfig, PreTrainedTokenizerFast

from rdrop.errors import UserError
from rdrop.toolkit.text.vocabulary import VocabularyKind, train_vocabulary

AWKWARD = "Schöne Grüße  aus   Köln, e\u0301! 🙂👩\u200d👧\n\n  x\t\r\n \u2028\u00a0 </s> <unk> end  "
KINDS: list[tuple[VocabularyKind, int | None]] = [("bpe", 300), ("word", None), ("character", None)]


def tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    return [str(token) for token in tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])]


def test_bpe_gives_back_every_text_exactly() -> None:
    tokenizer = train_vocabulary(["a rose is a rose"] * 3, "bpe", 265)
    assert len(tokenizer) == 265
    for text in [AWKWARD, " ", "\n", "象", "a rose"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_bpe_merges_what_is_frequent() -> None:
    tokenizer = train_vocabulary(["rose rose rose"], "bpe", 1000)
    assert tokens(tokenizer, "rose rose") == ["rose", "Ġrose"]
    assert tokens(train_vocabulary(["rose rose rose"], "bpe", 1000, minimum_count=4), "rose") == list("rose")


def test_characters_give_back_every_known_text_exactly_and_count_code_points() -> None:
    tokenizer = train_vocabulary([AWKWARD], "character")
    assert tokenizer.decode(tokenizer(AWKWARD)["input_ids"]) == AWKWARD
    assert len(tokenizer(AWKWARD)["input_ids"]) == len(AWKWARD)
    assert tokens(tokenizer, "x象\n") == ["x", "<unk>", "\n"]


def test_words_are_what_stands_between_white_space_and_line_ends_are_words() -> None:
    tokenizer = train_vocabulary(["to be , or\n\nnot  \tto be\n"], "word")
    assert tokens(tokenizer, " or  not\u00a0\n\nto see") == ["or", "not", "\n", "\n", "to", "<unk>"]
    assert tokenizer.decode(tokenizer(" or  not \n\n to be ")["input_ids"]) == "or not\n\nto be"


def test_the_most_frequent_are_kept_and_equally_frequent_ones_are_ordered() -> None:
    text = "c c c b b a a d"
    assert list(ordered(train_vocabulary([text], "word", 6))) == ["<pad>", "<s>", "</s>", "<unk>", "c", "a"]
    assert list(ordered(train_vocabulary([text], "word", minimum_count=2)))[4:] == ["c", "a", "b"]
    assert list(ordered(train_vocabulary(["bbaac"], "character", 6)))[4:] == ["a", "b"]


def ordered(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    return sorted(vocabulary, key=vocabulary.__getitem__)


def test_a_text_that_spells_a_special_token_ends_nothing() -> None:
    for kind, size in [KINDS[0], KINDS[2]]:
        tokenizer = train_vocabulary(["a </s> b <pad>"], kind, size)
        assert tokenizer.eos_token_id not in tokenizer("a </s> b <pad>")["input_ids"]
        assert tokenizer.decode(tokenizer("a </s> b <pad>")["input_ids"]) == "a </s> b <pad>"


def test_the_unknown_word_of_wikitext_is_the_unknown_token_and_has_one_place() -> None:
    tokenizer = train_vocabulary(["the <unk> of <unk> <unk> <unk>"], "word")
    assert tokenizer("<unk>")["input_ids"] == [tokenizer.unk_token_id] == tokenizer("never")["input_ids"]
    assert len(ordered(tokenizer)) == 6


@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_it_is_the_same_every_time_and_does_not_depend_on_how_the_texts_come(
    kind: VocabularyKind, size: int | None
) -> None:
    texts = [f"{AWKWARD} {i} the cat {'sat ' * i}\n" for i in range(20)]

    def one_by_one() -> Iterator[str]:
        yield from texts

    assert ordered(train_vocabulary(texts, kind, size)) == ordered(train_vocabulary(one_by_one(), kind, size))


@pytest.mark.parametrize(("kind", "size"), KINDS)
@pytest.mark.parametrize("config", [None, GPT2Config(), MarianConfig()])
def test_it_is_read_back_from_a_folder_also_beside_the_configuration_of_a_model(
    kind: VocabularyKind, size: int | None, config: GPT2Config | MarianConfig | None, tmp_path: Path
) -> None:
    tokenizer = train_vocabulary(["a rose is </s> a rose", AWKWARD], kind, size, append_end=True)
    if config is not None:
        config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    for text in [AWKWARD, "Zoë is <unk> </s> 象\n a  rose"]:
        ids = tokenizer(text)["input_ids"]
        assert again(text)["input_ids"] == ids
        assert again.decode(ids) == tokenizer.decode(ids)
    assert again.special_tokens_map == tokenizer.special_tokens_map
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".json"]


def test_the_end_is_appended_where_it_is_asked_for() -> None:
    tokenizer = train_vocabulary(["a rose is a rose"], "word", append_end=True)
    assert tokens(tokenizer, "a rose") == ["a", "rose", "</s>"]
    assert tokens(tokenizer, "") == ["</s>"]
    padded = tokenizer(["a", "a rose"], padding=True)
    assert padded["input_ids"][0][-1] == tokenizer.pad_token_id
    assert padded["attention_mask"] == [[1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize(
    ("texts", "kind", "size", "minimum_count", "message"),
    [
        ([], "word", None, 1, "there is no text to learn a vocabulary from; expected at least one that is not empty"),
        (["", ""], "bpe", 300, 1, "there is no text to learn a vocabulary from"),
        (
            [" \t"],
            "word",
            None,
            1,
            "no word occurs 1 times in the texts to learn a vocabulary from; expected at least one",
        ),
        (["a b"], "character", None, 9, "no character occurs 9 times in the texts"),
        (["a"], "bpe", None, 1, "the vocabulary's size is null; for bpe expected a number of tokens, for example 8000"),
        (["a"], "bpe", 258, 1, "the vocabulary's size is 258; expected at least 259: 256 bytes and 3 special tokens"),
        (["a"], "word", 4, 1, "the vocabulary's size is 4; expected at least 5: one word and 4 special tokens"),
    ],
)
def test_what_no_vocabulary_can_be_learned_from(
    texts: list[str], kind: VocabularyKind, size: int | None, minimum_count: int, message: str
) -> None:
    with pytest.raises(UserError) as raised:
        train_vocabulary(texts, kind, size, minimum_count=minimum_count)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_a_fault_that_the_reading_finds_arrives_as_it_is(kind: VocabularyKind, size: int | None) -> None:
    def broken() -> Iterator[str]:
        yield "a rose"
        raise UserError("train.txt:2: the byte 0xff is not utf-8")

    with pytest.raises(UserError, match=r"^train\.txt:2: the byte 0xff"):
        train_vocabulary(broken(), kind, size)
