from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    set_seed,
)

from rdrop.errors import UserError
from rdrop.toolkit.language.models import (
    CausalModel,
    Continuation,
    build_causal,
    continued,
    pretrained_tokenizer,
    restore_causal,
)
from rdrop.toolkit.pretrained import save_with_tokenizer
from rdrop.toolkit.text.vocabulary import train_vocabulary

SMALL = CausalModel(width=16, layers=2, heads=2, dropout=0.25)


def characters() -> PreTrainedTokenizerFast:
    return train_vocabulary(["the quick brown fox jumps over the lazy dog.\n"], "character")


def built(model: CausalModel = SMALL, block_size: int = 32) -> Any:
    set_seed(0)
    return build_causal(model, characters(), block_size)


def rates(model: nn.Module) -> set[float]:
    return {layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)}


def test_a_model_from_scratch_has_the_sizes_of_the_recipe() -> None:
    model = built()
    config = model.config
    assert (config.n_embd, config.n_layer, config.n_head, config.n_positions) == (16, 2, 2, 32)
    assert config.vocab_size == len(characters())
    assert rates(model) == {0.25}
    assert rates(built(CausalModel(width=16, layers=1, heads=1, dropout=None))) == {0.1}


def test_heads_share_the_width_evenly() -> None:
    with pytest.raises(ValidationError, match=r"got 3, expected a number that divides model\.width, which is 16"):
        CausalModel(width=16, heads=3)


def test_a_saved_model_is_read_back_with_its_vocabulary_and_its_dropout(tmp_path: Path) -> None:
    model, tokenizer = built(), characters()
    save_with_tokenizer(model, tokenizer, tmp_path)
    again, vocabulary = restore_causal(tmp_path, dropout=0.4)
    assert vocabulary.get_vocab() == tokenizer.get_vocab()
    assert rates(again) == {0.4}
    ids = torch.tensor([tokenizer("the fox")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(again.eval()(ids)["logits"], model.eval()(ids)["logits"])
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_a_pretrained_model_is_the_one_of_the_folder(tmp_path: Path) -> None:
    model, tokenizer = built(), characters()
    save_with_tokenizer(model, tokenizer, tmp_path)
    found: Any = build_causal(CausalModel(name=str(tmp_path)), pretrained_tokenizer(str(tmp_path)), block_size=16)
    assert torch.equal(found.transformer.wte.weight, model.transformer.wte.weight)
    assert rates(found) == {0.1}
    with pytest.raises(
        UserError, match=r"data\.block_size is 64, but .* \(model\.name\) reads 32 tokens at most; set it"
    ):
        build_causal(CausalModel(name=str(tmp_path)), tokenizer, block_size=64)


def test_a_tokenizer_of_another_model_is_told(tmp_path: Path) -> None:
    save_with_tokenizer(built(), train_vocabulary(["a"], "bpe", 300), tmp_path)
    with pytest.raises(
        UserError, match=r"the tokenizer of .* has 259 tokens, its model only 33; expected the tokenizer"
    ):
        build_causal(CausalModel(name=str(tmp_path)), pretrained_tokenizer(str(tmp_path)), block_size=16)


def test_a_model_that_sees_the_next_token_is_refused(tmp_path: Path) -> None:
    tokenizer = characters()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16
    )
    save_with_tokenizer(BertForMaskedLM(config), tokenizer, tmp_path)
    with pytest.raises(
        UserError, match=r"depends on the tokens after it, .* expected a causal language model such as GPT"
    ):
        build_causal(CausalModel(name=str(tmp_path)), tokenizer, block_size=16)


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.name: there is no folder .*missing"):
        build_causal(CausalModel(name=str(tmp_path / "missing")), characters(), block_size=16)
    with pytest.raises(UserError, match=r"holds no model: there is no config\.json; expected the folder of a trained"):
        restore_causal(tmp_path, dropout=None)


def test_a_folder_with_another_kind_of_model_is_told(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1, pad_token_id=0)
    save_with_tokenizer(GPT2ForSequenceClassification(config), characters(), tmp_path)
    with pytest.raises(
        UserError, match=r"holds a GPT2ForSequenceClassification, expected a GPT2LMHeadModel; the folder bel"
    ):
        restore_causal(tmp_path, dropout=None)


def test_the_tokenizer_of_a_pretrained_model_can_pad_and_has_an_end(tmp_path: Path) -> None:
    tokenizer = characters()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert pretrained_tokenizer(str(tmp_path)).pad_token == "</s>"
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has no token for the end of a document; expected one with eos_token"):
        pretrained_tokenizer(str(tmp_path))


def greedily(model: nn.Module, ids: list[int], count: int) -> list[int]:
    """The most probable continuation, token by token, in a plain loop."""
    ids, start = list(ids), len(ids)
    forbidden = [0, 1]  # padding and start
    with torch.no_grad():
        for _ in range(count):
            logits = model(input_ids=torch.tensor([ids]))["logits"][0, -1]
            logits[forbidden] = -torch.inf
            ids.append(int(logits.argmax()))
            if ids[-1] == 2:
                break
    return ids[start:]


def trained() -> Any:
    """A model that knows one sentence, so that what it writes is no tie."""
    model, tokenizer = built(CausalModel(width=32, layers=1, heads=1, dropout=0.1)), characters()
    ids = torch.tensor([[1, *tokenizer("the quick brown fox")["input_ids"], 2]])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids)["loss"].backward()
        optimizer.step()
    return model


def test_the_most_probable_continuation_is_that_of_a_plain_loop() -> None:
    model, tokenizer = trained(), characters()
    how = Continuation(tokens=12, temperature=0)
    for text in ["t", "the quick b", "fox"]:
        prompt = [1, *tokenizer(text)["input_ids"]]
        model.train()
        written = continued(model, tokenizer, prompt, how, context=32)
        assert model.training
        assert written == greedily(model.eval(), prompt, 12)
    assert tokenizer.decode(continued(model, tokenizer, [1, *tokenizer("the quick b")["input_ids"]], how, 32)) == (
        "rown fox</s>"
    )


def test_of_a_long_prompt_the_end_is_read() -> None:
    model, tokenizer = trained(), characters()
    long = [*tokenizer("lazy dog. " * 20)["input_ids"], *tokenizer("the quick b")["input_ids"]]
    written = continued(model, tokenizer, long, Continuation(tokens=12, temperature=0), context=32)
    assert written == greedily(model.eval(), long[-20:], 12)


def test_drawn_continuations_are_those_of_the_seed_and_contain_no_padding() -> None:
    model, tokenizer = built(), characters()
    prompt = [1, *tokenizer("the ")["input_ids"]]

    def drawn(seed: int) -> list[list[int]]:
        set_seed(seed)
        how = Continuation(tokens=20, temperature=2.0)
        return [continued(model, tokenizer, prompt, how, context=32) for _ in range(8)]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert not {0, 1} & {token for ids in drawn(0) for token in ids}
    assert all(2 not in ids[:-1] for ids in drawn(0))
    assert {len(ids) for ids in drawn(0)} > {20}  # some came to the end before


def test_a_model_with_one_token_for_start_end_and_padding_writes_too() -> None:
    model, tokenizer = built(), characters()
    tokenizer.pad_token = tokenizer.bos_token = tokenizer.eos_token
    assert len(continued(model, tokenizer, [2, 2], Continuation(tokens=5), context=32)) <= 5
