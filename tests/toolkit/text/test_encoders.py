from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2Model

from rdrop.errors import UserError
from rdrop.stochastic import stochastic_layers
from rdrop.toolkit.pretrained import quiet_loading, save_with_tokenizer
from rdrop.toolkit.text.encoders import (
    EncoderModel,
    build_encoder,
    encoder_tokenizer,
    first_output,
    label_options,
    restore_encoder,
    usable_tokenizer,
)
from rdrop.toolkit.text.vocabulary import train_vocabulary
from tiny_encoder import save_encoder as save_pretrained_encoder

SCRATCH = EncoderModel(name=None, vocabulary_size=320, width=16, layers=2, heads=4, dropout=0.3)
TEXTS = ["we saw a film in paris", "the plot was dull"] * 5


def rates(model: torch.nn.Module) -> set[float]:
    return {layer.rate for layer in stochastic_layers(model)}


def test_a_vocabulary_from_scratch_marks_the_two_texts_of_a_pair() -> None:
    tokenizer = encoder_tokenizer(SCRATCH, TEXTS, max_length=32)
    pair = tokenizer("a film", "the plot")
    tokens = tokenizer.convert_ids_to_tokens(pair["input_ids"])
    assert (tokens[0], tokens.count("</s>"), tokens[-1]) == ("<s>", 2, "</s>")
    middle = tokens.index("</s>") + 1
    assert pair["token_type_ids"] == [0] * middle + [1] * (len(tokens) - middle)
    again = encoder_tokenizer(SCRATCH, TEXTS, max_length=32)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_a_model_from_scratch_has_the_sizes_of_the_recipe() -> None:
    tokenizer = encoder_tokenizer(SCRATCH, TEXTS, max_length=32)
    model: Any = build_encoder(
        AutoModelForSequenceClassification, SCRATCH, tokenizer, 32, **label_options(["no", "yes"])
    )
    sizes = model.config
    found = (sizes.vocab_size, sizes.hidden_size, sizes.num_hidden_layers, sizes.num_attention_heads)
    assert found == (len(tokenizer), 16, 2, 4)
    assert (sizes.max_position_embeddings, sizes.pad_token_id, sizes.label2id) == (32, 0, {"no": 0, "yes": 1})
    assert rates(model) == {0.3}


def test_what_was_saved_is_restored_with_the_rates_of_the_recipe(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = encoder_tokenizer(SCRATCH, TEXTS, max_length=32)
    auto = AutoModelForSequenceClassification
    model: Any = build_encoder(auto, SCRATCH, tokenizer, 32, **label_options(["no", "yes"])).eval()
    save_with_tokenizer(model, tokenizer, tmp_path)
    restored, same, names = restore_encoder(auto, tmp_path, 0.3, loaded=(tokenizer, ("no", "yes")))
    assert names == ("no", "yes")
    assert rates(restored) == {0.3}
    assert rates(restore_encoder(auto, tmp_path, None, loaded=(None, ()))[0]) != {0.3}
    batch = tokenizer("a film", "dull", return_tensors="pt")
    assert same("a film", "dull") == tokenizer("a film", "dull")
    torch.testing.assert_close(restored.eval()(**batch).logits, model(**batch).logits)
    others = encoder_tokenizer(SCRATCH, ["something else"], max_length=32)
    with pytest.raises(UserError, match="the vocabulary of the model and of the training split differ"):
        restore_encoder(auto, tmp_path, 0.3, loaded=(others, ("no", "yes")))
    assert capfd.readouterr() == ("", "")


def test_a_model_without_padding_pads_with_its_end_token(tmp_path: Path) -> None:
    bare = train_vocabulary(TEXTS, "bpe", 320)
    bare.pad_token = None
    with quiet_loading():
        bare.save_pretrained(tmp_path)
        sizes = GPT2Config(vocab_size=320, n_embd=16, n_layer=1, n_head=2, n_positions=40)
        GPT2Model(sizes).save_pretrained(tmp_path)
    name = str(tmp_path)
    tokenizer = encoder_tokenizer(EncoderModel(name=name), [], max_length=40)
    assert tokenizer.tokenize("we saw")[0][0] != "Ġ"
    assert tokenizer.pad_token == "</s>"
    model: Any = build_encoder(AutoModelForSequenceClassification, EncoderModel(name=name), tokenizer, 40, num_labels=2)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    batch = tokenizer(["a film", "the plot was dull"], padding=True, return_tensors="pt")
    alone = tokenizer("a film", return_tensors="pt")
    model.eval()
    torch.testing.assert_close(model(**batch).logits[0], model(**alone).logits[0])
    with pytest.raises(UserError, match=r"data.max_length is 41, but .* \(model.name\) reads 40 tokens at most"):
        encoder_tokenizer(EncoderModel(name=name), [], max_length=41)


def test_a_tokenizer_that_cannot_tell_words_is_refused(tmp_path: Path) -> None:
    name = save_pretrained_encoder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CanineTokenizer"}))
    with pytest.raises(UserError, match=r"has no tokenizer.json, so it cannot tell where its tokens come from"):
        usable_tokenizer(name)


def test_logits_are_the_first_of_several_outputs() -> None:
    logits = torch.zeros(2, 3)
    assert first_output(logits) is logits
    assert first_output((logits, torch.ones(1))) is logits
