"""The rows in C++, on a CPU: forward reads the logits once, backward reads them again and writes the gradient.

`_native.cpp` and `_row.h` hold the loops; this module finds the addresses. The extension is optional: where the package
was installed without a compiler, `refusal` says so and `rdrop.kernels` takes another implementation.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from rdrop.kernels.inputs import Inputs, rows_of
from rdrop.options import Objective

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


def measure(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Task loss and divergence of each position, and what the gradient needs to know."""
    positions = inputs.logits.shape[1:-1]
    task, distance = (torch.empty(positions) for _ in range(2))
    kept = torch.empty(*positions, 3 * len(inputs.logits) + 2)
    _run(inputs, kept, task, distance, None)
    return task, distance, kept


def write_gradient(inputs: Inputs, kept: Tensor, task: Tensor, distance: Tensor) -> Tensor:
    """The gradient of the logits, given those of both terms."""
    gradient = torch.empty_like(inputs.logits, memory_format=torch.contiguous_format)
    _run(inputs, kept, task.contiguous(), distance.contiguous(), gradient)
    return gradient


def _run(inputs: Inputs, kept: Tensor, task: Tensor, distance: Tensor, gradient: Tensor | None) -> None:
    """Call the extension; `task` and `distance` are written, or read as gradients where `gradient` is written."""
    logits, *sizes, outer_stride, inner_stride = rows_of(inputs.logits, classes_side_by_side=True)
    # Named, so that they live as long as the extension works on them.
    ids, target, mask, weight = inputs.ids, inputs.target, inputs.mask, inputs.weight
    classes = logits.shape[-1]
    wrong = _native.rows(
        INSTRUCTION_SET,
        torch.get_num_threads() if logits.numel() >= PARALLEL else 1,
        logits.dtype == torch.bfloat16,
        len(logits),
        inputs.divergence,
        inputs.moves,
        inputs.objective.label_smoothing,
        (*sizes, classes),
        _address(logits),
        (logits.stride(0), outer_stride, inner_stride),
        (_address(ids), _address(target), _address(mask), _address(weight)),
        _address(kept),
        (_address(task), _address(distance)),
        _address(gradient),
    )
    if wrong >= 0:
        assert ids is not None
        raise ValueError(
            f"the label of position {wrong} is {ids.flatten()[wrong]}; expected a class id in 0..{classes - 1}, or "
            "ignore_index for a position that does not count"
        )


def _address(tensor: Tensor | None) -> int:
    """Where the values of a tensor are; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()
