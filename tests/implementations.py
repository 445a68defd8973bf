"""Every way to compute the objective, as functions on NumPy arrays, for the contract suites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

import rdrop
from rdrop.kernels import IMPLEMENTATIONS

Array = npt.NDArray[Any]


class Answer(NamedTuple):
    """The three numbers and the gradient of the (summed) loss with respect to the logits."""

    loss: Array
    task_loss: Array
    divergence: Array
    gradient: Array


Runner = Callable[[Array, Array | None, dict[str, Any]], Answer]


def torch_runner(impl: Any) -> Runner:
    """The torch implementation of this name, in the dtype of the logits."""

    def run(logits: Array, labels: Array | None, options: dict[str, Any]) -> Answer:
        z = torch.tensor(logits, requires_grad=True)
        tensors: dict[str, Any] = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        out = rdrop.rdrop_loss(z, None if labels is None else torch.tensor(labels), impl=impl, **tensors)
        if out.loss.requires_grad:
            out.loss.sum().backward()  # type: ignore[no-untyped-call]
        gradient = torch.zeros_like(z) if z.grad is None else z.grad
        loss, task_loss, divergence = (term.detach().numpy() for term in out)
        return Answer(loss, task_loss, divergence, gradient.numpy())

    return run


RUNNERS: dict[str, Runner] = {f"torch-{name}": torch_runner(name) for name in [*IMPLEMENTATIONS, "auto"]}
