"""Memory for gradients of the size of the logits."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MAPPED = 1 << 25
"""Bytes from which on the allocator of C takes memory fresh from the system, and gives it back when it is freed."""
_HUGE_PAGE = 1 << 21
_MADV_HUGEPAGE = 14


def _find_madvise() -> Callable[..., Any] | None:
    """The system's call for advice on memory, on Linux."""
    return getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None


_madvise = _find_madvise()


def like(logits: Tensor) -> Tensor:
    """Dense memory in the shape of the logits, not written to yet.

    The first touch of each page of fresh memory costs a fault, for 250 MiB in pages of 4 KiB more time than the loss
    itself; so Linux is asked for pages of 2 MiB. Where it has none to give, nothing changes.
    """
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if _madvise is not None and gradient.device.type == "cpu" and gradient.nbytes >= MAPPED:
        start = -(-gradient.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
        end = (gradient.data_ptr() + gradient.nbytes) // _HUGE_PAGE * _HUGE_PAGE
        _madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_HUGEPAGE)
    return gradient


def can_be_overwritten(logits: Tensor) -> bool:
    """Whether every logit has a place of its own, as in an expanded tensor it has not."""
    return all(size == 1 or stride != 0 for size, stride in zip(logits.shape, logits.stride(), strict=True))
