"""Kernels that read the logits in forward, and in backward read them again and write the gradient."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from rdrop.kernels import reference
from rdrop.options import Objective


class Kernel(Protocol):
    """The two walks; logits, labels, keep, class_weight and objective are those of `rdrop.kernels.reference.rows`."""

    def measure(
        self,
        logits: Tensor,
        labels: Tensor | None,
        keep: Tensor | None,
        class_weight: Tensor | None,
        objective: Objective,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Task loss and divergence of each position, and what the second walk needs to know."""

    def write_gradient(
        self,
        logits: Tensor,
        labels: Tensor | None,
        keep: Tensor | None,
        class_weight: Tensor | None,
        objective: Objective,
        kept: Tensor,
        task: Tensor,
        distance: Tensor,
    ) -> Tensor:
        """The gradient of the logits, given what the first walk kept and the gradients of both terms."""


def rows(
    kernel: Kernel,
    logits: Tensor,
    labels: Tensor | None,
    keep: Tensor | None,
    class_weight: Tensor | None,
    objective: Objective,
    foretold: tuple[float, float] | None = None,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """Task loss and divergence of each position, as `rdrop.kernels.reference.rows` defines them."""
    return _Rows.apply(kernel, logits, labels, keep, class_weight, objective)  # type: ignore[no-any-return]


class _Rows(torch.autograd.Function):
    """A kernel as autograd sees it."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: Kernel,
        logits: Tensor,
        labels: Tensor | None,
        keep: Tensor | None,
        class_weight: Tensor | None,
        objective: Objective,
    ) -> tuple[Tensor, Tensor]:
        task, distance, kept = kernel.measure(logits, labels, keep, class_weight, objective)
        ctx.kernel, ctx.objective = kernel, objective
        ctx.save_for_backward(logits, labels, keep, class_weight, kept)
        return task, distance

    @staticmethod
    def backward(ctx: Any, task: Tensor, distance: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, keep, class_weight, kept = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: a gradient that has a gradient itself is autograd's business
            gradient = reference.gradient(logits, labels, keep, class_weight, ctx.objective, task, distance)
        else:
            inputs = logits, labels, keep, class_weight, ctx.objective
            gradient = ctx.kernel.write_gradient(*inputs, kept, task, distance)
        return None, gradient, *[None] * 4
