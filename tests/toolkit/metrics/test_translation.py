from __future__ import annotations

import math
from typing import get_args

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from rdrop.errors import UserError
from rdrop.toolkit.metrics.translation import (
    TRANSLATION_METRICS,
    Tokenizer,
    translation_metrics,
    translation_signatures,
)

HYPOTHESES = ["A man is riding a red bicycle.", "Two dogs play in snow.", "The woman reads."]
REFERENCES = ["A man rides a red bicycle.", "Two dogs are playing in the snow.", "The woman reads a book."]


def test_bleu_computed_by_hand() -> None:
    # "a b c d" of "a b c d e f": every precision is 1, the brevity penalty exp(1 - 6/4).
    scores = translation_metrics(["a b c d"], ["a b c d e f"], summed_nll=3.0, tokens=6)
    assert scores["bleu"] == pytest.approx(100 * math.exp(1 - 6 / 4))
    assert scores["nll"] == 0.5
    assert list(scores) == [metric.name for metric in TRANSLATION_METRICS]


def test_values_are_those_of_sacrebleu() -> None:
    scores = translation_metrics(HYPOTHESES, REFERENCES, summed_nll=1.0, tokens=1)
    assert 0 < scores["bleu"] < scores["chrf"] < 100
    assert scores["bleu"] == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert scores["chrf"] == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score


def test_limits() -> None:
    perfect = translation_metrics(REFERENCES, REFERENCES, summed_nll=0.0, tokens=9)
    assert perfect == pytest.approx({"bleu": 100, "nll": 0, "chrf": 100})
    worst = translation_metrics(["0123 4567 89"] * 3, REFERENCES, summed_nll=9.0, tokens=9)
    assert worst == {"bleu": 0.0, "nll": 1.0, "chrf": 0.0}


@given(st.permutations(range(3)))
def test_scores_are_of_the_split_and_not_of_its_order(order: list[int]) -> None:
    shuffled = [[texts[index] for index in order] for texts in (HYPOTHESES, REFERENCES)]
    scores = translation_metrics(HYPOTHESES, REFERENCES, summed_nll=1.0, tokens=1)
    assert translation_metrics(shuffled[0], shuffled[1], summed_nll=1.0, tokens=1) == pytest.approx(scores)


def test_an_empty_hypothesis_costs_its_length() -> None:
    whole = translation_metrics(["a b c d e", "a b c d e"], ["a b c d e"] * 2, summed_nll=1.0, tokens=1)
    half = translation_metrics(["a b c d e", ""], ["a b c d e"] * 2, summed_nll=1.0, tokens=1)
    assert half["bleu"] == pytest.approx(whole["bleu"] * math.exp(1 - 10 / 5))
    assert 0 < half["chrf"] < whole["chrf"]
    nothing = translation_metrics(["", ""], ["a b c d e"] * 2, summed_nll=1.0, tokens=1)
    assert (nothing["bleu"], nothing["chrf"]) == (0.0, 0.0)


def test_hypotheses_below_four_words_have_no_bleu() -> None:
    scores = translation_metrics(["a b c"], ["a b c"], summed_nll=1.0, tokens=1)
    assert (scores["bleu"], scores["chrf"]) == pytest.approx((0, 100))


def test_chinese_needs_its_tokenizer() -> None:
    hypotheses, references = ["我喜欢红色的自行车。"], ["我很喜欢红色的自行车。"]
    by_space = translation_metrics(hypotheses, references, summed_nll=1.0, tokens=1)
    by_character = translation_metrics(hypotheses, references, summed_nll=1.0, tokens=1, tokenizer="zh")
    assert by_space["bleu"] == 0 < 50 < by_character["bleu"]
    assert by_space["chrf"] == by_character["chrf"]


@pytest.mark.parametrize("tokenizer", get_args(Tokenizer))
def test_signatures_name_the_settings(tokenizer: Tokenizer) -> None:
    signatures = translation_signatures(tokenizer)
    version = f"version:{sacrebleu.__version__}"
    assert signatures == {
        "bleu": f"nrefs:1|case:mixed|eff:no|tok:{tokenizer}|smooth:exp|{version}",
        "chrf": f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|{version}",
    }


def test_sentences_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="predictions for 2 of 3 sentences"):
        translation_metrics(HYPOTHESES[:2], REFERENCES, summed_nll=1.0, tokens=1)
    with pytest.raises(UserError, match="no sentences to score"):
        translation_metrics([], [], summed_nll=0.0, tokens=0)
    with pytest.raises(UserError, match="no target tokens"):
        translation_metrics(["a"], [""], summed_nll=0.0, tokens=0)
