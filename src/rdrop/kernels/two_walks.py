"""Kernels that read the logits in forward, and in backward read them again and write the gradient."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from rdrop.kernels import reference
from rdrop.kernels.inputs import Inputs


class Kernel(Protocol):
    """The two walks."""

    def measure(self, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """Task loss and divergence of each position, and what the second walk needs to know."""

    def write_gradient(self, inputs: Inputs, kept: Tensor, task: Tensor, distance: Tensor) -> Tensor:
        """The gradient of the logits, given what the first walk kept and the gradients of both terms."""


def rows(
    kernel: Kernel,
    *inputs: Any,
    foretold: tuple[float, float] | None = None,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """Task loss and divergence of each position, as `rdrop.kernels.reference.rows` defines them."""
    return _Rows.apply(kernel, *inputs)  # type: ignore[no-any-return]


class _Rows(torch.autograd.Function):
    """A kernel as autograd sees it."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, *arguments: Any) -> tuple[Tensor, Tensor]:
        inputs = Inputs(*arguments)
        task, distance, kept = kernel.measure(inputs)
        ctx.kernel, ctx.objective = kernel, inputs.objective
        ctx.save_for_backward(inputs.logits, inputs.labels, inputs.keep, inputs.class_weight, kept)
        return task, distance

    @staticmethod
    def backward(ctx: Any, task: Tensor, distance: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, keep, class_weight, kept = ctx.saved_tensors
        inputs = Inputs(logits, labels, keep, class_weight, ctx.objective)
        if torch.is_grad_enabled():  # create_graph=True: a gradient that has a gradient itself is autograd's business
            gradient = reference.gradient(*inputs, task, distance)
        else:
            gradient = ctx.kernel.write_gradient(inputs, kept, task, distance)
        return None, gradient, *[None] * 4
