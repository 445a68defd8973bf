"""The check that predictions and references belong together."""

from __future__ import annotations

from collections.abc import Sized

from rdrop.errors import UserError


def require_pairs(predictions: Sized, references: Sized, noun: str) -> None:
    """Refuse a split without examples, and predictions that are not one for each reference.

    Args:
        predictions: What the model said.
        references: What is right.
        noun: What is counted, in the plural, for the message.

    Raises:
        UserError: If there are no references.
        ValueError: If the counts differ.

    >>> require_pairs(["Hallo"], ["Hello", "Goodbye"], "sentences")
    Traceback (most recent call last):
    ValueError: got predictions for 1 of 2 sentences; expected one for each
    """
    if len(predictions) != len(references):
        raise ValueError(f"got predictions for {len(predictions)} of {len(references)} {noun}; expected one for each")
    if not len(references):
        raise UserError(f"there are no {noun} to score: the split is empty; give it at least one example")
