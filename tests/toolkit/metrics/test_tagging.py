from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import (
    accuracy_score,
    f1_score,
    precision_score,
    recall_score,
)

from rdrop.errors import UserError
from rdrop.toolkit.metrics.tagging import TAGGING_METRICS, require_entity_tags, tagging_metrics

REFERENCES = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG"], ["O"]]
ENTITY_SCORES = ("f1", "precision", "recall")


def test_values_computed_by_hand() -> None:
    # Three entities; predicted are two, of which LOC is right and PER is too short. Five of seven tags are right.
    predictions = [["B-PER", "O", "O", "B-LOC"], ["O", "O"], ["O"]]
    scores = tagging_metrics(predictions, REFERENCES, summed_nll=3.5, tokens=7)
    assert scores == pytest.approx(
        {"f1": 2 / 5, "nll": 0.5, "precision": 1 / 2, "recall": 1 / 3, "token_accuracy": 5 / 7}
    )
    assert list(scores) == [metric.name for metric in TAGGING_METRICS]


def test_limits() -> None:
    perfect = tagging_metrics(REFERENCES, REFERENCES, summed_nll=0.0, tokens=7)
    assert perfect == dict.fromkeys(perfect, 1.0) | {"nll": 0.0}
    inverse = [["O" if tag != "O" else "B-PER" for tag in sentence] for sentence in REFERENCES]
    worst = tagging_metrics(inverse, REFERENCES, summed_nll=7.0, tokens=7)
    assert worst == dict.fromkeys(worst, 0.0) | {"nll": 1.0}


def test_an_entity_may_begin_with_i_as_in_conlleval() -> None:
    scores = tagging_metrics([["I-PER", "I-PER", "I-LOC"]], [["B-PER", "I-PER", "B-LOC"]], summed_nll=1.0, tokens=3)
    assert (scores["f1"], scores["token_accuracy"]) == pytest.approx((1, 1 / 3))


def test_an_entity_of_the_wrong_type_or_end_is_wrong() -> None:
    for predicted in (["B-LOC", "I-LOC", "O"], ["B-PER", "I-PER", "I-PER"], ["B-PER", "B-PER", "O"]):
        assert tagging_metrics([predicted], [["B-PER", "I-PER", "O"]], summed_nll=1.0, tokens=3)["f1"] == 0.0


@pytest.mark.parametrize(
    ("predicted", "right"), [(["O", "O"], ["O", "O"]), (["O", "O"], ["B-A", "O"]), (["B-A", "O"], ["O", "O"])]
)
def test_nothing_to_find_or_nothing_found_counts_as_zero(predicted: list[str], right: list[str]) -> None:
    scores = tagging_metrics([predicted], [right], summed_nll=1.0, tokens=2)
    assert [scores[name] for name in ENTITY_SCORES] == [0.0, 0.0, 0.0]


TAGS = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
SENTENCE = st.lists(st.tuples(TAGS, TAGS), min_size=1, max_size=6)


@given(st.lists(SENTENCE, min_size=1, max_size=4))
def test_values_are_those_of_seqeval(sentences: list[list[tuple[str, str]]]) -> None:
    predictions, references = ([[pair[side] for pair in sentence] for sentence in sentences] for side in (0, 1))
    scores = tagging_metrics(predictions, references, summed_nll=1.0, tokens=4)
    theirs = (of(references, predictions, zero_division=0) for of in (f1_score, precision_score, recall_score))
    assert [scores[name] for name in ENTITY_SCORES] == list(theirs)
    assert scores["token_accuracy"] == accuracy_score(references, predictions)
    mirrored = tagging_metrics(references[::-1], predictions[::-1], summed_nll=1.0, tokens=4)
    assert [mirrored[name] for name in ("f1", "recall", "precision")] == [scores[name] for name in ENTITY_SCORES]


def test_tuples_are_sequences_too() -> None:
    assert tagging_metrics([("B-PER",), ("O",)], [("B-PER",), ("O",)], summed_nll=1.0, tokens=2)["f1"] == 1.0


@pytest.mark.parametrize("tag", ["O", "B-PER", "I-a-b", "E-LOC", "S-LOC", "B"])
def test_tags_of_entities_are_accepted(tag: str) -> None:
    require_entity_tags([tag])


@pytest.mark.parametrize("tag", ["NOUN", "o", "b-per", "U-PER", "B-", "BPER", "", "LABEL_0"])
def test_other_tags_are_named(tag: str) -> None:
    with pytest.raises(UserError, match=f"got the tag {tag!r}; expected O, or B-, I-, E- or S- with the type"):
        require_entity_tags(["O", tag, tag])


def test_a_tag_that_is_no_entity_is_refused_on_either_side() -> None:
    for pair in ([["NOUN"]], [["O"]]), ([["O"]], [["NOUN"]]):
        with pytest.raises(UserError, match="got the tag 'NOUN'"):
            tagging_metrics(*pair, summed_nll=1.0, tokens=1)


def test_sentences_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="predictions for 1 of 2 sentences"):
        tagging_metrics([["O"]], [["O"], ["O"]], summed_nll=1.0, tokens=2)
    with pytest.raises(ValueError, match="got 2 tags for the 1 of sentence 0; expected as many"):
        tagging_metrics([["O", "O"], ["O"]], [["O"], ["O", "O"]], summed_nll=1.0, tokens=3)


@pytest.mark.parametrize("sentences", [[], [[], []]])
def test_nothing_to_tag_is_told_to_the_user(sentences: list[list[str]]) -> None:
    with pytest.raises(UserError, match="to score"):
        tagging_metrics(sentences, sentences, summed_nll=0.0, tokens=0)
