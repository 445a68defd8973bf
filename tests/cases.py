"""One table of cases: every implementation, on every framework, gives the oracle's numbers on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """Inputs of one call, as NumPy arrays and plain options."""

    name: str
    logits: Array
    labels: Array | None
    options: dict[str, Any] = field(default_factory=dict)


def _logits(*shape: int, seed: int, impossible: int | None = None) -> Array:
    values = np.random.default_rng(seed).normal(size=shape) * 2
    if impossible is not None:
        values[..., impossible] = -np.inf
    return values


def _build() -> list[Case]:
    ids = np.array([[0, 3, 4], [2, 1, 3]])
    holes = np.array([[0, -100, 4], [2, 1, -100]])
    mask = np.array([[True, True, False], [False, True, True]])
    soft = np.random.default_rng(1).dirichlet(np.ones(5), size=(2, 3))
    soft[0, 0] = [0, 1, 0, 0, 0]
    weight = np.array([0.5, 1.0, 2.0, 0.0, 3.0])
    bits = np.array([[0, 1, 1], [1, 0, 0]]).astype(np.float64)
    bit_holes = np.array([[0, 1, -100], [1, 0, 0]]).astype(np.float64)
    values = np.random.default_rng(2).normal(size=(2, 3))
    z = _logits(2, 2, 3, 5, seed=3)
    table = [
        Case("plain", z, ids),
        Case("one pass", z[:1], ids),
        Case("three passes", _logits(3, 2, 3, 5, seed=4), ids, {"alpha": 2.5}),
        Case("five passes", _logits(5, 2, 3, 5, seed=5), ids, {"alpha": 0.3}),
        Case("alpha 0", z, ids, {"alpha": 0.0}),
        Case("ignored labels", z, holes),
        Case("ignore_index 3", z, ids, {"ignore_index": 3}),
        Case("masked", z, ids, {"mask": mask}),
        Case("masked and ignored", z, holes, {"mask": mask}),
        Case("all ignored", z, np.full((2, 3), -100)),
        Case("smoothed", z, ids, {"label_smoothing": 0.1}),
        Case("weighted", z, ids, {"class_weight": weight}),
        Case("weighted and smoothed", z, holes, {"class_weight": weight, "label_smoothing": 0.3}),
        Case("soft labels", z, soft),
        Case(
            "soft, smoothed, weighted, masked", z, soft, {"class_weight": weight, "label_smoothing": 0.2, "mask": mask}
        ),
        Case("unlabelled", z, None, {"mask": mask}),
        Case("sum", z, holes, {"reduction": "sum"}),
        Case("none", z, holes, {"reduction": "none"}),
        Case("normalizer", z, holes, {"normalizer": 17.0}),
        Case("fractional normalizer", z, holes, {"normalizer": 0.25}),
        Case("impossible class", _logits(2, 2, 3, 5, seed=6, impossible=2), np.array([[0, 3, 4], [0, 1, 3]])),
        Case(
            "impossible class, three passes, smoothed",
            _logits(3, 2, 3, 5, seed=7, impossible=2),
            np.array([[0, 3, 4], [0, 1, 3]]),
            {"label_smoothing": 0.1},
        ),
        Case("one class", _logits(2, 4, 1, seed=8), np.zeros(4, dtype=np.int64)),
        Case("two classes", _logits(2, 4, 2, seed=9), np.array([0, 1, 1, 0])),
        Case("far apart", z * 20, ids),
        Case("binary", z[..., 0], bits, {"kind": "binary"}),
        Case("binary, one pass", z[:1, ..., 0], bits, {"kind": "binary"}),
        Case("binary, ignored", z[..., 0], bit_holes, {"kind": "binary", "mask": mask}),
        Case(
            "binary, weighted, smoothed",
            z[..., 0],
            bits,
            {"kind": "binary", "class_weight": weight[2:], "label_smoothing": 0.1},
        ),
        Case("binary, four passes", _logits(4, 2, 3, seed=10), bits, {"kind": "binary"}),
        Case(
            "binary, certain", np.array([[[50.0, -60.0]], [[40.0, -45.0]]]), np.array([[1.0, 0.0]]), {"kind": "binary"}
        ),
        Case("regression", z[..., 0], values, {"kind": "regression", "alpha": 2.0}),
        Case(
            "regression, three passes, masked", _logits(3, 2, 3, seed=11), values, {"kind": "regression", "mask": mask}
        ),
        Case("regression, unlabelled", z[..., 0], None, {"kind": "regression"}),
        Case("regression, -100 is a value", z[..., 0], bit_holes, {"kind": "regression", "ignore_index": None}),
    ]
    for divergence in ("kl", "js", "mse"):
        more = {"divergence": divergence}
        table += [
            Case(f"{divergence}", z, holes, more),
            Case(f"{divergence}, three passes", _logits(3, 2, 3, 5, seed=12), ids, more),
            Case(f"{divergence}, impossible class", _logits(3, 2, 3, 5, seed=13, impossible=4), None, more),
            Case(f"{divergence}, binary", z[..., 0], bits, more | {"kind": "binary"}),
        ]
    return table


CASES = _build()
