"""Summaries against references: ROUGE, and the likelihood of the references."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from statistics import fmean

from rouge_score.rouge_scorer import RougeScorer

from rdrop.errors import UserError
from rdrop.toolkit.metrics.pairs import require_pairs
from rdrop.toolkit.metrics.tokens import TOKEN_NLL, mean_nll
from rdrop.toolkit.summary import Metric


def _rouge(name: str, label: str, what: str) -> Metric:
    """One of the ROUGE metrics."""
    return Metric(
        name=name,
        label=label,
        higher_is_better=True,
        percent=False,
        explanation=f"F-measure of {what}, words stemmed, from 0 to 100; mean over documents.",
    )


_ROUGE = (
    _rouge("rouge1", "ROUGE-1", "the words that summary and reference share"),
    _rouge("rouge2", "ROUGE-2", "the pairs of neighbouring words that summary and reference share"),
    _rouge("rougeL", "ROUGE-L", "the longest sequence of words, in order, that summary and reference share"),
    _rouge("rougeLsum", "ROUGE-Lsum", "the same, taken line by line of the reference"),
)

SUMMARIZATION_METRICS = (_ROUGE[0], TOKEN_NLL, *_ROUGE[1:])


def summarization_metrics(
    summaries: Sequence[str], references: Sequence[str | Sequence[str]], summed_nll: float, tokens: int
) -> dict[str, float]:
    """Scores of a summarized split, those of `SUMMARIZATION_METRICS`.

    ROUGE (Lin 2004) is the F-measure with Porter stemming, times 100, averaged over documents. Of several references
    of a document the one with the highest score counts, for each kind of ROUGE on its own. ROUGE-Lsum takes each line
    as a sentence, and is ROUGE-L where references and summaries have one line. Words are runs of a-z and 0-9, as in
    the original program: other letters separate words, so texts in other scripts cannot be scored.

    Args:
        summaries: One for each document.
        references: For each document one reference, or several.
        summed_nll: Sum over the tokens of the references of -log of the probability given to each, in nats.
        tokens: How many tokens were summed.

    Returns:
        `rouge1` (0..100), `nll`, `rouge2`, `rougeL` and `rougeLsum` (0..100).

    Raises:
        UserError: If there is nothing to score, or no reference has a word of a-z and 0-9.
        ValueError: If there is not one summary for each document, or a document has no reference.

    >>> references = ["A cat sat.", ["Dogs bark.", "A dog barks at night."]]
    >>> scores = summarization_metrics(["A cat sits.", "The dogs barked."], references, summed_nll=9.0, tokens=6)
    >>> {name: round(value, 1) for name, value in scores.items()}
    {'rouge1': 73.3, 'nll': 1.5, 'rouge2': 58.3, 'rougeL': 73.3, 'rougeLsum': 73.3}
    """
    require_pairs(summaries, references, "documents")
    targets = [[reference] if isinstance(reference, str) else list(reference) for reference in references]
    if [] in targets:
        raise ValueError(f"document {targets.index([])} has no reference; expected at least one")
    require_rouge_words(reference for several in targets for reference in several)
    scorer = RougeScorer([metric.name for metric in _ROUGE], use_stemmer=True)
    scores = [scorer.score_multi(several, summary) for several, summary in zip(targets, summaries, strict=True)]
    rouge = {metric.name: 100 * fmean(each[metric.name].fmeasure for each in scores) for metric in _ROUGE}
    return {"rouge1": rouge["rouge1"], "nll": mean_nll(summed_nll, tokens), **rouge}


def require_rouge_words(references: Iterable[str]) -> None:
    """Refuse references of which ROUGE can read nothing, so that every summary would score 0.

    Args:
        references: All references of a split.

    Raises:
        UserError: If none has a letter a-z or a digit.

    >>> require_rouge_words(["Die Größe", "Размер"])
    """
    if not any(re.search("[a-z0-9]", reference.lower()) for reference in references):
        raise UserError(
            "ROUGE reads only words of the letters a-z and digits, and no reference has one; for texts in another "
            "script use the task translation, whose chrF reads them all"
        )
