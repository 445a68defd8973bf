"""The rows in C++, on a CPU: forward reads the logits once, backward reads them again and writes the gradient.

`_native.cpp` and `_row.h` hold the loops; this module finds the addresses. The extension is optional: where the package
was installed without a compiler, `refusal` says so and `rdrop.kernels` takes another implementation.
"""

from __future__ import annotations

import importlib
from typing import Any, get_args

import torch
from torch import Tensor

from rdrop.kernels import reference
from rdrop.options import Divergence, Objective

try:
    _native: Any = importlib.import_module("rdrop.kernels._native")
except ImportError as error:
    _native = None
    _missing = f"its extension was not built when rdrop was installed, for want of a C++ compiler ({error})"

DTYPES = (torch.float32, torch.bfloat16)
INSTRUCTION_SETS: list[str] = [] if _native is None else _native.instruction_sets()
"""Those of this processor that the kernel was compiled for, the widest first."""
INSTRUCTION_SET = next(iter(INSTRUCTION_SETS), "")
PARALLEL = 1 << 15
"""Logits from which on it pays to wake other threads."""


def refusal(logits: Tensor | None = None, objective: Objective | None = None) -> str | None:
    """Why the kernel cannot serve a call, or without one, why it cannot run here at all; None if it can."""
    if _native is None:
        return _missing
    if objective is not None and objective.kind != "categorical":
        return f"it has the categorical kind alone, and this is {objective.kind}"
    if logits is None:
        return None
    if logits.device.type != "cpu":
        return f"the logits are on {logits.device}, and it runs on the CPU"
    if logits.dtype not in DTYPES:
        return f"the logits are {logits.dtype}, and it has {' and '.join(map(str, DTYPES))}"
    if len(logits) > _native.MAX_PASSES:
        return f"there are {len(logits)} passes, and it has room for {_native.MAX_PASSES}"
    return None


def rows(
    logits: Tensor,
    labels: Tensor | None,
    keep: Tensor | None,
    class_weight: Tensor | None,
    objective: Objective,
    foretold: tuple[float, float] | None = None,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """Task loss and divergence of each position, as `rdrop.kernels.reference.rows` defines them."""
    return _Rows.apply(logits, labels, keep, class_weight, objective)  # type: ignore[no-any-return]


class _Rows(torch.autograd.Function):
    """The pair of forward and backward that autograd sees."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor | None,
        keep: Tensor | None,
        class_weight: Tensor | None,
        objective: Objective,
    ) -> tuple[Tensor, Tensor]:
        call = _Call(logits, labels, keep, class_weight, objective)
        task, distance = call.measure()
        ctx.objective = objective
        ctx.save_for_backward(logits, labels, keep, class_weight, call.kept)
        return task, distance

    @staticmethod
    def backward(ctx: Any, task: Tensor, distance: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, keep, class_weight, kept = ctx.saved_tensors
        if torch.is_grad_enabled():
            gradient = reference.gradient(logits, labels, keep, class_weight, ctx.objective, task, distance)
        else:
            call = _Call(logits, labels, keep, class_weight, ctx.objective, kept)
            gradient = call.write_gradient(task, distance)
        return gradient, *[None] * 4


def _axes(logits: Tensor) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The positions of logits `(M, *positions, C)` as two axes of rows: sizes and strides.

    None if it takes more than two axes, or if the classes are not side by side.
    """
    if logits.numel() == 0:
        return (0, 1), (0, 0)
    if logits.shape[-1] > 1 and logits.stride(-1) != 1:
        return None
    merged = [(1, 0), (1, 0)]
    for size, stride in zip(logits.shape[1:-1], logits.stride()[1:-1], strict=True):
        rows, step = merged[-1]
        if rows == 1 or step == size * stride:
            merged[-1] = rows * size, stride
        elif size > 1:
            merged.append((size, stride))
    if len(merged) > 3:
        return None
    (outer, outer_stride), (inner, inner_stride) = merged[-2:]
    return (outer, inner), (outer_stride, inner_stride)


class _Call:
    """Tensors in the form that the extension takes, alive as long as it works on them."""

    def __init__(
        self,
        logits: Tensor,
        labels: Tensor | None,
        keep: Tensor | None,
        class_weight: Tensor | None,
        objective: Objective,
        kept: Tensor | None = None,
    ) -> None:
        axes = _axes(logits)
        if axes is None:
            logits = logits.contiguous()
            axes = _axes(logits)
            assert axes is not None
        self.logits, self.objective, (self.sizes, self.strides) = logits, objective, axes
        soft = labels is not None and labels.is_floating_point()
        self.labels = None if labels is None or soft else labels.long().contiguous()
        self.soft = labels.float().contiguous() if labels is not None and soft else None
        self.keep = None if keep is None else keep.contiguous()
        self.class_weight = None if class_weight is None else class_weight.float().contiguous()
        self.kept = torch.empty(*logits.shape[1:-1], 3 * len(logits) + 2) if kept is None else kept

    def measure(self) -> tuple[Tensor, Tensor]:
        """Both terms of each position; fills `kept` with what the gradient needs to know."""
        task, distance = (torch.empty(self.logits.shape[1:-1]) for _ in range(2))
        self._run(task, distance, None)
        return task, distance

    def write_gradient(self, task: Tensor, distance: Tensor) -> Tensor:
        """The gradient of the logits, given those of both terms."""
        gradient = torch.empty_like(self.logits, memory_format=torch.contiguous_format)
        self._run(task.contiguous(), distance.contiguous(), gradient)
        return gradient

    def _run(self, task: Tensor, distance: Tensor, gradient: Tensor | None) -> None:
        logits, objective = self.logits, self.objective
        passes = len(logits)
        wrong = _native.rows(
            INSTRUCTION_SET,
            torch.get_num_threads() if logits.numel() >= PARALLEL else 1,
            logits.dtype == torch.bfloat16,
            passes,
            get_args(Divergence).index(objective.divergence),
            sum(1 << k for k in range(passes) if objective.moves(k)),
            objective.label_smoothing,
            (*self.sizes, logits.shape[-1]),
            _address(logits),
            (logits.stride(0), *self.strides),
            tuple(map(_address, (self.labels, self.soft, self.keep, self.class_weight))),
            _address(self.kept),
            (_address(task), _address(distance)),
            _address(gradient),
        )
        if wrong >= 0:
            assert self.labels is not None
            raise ValueError(
                f"the label of position {wrong} is {self.labels.flatten()[wrong]}; expected a class id in "
                f"0..{logits.shape[-1] - 1}, or ignore_index for a position that does not count"
            )


def _address(tensor: Tensor | None) -> int:
    """Where the values of a tensor are; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()
