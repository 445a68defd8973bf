"""A vocabulary that is learned from the user's own texts, as a tokenizer of transformers."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rdrop.errors import UserError

VocabularyKind = Literal["bpe", "word", "character"]

PAD, UNK, BOS, EOS = "<pad>", "<unk>", "<s>", "</s>"
BYTES = 256
NEVER = "\0"  # the decoder of WordPiece joins words by spaces unless they begin with a prefix


def train_vocabulary(
    texts: Iterable[str],
    kind: VocabularyKind,
    size: int | None = None,
    *,
    minimum_count: int = 1,
    append_end: bool = False,
) -> PreTrainedTokenizerFast:
    r"""Learns a vocabulary; the same texts give the same vocabulary.

    - `bpe`: pieces of words, by byte-pair encoding (Sennrich et al. 2016) of the UTF-8 bytes, as in GPT-2. It knows
      every text, and decoding gives back every text exactly, spaces and line ends included.
    - `word`: what stands between white space, and each line end as a token of its own. Other words become `<unk>`.
      Decoding puts one space between words and none around line ends.
    - `character`: Unicode code points, spaces and line ends among them. Other ones become `<unk>`. Decoding gives back
      exactly what is known.

    The first tokens are `<pad>`, `<s>` and `</s>`, and in `word` and `character` also `<unk>`. A text that spells one
    of them is read as any other text, except that in `word` a whole word spelled so is that token, as is meant by the
    `<unk>` of WikiText.

    Args:
        texts: What to learn from; read once, one text at a time.
        kind: What a token is.
        size: Most tokens to have, special ones included: the most frequent words or characters, or as many merges of
            `bpe`. None: all that occur; `bpe` needs a number.
        minimum_count: Times that a word or character has to occur, or a pair that `bpe` merges; at least 1.
        append_end: Whether the tokenizer puts `</s>` after every text, as the two sides of a translation need it.

    Returns:
        A tokenizer that `save_pretrained` writes and `AutoTokenizer.from_pretrained` reads.

    Raises:
        UserError: There is no text, or the size cannot hold even single bytes or one word.

    >>> tokenizer = train_vocabulary(["a rose is a rose"], "word")
    >>> tokenizer.convert_ids_to_tokens(tokenizer("a daisy is\na rose")["input_ids"])
    ['a', '<unk>', 'is', '<unk>', 'a', 'rose']
    """
    special = [PAD, BOS, EOS] if kind == "bpe" else [PAD, BOS, EOS, UNK]
    least = len(special) + (BYTES if kind == "bpe" else 1)
    if size is not None and size < least:
        what = f"{BYTES} bytes" if kind == "bpe" else f"one {kind}"
        raise UserError(
            f"the vocabulary's size is {size:,}; expected at least {least}: {what} and {len(special)} special tokens"
        )
    match kind:
        case "bpe":
            if size is None:
                raise UserError("the vocabulary's size is null; for bpe expected a number of tokens, for example 8000")
            tokenizer = _merged_bytes(_some(texts), size, minimum_count, special)
        case "word":
            tokenizer = _with_entries(_words(), _some(texts), size, minimum_count, special)
        case "character":
            tokenizer = _with_entries(_characters(), _some(texts), size, minimum_count, special)
    if tokenizer.get_vocab_size() < least:
        raise UserError(
            f"no {kind} occurs {minimum_count} times in the texts to learn a vocabulary from; expected at least one. "
            "Lower the count that is asked for, or give more text."
        )
    if append_end:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, tokenizer.token_to_id(EOS))]
        )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=None if kind == "bpe" else UNK,
        # A text about XML must not end a document.
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


def _some(texts: Iterable[str]) -> Iterator[str]:
    """The texts, at least one of which has a character in it."""
    remaining = iter(texts)
    for text in remaining:
        if text:
            return chain([text], remaining)
    raise UserError("there is no text to learn a vocabulary from; expected at least one that is not empty")


def _merged_bytes(texts: Iterator[str], size: int, minimum_count: int, special: list[str]) -> Tokenizer:
    """Bytes, and the most frequent pairs merged one after another."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=minimum_count,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _words() -> Tokenizer:
    """What stands between white space, and line ends."""
    tokenizer = Tokenizer(models.WordLevel())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix=NEVER, cleanup=False),
            decoders.Fuse(),
            decoders.Replace(" \n", "\n"),
            decoders.Replace("\n ", "\n"),
        ]
    )
    return tokenizer


def _characters() -> Tokenizer:
    """Unicode code points."""
    tokenizer = Tokenizer(models.WordLevel())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _with_entries(
    tokenizer: Tokenizer, texts: Iterator[str], size: int | None, minimum_count: int, special: list[str]
) -> Tokenizer:
    """The most frequent words or characters, equally frequent ones in alphabetical order."""
    tokenizer.train_from_iterator(
        texts, trainers.WordLevelTrainer(vocab_size=sys.maxsize, min_frequency=minimum_count, show_progress=False)
    )
    ranks = tokenizer.get_vocab()
    # Not left to the trainer: it gives a special token that occurs in the texts a second place.
    entries = [*special, *(entry for entry in sorted(ranks, key=ranks.__getitem__) if entry not in special)]
    tokenizer.model = models.WordLevel({entry: index for index, entry in enumerate(entries[:size])}, unk_token=UNK)
    tokenizer.add_special_tokens(special)
    return tokenizer
