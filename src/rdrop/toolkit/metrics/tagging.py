"""A tag for each word: entities found, tags right, likelihood."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain

from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

from rdrop.errors import UserError
from rdrop.toolkit.metrics.pairs import require_pairs
from rdrop.toolkit.metrics.tokens import TOKEN_ACCURACY, TOKEN_NLL, mean_nll
from rdrop.toolkit.summary import Metric

TAGGING_METRICS = (
    Metric(
        name="f1",
        label="Entity F1",
        higher_is_better=True,
        percent=True,
        explanation="Harmonic mean of precision and recall over whole entities.",
    ),
    TOKEN_NLL,
    Metric(
        name="precision",
        label="Precision",
        higher_is_better=True,
        percent=True,
        explanation="Predicted entities that are right in type, beginning and end.",
    ),
    Metric(
        name="recall",
        label="Recall",
        higher_is_better=True,
        percent=True,
        explanation="Entities that were found, with the right type, beginning and end.",
    ),
    TOKEN_ACCURACY,
)

_ENTITY_TAG = re.compile(r"O|[BIES](-.+)?")


def tagging_metrics(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], summed_nll: float, tokens: int
) -> dict[str, float]:
    """Scores of tag sequences, those of `TAGGING_METRICS`.

    Entities are those of seqeval's default mode, which follows conlleval: an entity begins at `B-`, and also at an
    `I-` that has no entity of its type before it. Precision, recall and F1 are over the entities of all types and
    sentences; each is 0 where it has nothing to be taken over.

    Args:
        predictions: Predicted tags, a sequence for each sentence.
        references: The right tags, of the same lengths.
        summed_nll: Sum of -log of the probability given to the right tag, in nats.
        tokens: How many tags were summed; fewer than there are where long sentences were cut.

    Returns:
        `f1`, `nll`, `precision`, `recall` and `token_accuracy`.

    Raises:
        UserError: If there is nothing to score, or if a tag is not one of an entity.
        ValueError: If predictions and references do not belong together.

    >>> scores = tagging_metrics([["B-PER", "I-PER", "O"]], [["B-PER", "I-PER", "B-LOC"]], summed_nll=3.0, tokens=3)
    >>> {name: round(value, 3) for name, value in scores.items()}
    {'f1': 0.667, 'nll': 1.0, 'precision': 1.0, 'recall': 0.5, 'token_accuracy': 0.667}
    """
    require_pairs(predictions, references, "sentences")
    for index, (predicted, right) in enumerate(zip(predictions, references, strict=True)):
        if len(predicted) != len(right):
            raise ValueError(f"got {len(predicted)} tags for the {len(right)} of sentence {index}; expected as many")
    pairs = list(zip(chain.from_iterable(predictions), chain.from_iterable(references), strict=True))
    require_entity_tags(chain.from_iterable(pairs))
    precision, recall, f1, _ = precision_recall_fscore_support(
        [list(tags) for tags in references],
        [list(tags) for tags in predictions],
        average="micro",
        zero_division=0,
    )
    return {
        "f1": float(f1),
        "nll": mean_nll(summed_nll, tokens),
        "precision": float(precision),
        "recall": float(recall),
        "token_accuracy": sum(predicted == right for predicted, right in pairs) / len(pairs),
    }


def require_entity_tags(tags: Iterable[str]) -> None:
    """Refuse tags that do not say where entities begin and end, such as parts of speech.

    Args:
        tags: Names of tags.

    Raises:
        UserError: If one is neither `O` nor made of `B`, `I`, `E` or `S`, a hyphen and the type of an entity.

    >>> require_entity_tags(["O", "B-PER", "I-PER"])
    """
    unknown = sorted(tag for tag in set(tags) if not _ENTITY_TAG.fullmatch(tag))
    if unknown:
        raise UserError(
            f"got the {'tag' if len(unknown) == 1 else 'tags'} {', '.join(map(repr, unknown))}; expected O, or B-, I-, "
            "E- or S- with the type of an entity, as in B-PER: the F1 of entities needs to know where they begin"
        )
