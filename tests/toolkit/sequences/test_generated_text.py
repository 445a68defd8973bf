from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import MarianConfig, MarianMTModel

from rdrop.toolkit.sequences.generated_text import Generation, log_probabilities, outputs, search, token_nll

PAD, START, END, TOKENS = 0, 1, 2, 9


def network(dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=TOKENS,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        dropout=dropout,
        init_std=1.0,  # far from uniform
        max_position_embeddings=16,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
        decoder_start_token_id=START,
        forced_eos_token_id=None,
    )
    return MarianMTModel(config).train()


def sources() -> dict[str, Tensor]:
    ids = torch.tensor([[3, 4, 5, END], [6, 7, END, PAD], [8, END, PAD, PAD]])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def generation(**fields: Any) -> Generation:
    return Generation.model_validate({"beams": 1, "max_length": 6} | fields)


def found(model: nn.Module, **fields: Any) -> list[list[int]]:
    """The outputs of the three sources, without what follows their ends."""
    ids = outputs(model, sources(), search(model, generation(**fields), max_length=99))
    return [[token for token in row if token != -100] for row in ids.tolist()]


def log_probability(model: nn.Module, row: int, tokens: tuple[int, ...]) -> Tensor:
    """That of one output of one source, token by token."""
    batch = {name: column[row : row + 1] for name, column in sources().items()}
    model.eval()
    with torch.no_grad():
        logits = model(**batch, decoder_input_ids=torch.tensor([[START, *tokens[:-1]]]))["logits"][0]
    scores: Tensor = logits.log_softmax(-1)[range(len(tokens)), list(tokens)]
    return scores


def test_one_beam_takes_the_most_probable_token_each_time() -> None:
    model = network()
    expected: list[list[int]] = []
    for row in range(3):
        tokens: list[int] = []
        while len(tokens) < 6 and END not in tokens:
            scores = [float(log_probability(model, row, (*tokens, token))[-1]) for token in range(TOKENS)]
            tokens.append(max(range(TOKENS), key=scores.__getitem__))
        expected.append(tokens)
    assert found(model) == expected


def test_as_many_beams_as_there_are_outputs_find_the_best_one() -> None:
    model = network()
    model.final_logits_bias[0, END] = 2.0
    texts = [(END,), *product(set(range(TOKENS)) - {END}, range(TOKENS))]

    def best(penalty: float) -> list[list[int]]:
        """By trying all outputs of at most two tokens."""
        chosen = []
        for row in range(3):
            scores = [float(log_probability(model, row, text).sum()) / len(text) ** penalty for text in texts]
            chosen.append(list(texts[max(range(len(texts)), key=scores.__getitem__)]))
        return chosen

    for penalty in (0.0, 1.0, 3.0):
        assert found(model, beams=TOKENS, max_length=2, length_penalty=penalty) == best(penalty)
    assert best(1.0) != best(3.0)


def test_an_output_ends_where_its_text_does_and_is_no_longer_than_allowed() -> None:
    model = network()
    model.final_logits_bias[0, END] = 4.0
    ids = outputs(model, sources(), search(model, generation(max_length=None), max_length=12))
    ends = (ids == END).int().argmax(1).tolist()
    assert len(set(ends)) > 1
    for row, end in zip(ids.tolist(), ends, strict=True):
        assert END in row
        assert all(token == -100 for token in row[end + 1 :])
    assert all(len(text) <= 3 for text in found(model, max_length=3))
    shortest = found(model, min_length=5, max_length=12)
    assert all(len(text) >= 5 and END not in text[:5] for text in shortest)


def test_sequences_are_not_repeated_where_that_is_asked_for() -> None:
    model = network()
    model.final_logits_bias[0, 5] = 9.0
    assert all(text == [5] * 6 for text in found(model))
    assert all(len(set(text)) == len(text) for text in found(model, no_repeat_ngram=1))


def test_a_token_that_a_pretrained_model_forces_stays_forced() -> None:
    model = network()
    model.generation_config.forced_bos_token_id = 7
    assert all(text[0] == 7 for text in found(model, beams=2))
    assert model.generation_config.num_beams != 2


def test_dropout_is_off_in_the_search_and_on_again_afterwards() -> None:
    model, without = network(dropout=0.5), network()
    assert found(model) == found(without)
    assert model.training


@pytest.mark.parametrize("samples", [0, 3])
def test_an_output_is_as_probable_as_its_tokens_together(samples: int) -> None:
    model = network(dropout=0.3 if samples else 0.0)
    labels = torch.tensor([[5, 6, END], [7, END, -100], [END, -100, -100]])
    inputs = torch.tensor([[START, 5, 6], [START, 7, PAD], [START, PAD, PAD]])
    batch = {**sources(), "decoder_input_ids": inputs, "labels": labels}
    sums = list(log_probabilities(model, batch, samples))
    expected = [float(log_probability(model, row, text).sum()) for row, text in enumerate([(5, 6, 2), (7, 2), (2,)])]
    if samples:
        assert len(sums) == samples
        assert len({float(row[0]) for row in sums}) == samples
        assert all(row.tolist() != pytest.approx(expected) for row in sums)
    else:
        assert [row.tolist() for row in sums] == [pytest.approx(expected)]


def test_nll_is_that_of_the_labels_in_float32() -> None:
    logits = torch.randn(2, 3, 5, dtype=torch.bfloat16)
    labels = torch.tensor([[1, 4, -100], [0, -100, -100]])
    expected = torch.zeros(2, 3)
    for row, position in [(0, 0), (0, 1), (1, 0)]:
        expected[row, position] = -logits[row, position].float().log_softmax(-1)[labels[row, position]]
    nll = token_nll(logits, labels)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, expected)
