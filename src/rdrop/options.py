"""What an objective computes, decided and checked once.

Legend of shapes in this package: M passes, B batch, T positions of a sequence, C classes, N all positions of a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["categorical", "binary", "regression"]
Divergence = Literal["symmetric_kl", "kl", "js", "mse"]
StopGradient = Literal["first", "rest"]
Reduction = Literal["mean", "sum", "none"]


def check_choice(name: str, value: object, choices: object) -> None:
    """Refuse a `value` that is not one of the literal `choices`, naming them."""
    if value not in get_args(choices):
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, get_args(choices)))}")


@dataclass(frozen=True)
class Objective:
    """The options that every implementation obeys.

    Attributes:
        kind: `categorical` (softmax over the last axis), `binary` (independent labels) or `regression`.
        divergence: `symmetric_kl`, `kl` (of the first pass against each other one), `js` or `mse`.
        stop_gradient: Passes that are constants inside the divergence: none, the `first`, or the `rest`.
        label_smoothing: Share of the target that is spread evenly over the classes, in 0..1.
    """

    kind: Kind = "categorical"
    divergence: Divergence = "symmetric_kl"
    stop_gradient: StopGradient | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, Kind)
        check_choice("divergence", self.divergence, Divergence)
        if self.stop_gradient is not None:
            check_choice("stop_gradient", self.stop_gradient, StopGradient)
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing!r}; expected a number in 0..1")
        if self.kind == "regression":
            if self.label_smoothing:
                raise ValueError(
                    f"label_smoothing is {self.label_smoothing!r}; regression has no classes to smooth over"
                )
            if self.divergence not in ("symmetric_kl", "mse"):
                raise ValueError(
                    f"divergence is {self.divergence!r}; regression compares values, not distributions, by their "
                    "squared difference: leave the default or say 'mse'"
                )

    def moves(self, index: int) -> bool:
        """Whether the divergence sends a gradient into pass `index`."""
        return self.stop_gradient is None or (index == 0) != (self.stop_gradient == "first")


def check_alpha(alpha: float) -> float:
    """Refuse a weight that is not a finite number of at least 0."""
    if not 0 <= alpha < math.inf:  # in a form that torch.compile can trace for an alpha that changes
        raise ValueError(f"alpha is {alpha!r}; expected a finite number of at least 0")
    return alpha
