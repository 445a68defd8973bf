"""Warnings of this package, and the one error that means "the user can repair this"."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can repair; the message says what was got, what was expected and what to do.

    The command line prints the message alone and exits with a non-zero status.
    """


class RDropWarning(UserWarning):
    """Base class of the warnings of this package."""


class NoEffectWarning(RDropWarning):
    """R-Drop cannot do anything here: no randomness, a rate of 0, evaluation mode or identical outputs."""


class ProbabilitiesWarning(RDropWarning):
    """The logits look like probabilities: the softmax would be taken twice."""
