"""How exact a kernel is, and logits that lie in memory in every way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rdrop import rdrop_loss


def terms_and_gradient(impl: Any, logits: Tensor, labels: Tensor | None, **options: Any) -> list[Tensor]:
    """Task loss, divergence and gradient, in float64."""
    z = logits.detach().requires_grad_()
    out = rdrop_loss(z, labels, impl=impl, **options)
    (gradient,) = torch.autograd.grad(out.loss.sum(), z)
    return [x.detach().double() for x in (out.task_loss, out.divergence, gradient)]


def assert_as_exact_as_the_formulas(
    impl: str, logits: Tensor, labels: Tensor | None, times: float = 3, **options: Any
) -> None:
    """The kernel errs no more than plain torch in the same format does, up to a factor and a last place."""
    options = {"reduction": "none", **options}
    truth = terms_and_gradient("reference", logits.double(), labels, **options)
    plain = terms_and_gradient("reference", logits, labels, **options)
    found = terms_and_gradient(impl, logits, labels, **options)
    for name, want, rough, got in zip(("task loss", "divergence", "gradient"), truth, plain, found, strict=True):
        last_place = torch.finfo(logits.dtype if name == "gradient" else torch.float32).eps
        error, others = ((x - want).square().mean().sqrt() for x in (got, rough))
        assert error <= times * others + last_place * want.square().mean().sqrt(), (
            f"{name}: {error}, plain torch {others}"
        )


def views(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Logits (2, 3, 4, 33) that do not lie in memory one after the other."""
    torch.manual_seed(0)
    values = torch.randn(1000).to(dtype)
    return {
        "unaligned": values[1:793].view(2, 3, 4, 33),
        "shifted": values[:990].view(2, 3, 5, 33)[:, :, :-1],
        "padded vocabulary": values[:960].view(2, 3, 4, 40)[..., :33],
        "passes inside": values[:792].view(3, 4, 2, 33).permute(2, 0, 1, 3),
        "time first": values[:792].view(2, 4, 3, 33).transpose(1, 2),
        "classes not last": values[:792].view(2, 3, 33, 4).transpose(2, 3),
        "expanded": values[:198].view(2, 3, 1, 33).expand(2, 3, 4, 33),
    }
