"""The rows in C++, on a CPU: terms and gradient of a row at once, while it is in the cache, or in two walks.

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


def kept_per_position(passes: int) -> int:
    """Largest logit, sum of exponentials and mean score of each pass, and two numbers of the labels."""
    return 3 * passes + 2


def measure(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Both terms of each position, and what the gradient needs to know."""
    positions = inputs.logits.shape[1:-1]
    task, distance = (torch.empty(positions) for _ in range(2))
    kept = torch.empty(*positions, kept_per_position(len(inputs.logits)))
    _run(inputs, kept, task, distance, None)
    return task, distance, kept


def measure_and_write(inputs: Inputs, foretold: tuple[float, float], out: Tensor) -> tuple[Tensor, Tensor]:
    """Both terms of each position, and the gradient of the logits, each row while it is in the cache."""
    task, distance = (torch.empty(inputs.logits.shape[1:-1]) for _ in range(2))
    _run(inputs, None, task, distance, out, foretold)
    return task, distance


def write_gradient(inputs: Inputs, kept: Tensor, task: Tensor, distance: Tensor, out: Tensor) -> None:
    """The gradient of the logits, given those of both terms."""
    _run(inputs, kept, task.contiguous(), distance.contiguous(), out)


def _run(
    inputs: Inputs,
    kept: Tensor | None,
    task: Tensor,
    distance: Tensor,
    out: Tensor | None,
    foretold: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Call the extension; `task` and `distance` are written, or with both `kept` and `out` read as gradients."""
    logits, *sizes, outer_stride, inner_stride = rows_of(inputs.logits, classes_side_by_side=True)
    to = None if out is None else rows_of(out, classes_side_by_side=True)
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
        foretold,
        (0, 0, 1, 0, 0) if to is None else (_address(to.logits), to.logits.stride(0), *to[2:]),
    )
    if wrong >= 0:
        assert ids is not None
        raise ValueError(
            f"the label of position {wrong} is {ids.flatten()[wrong]}; expected a class id in 0..{classes - 1}, or "
            "ignore_index for a position that does not count"
        )
    if out is not None and to is not None and to.logits is not out:
        out.copy_(to.logits)


def _address(tensor: Tensor | None) -> int:
    """Where the values of a tensor are; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()
