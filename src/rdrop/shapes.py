"""What must fit together in a call of the objective: shapes, dtypes, class ids, a count; for every framework."""

from __future__ import annotations

from numbers import Real
from typing import Any

from rdrop.options import Kind, Reduction, check_choice

Shape = tuple[int, ...]
_DTYPES = {
    "logits": "a floating-point dtype",
    "labels": "integer class ids or class probabilities",
    "mask": "bool (or 0/1 integers), true where a position counts",
}


def check_shapes(
    kind: Kind,
    logits: Shape,
    labels: Shape | None,
    mask: Shape | None,
    class_weight: Shape | None,
    *,
    soft: bool,
    hint: str = "",
) -> None:
    """Refuse shapes that would broadcast into a wrong loss, before anything is computed.

    Args:
        kind: As for `rdrop.rdrop_loss`.
        logits: Its shape.
        labels: Its shape.
        mask: Its shape.
        class_weight: Its shape.
        soft: Whether the labels are class probabilities.
        hint: What the framework has for making a leading axis.
    """
    categorical = kind == "categorical"
    if len(logits) < (3 if categorical else 2) or logits[0] == 0:
        layout = "(M, B, ..., C)" if categorical else "(M, B, ...)"
        raise ValueError(
            f"logits have shape {tuple(logits)}; expected {layout} with the M >= 1 passes on the leading axis{hint}"
        )
    positions, classes = logits[1:-1] if categorical else logits[1:], logits[-1]
    if categorical and classes == 0:
        raise ValueError(f"logits have shape {tuple(logits)}; expected at least one class on the last axis")
    expected = logits[1:] if soft else positions
    if labels is not None and labels != expected:
        other = f", or class probabilities {tuple(logits[1:])}" if categorical and not soft else ""
        raise ValueError(
            f"labels have shape {tuple(labels)}; logits {tuple(logits)} of kind {kind!r} "
            f"need {'class probabilities' if soft else 'labels'} of shape {tuple(expected)}{other}"
            + ("; class ids have an integer dtype" if soft else "")
        )
    if mask is not None and mask != positions:
        raise ValueError(
            f"mask has shape {tuple(mask)}; expected one entry for each position, {tuple(positions)}: "
            "expand it yourself where an axis is missing, so that nothing broadcasts by accident"
        )
    if class_weight is not None and (kind == "regression" or class_weight != (classes,)):
        what = "no class_weight for regression" if kind == "regression" else f"({classes},)"
        raise ValueError(f"class_weight has shape {tuple(class_weight)}; expected {what}")


def wrong_dtype(name: str, dtype: object) -> TypeError:
    """The error for `logits`, `labels` or a `mask` of numbers of another kind."""
    return TypeError(f"{name} {'has' if name == 'mask' else 'have'} dtype {dtype}; expected {_DTYPES[name]}")


def check_reduction(reduction: Reduction, normalizer: object) -> None:
    """Refuse an unknown reduction, a count that none would use, and a negative one."""
    check_choice("reduction", reduction, Reduction)
    if normalizer is not None and reduction != "mean":
        raise ValueError(f"normalizer is given and reduction is {reduction!r}; it belongs to reduction='mean'")
    if isinstance(normalizer, Real) and not float(normalizer) >= 0:
        raise ValueError(f"normalizer is {normalizer!r}; expected a count of at least 0")


def check_class_ids(ids: Any, mask: Any, classes: int, ignore_index: int | None) -> None:
    """Refuse ids that are no class at positions that count; `ids` and `mask` (or None) are NumPy arrays."""
    wrong = (ids < 0) | (ids >= classes)
    if ignore_index is not None:
        wrong &= ids != ignore_index
    if mask is not None:
        wrong &= mask != 0
    if wrong.any():
        where = tuple(int(axis[0]) for axis in wrong.nonzero())
        raise wrong_class_id(where, int(ids[where]), classes, ignore_index)


def wrong_class_id(where: tuple[int, ...], found: int, classes: int, ignore_index: int | None) -> ValueError:
    """The error for a label that is no class."""
    return ValueError(
        f"labels{list(where)} is {found}; expected a class id in 0..{classes - 1}, or "
        f"ignore_index ({ignore_index}) for a position that does not count"
    )
