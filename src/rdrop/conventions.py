"""Units of alpha: what a published value means here, and back.

This package minimises `mean CE + alpha * mean D`, both means over the positions that count and over all passes.
Published programs differ: they add the two cross-entropies instead of averaging them, or they sum the divergence over
the batch beside a mean cross-entropy, or they average it over the classes. Each `Convention` writes one of them as

    scale * ( mean CE + alpha_here * mean D ),   alpha_here = alpha * factor

where `factor` may contain the batch size B (of one device and one micro-batch) or the number of classes C. The scale
multiplies the gradient, so it can be absorbed by the learning rate of plain SGD; Adam does not see it.

Examples:
    >>> to_ours("paper", 5.0)
    Translation(alpha=2.5, scale=2.0)
    >>> to_ours("official-vit", 0.6, batch_size=64).alpha
    38.4
    >>> round(from_ours("official-vit", 38.4, batch_size=64), 6)
    0.6
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rdrop.options import check_alpha


@dataclass(frozen=True)
class Convention:
    """One way in which alpha is published.

    Attributes:
        name: The key for `to_ours` and `from_ours`.
        source: Where it is found.
        formula: What the program computes for two passes; `CE1`, `CE2` and `D` are batch means unless said otherwise.
        constant: alpha here for a published alpha of 1, B = 1 and C = 1.
        times_batch: Whether alpha here grows with B.
        over_classes: Whether alpha here falls with C.
        scale: The loss as a multiple of the one here.
    """

    name: str
    source: str
    formula: str
    constant: float
    scale: float
    times_batch: bool = False
    over_classes: bool = False

    def factor(self, batch_size: int | None = None, num_classes: int | None = None) -> float:
        """Give alpha here as a multiple of the published one.

        Raises:
            ValueError: If this convention depends on B or C and it is not given, or not at least 1.
        """
        factor = self.constant
        if self.times_batch:
            factor *= self._need(
                "batch_size", batch_size, "sums the divergence over the batch beside a mean cross-entropy"
            )
        if self.over_classes:
            factor /= self._need("num_classes", num_classes, "averages the divergence over the classes")
        return factor

    def _need(self, name: str, value: int | None, reason: str) -> int:
        if value is None or value < 1:
            raise ValueError(
                f"{name} is {value!r}; convention {self.name!r} {reason}, so it needs a {name} of at least 1"
            )
        return value


class Translation(NamedTuple):
    """alpha in units of this package, and the published loss as a multiple of the one here."""

    alpha: float
    scale: float


CONVENTIONS = {
    convention.name: convention
    for convention in (
        Convention(
            "paper",
            "Liang et al. 2021, eq. 4; the official translation, summarization and language-modelling programs, which "
            "sum over tokens and divide by their number",
            "CE1 + CE2 + alpha * D",
            constant=0.5,
            scale=2.0,
        ),
        Convention(
            "example-mean",
            "the official README's lines with the mean taken per example",
            "(CE1 + CE2) / 2 + alpha * D",
            constant=1.0,
            scale=1.0,
        ),
        Convention(
            "batch-sum",
            "the official README's lines as printed: the divergence summed over the batch, the cross-entropy a mean",
            "(CE1 + CE2) / 2 + alpha * B * D",
            constant=1.0,
            scale=1.0,
            times_batch=True,
        ),
        Convention(
            "official-vit",
            "the official image-classification program: sums over the batch without the factor 1/2",
            "CE1 + CE2 + 2 * alpha * B * D",
            constant=1.0,
            scale=2.0,
            times_batch=True,
        ),
        Convention(
            "official-bert",
            "the official language-understanding program, whose alpha is fixed at 0.5: sums over the batch",
            "CE1 + CE2 + alpha * B * D",
            constant=0.5,
            scale=2.0,
            times_batch=True,
        ),
        Convention(
            "class-mean",
            'several ports: reduction="mean" over batch and classes',
            "(CE1 + CE2) / 2 + alpha * D / C",
            constant=1.0,
            scale=1.0,
            over_classes=True,
        ),
        Convention(
            "keras-doubled",
            "the Keras version by bojone: mean cross-entropy over 2B rows, alpha / 4 times the mean over 2B rows of "
            "both divergences",
            "(CE1 + CE2) / 2 + alpha / 2 * D",
            constant=0.5,
            scale=1.0,
        ),
    )
}
"""Name to convention."""


def to_ours(
    convention: str, alpha: float, *, batch_size: int | None = None, num_classes: int | None = None
) -> Translation:
    """Translate a published alpha into the unit of this package.

    Args:
        convention: A key of `CONVENTIONS`.
        alpha: The published value, at least 0.
        batch_size: Rows of one micro-batch on one device, where the convention depends on it.
        num_classes: C, where the convention depends on it.

    Returns:
        `alpha` for `rdrop_loss`, and `scale`: the published loss is `scale` times ours.

    Raises:
        ValueError: If the convention is unknown, or lacks what it depends on.

    Examples:
        >>> to_ours("class-mean", 1.0, num_classes=10)
        Translation(alpha=0.1, scale=1.0)
    """
    found = _find(convention)
    return Translation(check_alpha(alpha) * found.factor(batch_size, num_classes), found.scale)


def from_ours(convention: str, alpha: float, *, batch_size: int | None = None, num_classes: int | None = None) -> float:
    """Translate an alpha of this package into the unit of a published program.

    Examples:
        >>> from_ours("paper", 2.5)
        5.0
    """
    return check_alpha(alpha) / _find(convention).factor(batch_size, num_classes)


def _find(name: str) -> Convention:
    if name not in CONVENTIONS:
        raise ValueError(f"convention is {name!r}; expected one of {', '.join(map(repr, CONVENTIONS))}")
    return CONVENTIONS[name]
