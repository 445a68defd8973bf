"""The kernel in Triton: tiles, formats, strides and what it refuses. Its numbers are the contract's business."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from exactness import assert_as_exact_as_the_formulas, terms_and_gradient, views
from rdrop import kernels, rdrop_loss
from rdrop.kernels import available
from rdrop.kernels.inputs import Inputs
from rdrop.options import Objective

triton_rows = pytest.importorskip("rdrop.kernels.triton_rows", reason="triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("tile", [16, 64, 8192])
@pytest.mark.parametrize("classes", [1, 2, 17, 100])
def test_rows_of_one_tile_and_of_many(classes: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_rows, "LARGEST_TILE", tile)
    torch.manual_seed(classes)
    logits = (3 * torch.randn(3, 4, classes, device=DEVICE)).sort().values  # the largest logit comes last
    labels = torch.randint(classes, (4,), device=DEVICE)
    for divergence in ("symmetric_kl", "kl", "js", "mse"):
        options: dict[str, Any] = {"label_smoothing": 0.1, "divergence": divergence}
        found = terms_and_gradient("triton", logits, labels, **options)
        for got, want in zip(found, terms_and_gradient("reference", logits.double(), labels, **options), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=3e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["categorical", "binary", "regression"])
def test_every_format(dtype: torch.dtype, kind: Any) -> None:
    torch.manual_seed(0)
    logits = (2 * torch.randn(2, 6, 37, device=DEVICE)).to(dtype)
    labels = torch.randint(2, (6,) if kind == "categorical" else (6, 37), device=DEVICE)
    assert_as_exact_as_the_formulas("triton", logits, labels if kind != "regression" else labels.float(), kind=kind)


def test_passes_that_nearly_agree() -> None:
    """An offset between the passes, which the softmax does not see, costs no digits."""
    torch.manual_seed(0)
    logits = 5 * torch.randn(1, 8, 300, device=DEVICE) + 1e-2 * torch.randn(2, 8, 300, device=DEVICE)
    logits[1] += 8
    # Without a GPU the exponentials are NumPy's, which are right to two or three last places.
    assert_as_exact_as_the_formulas("triton", logits, None, times=6)


@pytest.mark.parametrize("name", views())
def test_any_strides(name: str) -> None:
    logits = views()[name].to(DEVICE)
    labels = torch.randint(33, (4, 3), device=DEVICE).T
    found = terms_and_gradient("triton", logits, labels, alpha=0.5)
    for got, want in zip(found, terms_and_gradient("triton", logits.contiguous(), labels, alpha=0.5), strict=True):
        assert got.equal(want)


def test_a_label_that_is_no_class_does_not_go_unnoticed() -> None:
    """The host does not wait for a look at the labels; the loss is no number, and no memory is read out of bounds."""
    logits, labels = torch.zeros(2, 3, 5, device=DEVICE), torch.tensor([1, 5, -1], device=DEVICE)
    found = triton_rows.measure(Inputs(logits, labels, None, None, Objective()))
    assert found[0].isnan().tolist() == [False, True, True]


def test_not_numbers_are_not_hidden() -> None:
    for value in (float("nan"), float("inf")):
        logits = torch.randn(2, 3, 40, device=DEVICE)
        logits[1, 1, 39] = value
        out = rdrop_loss(logits, torch.zeros(3, device=DEVICE).long(), impl="triton", reduction="none")
        assert out.task_loss.isnan().tolist() == [False, True, False]
        assert out.divergence.isnan().tolist() == [False, True, False]


def test_what_it_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"the logits are torch\.float64, and its sums run"):
        rdrop_loss(torch.zeros(2, 3, 4).double(), None, impl="triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="impl='triton' cannot be used: the logits are on cpu, and it runs on CUDA"):
        rdrop_loss(torch.zeros(2, 3, 4), None, impl="triton")
    if DEVICE == "cpu":
        assert available()["triton"] == "there is no CUDA device, and it runs on CUDA"
    monkeypatch.setattr(kernels, "_HAS_TRITON", False)
    with pytest.raises(ValueError, match="impl='triton' cannot be used: the package triton is not installed"):
        rdrop_loss(torch.zeros(2, 3, 4), None, impl="triton")
