"""Translations against references: BLEU and chrF as sacreBLEU computes them, and the likelihood of the references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from rdrop.toolkit.metrics.pairs import require_pairs
from rdrop.toolkit.metrics.tokens import TOKEN_NLL, mean_nll
from rdrop.toolkit.summary import Metric

Tokenizer = Literal["13a", "intl", "zh", "char"]
"""How sacreBLEU cuts texts into words: `13a` for languages that write spaces, `zh` for Chinese, `char` for others."""

TRANSLATION_METRICS = (
    Metric(
        name="bleu",
        label="BLEU",
        higher_is_better=True,
        percent=False,
        explanation="Overlap of the translations with the references in sequences of one to four words, from 0 to 100 "
        "(sacreBLEU).",
    ),
    TOKEN_NLL,
    Metric(
        name="chrf",
        label="chrF",
        higher_is_better=True,
        percent=False,
        explanation="F-score of the translations in sequences of one to six characters, from 0 to 100 (sacreBLEU).",
    ),
)


def translation_metrics(
    hypotheses: Sequence[str],
    references: Sequence[str],
    summed_nll: float,
    tokens: int,
    tokenizer: Tokenizer = "13a",
) -> dict[str, float]:
    """Scores of a translated split, those of `TRANSLATION_METRICS`.

    BLEU and chrF are over the whole split, not means over sentences. An empty hypothesis is allowed: it adds to the
    length that is missing. BLEU is 0 where no hypothesis has as many as four words.

    Args:
        hypotheses: Translations, detokenized.
        references: One reference for each, detokenized.
        summed_nll: Sum over the tokens of the references of -log of the probability given to each, in nats.
        tokens: How many tokens were summed.
        tokenizer: How BLEU cuts the texts into words.

    Returns:
        `bleu` (0..100), `nll` and `chrf` (0..100).

    Raises:
        UserError: If there is nothing to score.
        ValueError: If there is not one hypothesis for each reference.

    >>> scores = translation_metrics(["The cat sat on the mat."], ["The cat sat on a mat."], summed_nll=9.0, tokens=6)
    >>> {name: round(value, 1) for name, value in scores.items()}
    {'bleu': 48.9, 'nll': 1.5, 'chrf': 71.4}
    """
    require_pairs(hypotheses, references, "sentences")
    return {
        "bleu": BLEU(tokenize=tokenizer).corpus_score(hypotheses, [references]).score,
        "nll": mean_nll(summed_nll, tokens),
        "chrf": CHRF().corpus_score(hypotheses, [references]).score,
    }


def translation_signatures(tokenizer: Tokenizer = "13a") -> dict[str, str]:
    """What makes a BLEU or chrF comparable with another: settings and version, in sacreBLEU's own notation.

    Args:
        tokenizer: That of `translation_metrics`.

    Returns:
        Name of the metric to its signature.

    >>> translation_signatures()["bleu"].partition("|version:")[0]
    'nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp'
    """
    metrics: dict[str, BLEU | CHRF] = {"bleu": BLEU(tokenize=tokenizer), "chrf": CHRF()}
    for metric in metrics.values():
        metric.corpus_score(["one"], [["one"]])  # a signature counts the references that were last scored
    return {name: str(metric.get_signature()) for name, metric in metrics.items()}
