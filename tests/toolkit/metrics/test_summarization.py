from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from rdrop.errors import UserError
from rdrop.toolkit.metrics.summarization import (
    SUMMARIZATION_METRICS,
    require_rouge_words,
    summarization_metrics,
)

SUMMARIES = ["The meeting was moved to Friday.", "Budget approved", "Please call me back"]
REFERENCES = ["Meeting moved to Friday", "The budget is approved.", "Call back, please"]
KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge(summary: str, *references: str) -> list[float]:
    """The four values of one document."""
    scores = summarization_metrics([summary], [references], summed_nll=1.0, tokens=1)
    return [scores[kind] for kind in KINDS]


def test_values_computed_by_hand() -> None:
    # Shared: three words of four and three, one pair of three and two, in order two words.
    scores = summarization_metrics(["a b c d"], ["b c a"], summed_nll=3.0, tokens=2)
    assert scores == pytest.approx(
        {"rouge1": 600 / 7, "nll": 1.5, "rouge2": 200 / 5, "rougeL": 400 / 7, "rougeLsum": 400 / 7}
    )
    assert list(scores) == [metric.name for metric in SUMMARIZATION_METRICS]


def test_values_are_means_over_documents_of_those_of_the_library() -> None:
    scores = summarization_metrics(SUMMARIES, REFERENCES, summed_nll=1.0, tokens=1)
    scorer = RougeScorer(list(KINDS), use_stemmer=True)
    theirs = [scorer.score(target, summary) for target, summary in zip(REFERENCES, SUMMARIES, strict=True)]
    for kind in KINDS:
        assert scores[kind] == pytest.approx(100 * sum(each[kind].fmeasure for each in theirs) / 3)
    assert scores["rouge1"] > scores["rougeL"] > scores["rouge2"] > 0


def test_limits() -> None:
    assert rouge("Two cats sat down.", "Two cats sat down.") == pytest.approx([100] * 4)
    assert rouge("Dogs bark.", "Two cats sat down.") == [0.0] * 4
    assert rouge("", "Two cats sat down.") == [0.0] * 4


def test_words_are_stemmed() -> None:
    assert rouge("meetings moved", "meeting moving") == pytest.approx([100] * 4)


def test_the_best_reference_counts_for_each_kind_on_its_own() -> None:
    # The first reference shares more words, the second a pair of neighbours.
    summary, words, pair = "a b c d", "d c b a", "a b x y"
    assert rouge(summary, words, pair)[:2] == pytest.approx([100, 100 / 3])
    assert rouge(summary, words)[1] == 0
    assert rouge(summary, pair)[0] == pytest.approx(50)
    assert rouge(summary, pair, words) == rouge(summary, words, pair)


def test_a_text_is_one_reference_and_not_a_list_of_letters() -> None:
    alone = summarization_metrics(SUMMARIES, REFERENCES, summed_nll=1.0, tokens=1)
    listed: Sequence[Sequence[str]] = [[reference] for reference in REFERENCES]
    assert summarization_metrics(SUMMARIES, listed, summed_nll=1.0, tokens=1) == alone


def test_lines_are_sentences_for_rouge_lsum_alone() -> None:
    # The lines stand in another order, which ROUGE-L minds: two words in order of four.
    values = dict(zip(KINDS, rouge("a b\nc d", "c d\na b"), strict=True))
    assert (values["rougeL"], values["rougeLsum"]) == pytest.approx((50, 100))


@given(st.lists(st.sampled_from("abcd"), max_size=8), st.lists(st.sampled_from("abcd"), min_size=1, max_size=8))
def test_one_line_has_the_same_rouge_l_and_lsum_and_sides_may_be_exchanged(left: list[str], right: list[str]) -> None:
    values = rouge(" ".join(left), " ".join(right))
    assert values[2] == values[3]
    assert all(0 <= value <= 100 for value in values)
    if left:
        assert rouge(" ".join(right), " ".join(left)) == pytest.approx(values)


def test_texts_that_rouge_cannot_read_are_refused() -> None:
    with pytest.raises(UserError, match="no reference has one; for texts in another script use the task translation"):
        summarization_metrics(["Встреча"], [["Встреча"]], summed_nll=1.0, tokens=1)
    require_rouge_words(["Встреча", "Meeting"])


def test_documents_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="predictions for 2 of 3 documents"):
        summarization_metrics(SUMMARIES[:2], REFERENCES, summed_nll=1.0, tokens=1)
    with pytest.raises(ValueError, match="document 1 has no reference; expected at least one"):
        summarization_metrics(["a", "b"], [["a"], []], summed_nll=1.0, tokens=1)
    with pytest.raises(UserError, match="no documents to score"):
        summarization_metrics([], [], summed_nll=0.0, tokens=0)
