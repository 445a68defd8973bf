"""Memory for gradients of the size of the logits, which each step needs anew.

A tensor of that size is memory fresh from the system, and every page of it costs a fault when it is first touched: for
250 MiB more time than the loss itself. So the last gradient's memory is kept for the next one, as a caching allocator
does on a GPU, and the system is told that it may have it back if it runs short.
"""

from __future__ import annotations

import mmap
import weakref
from contextlib import suppress

import torch
from torch import Tensor

MAPPED = 1 << 20
"""Bytes from which on memory is kept: the allocator of C takes so much fresh from the system, again and again."""

_kept: list[mmap.mmap] = []


def like(logits: Tensor) -> Tensor:
    """Dense memory in the shape of the logits, whatever is written in it."""
    if logits.device.type != "cpu" or logits.nbytes < MAPPED:
        return torch.empty_like(logits, memory_format=torch.contiguous_format)
    memory = _take(logits.nbytes)
    loan = memoryview(memory)
    weakref.finalize(loan, _give_back, memory).atexit = False
    return torch.frombuffer(loan, dtype=logits.dtype, count=logits.numel()).view(logits.shape)


def release() -> None:
    """Give the memory that is kept for the next gradient back to the system.

    >>> release()
    """
    _kept.clear()


def can_be_overwritten(logits: Tensor) -> bool:
    """Whether every logit has a place of its own, as in an expanded tensor it has not."""
    return all(size == 1 or stride != 0 for size, stride in zip(logits.shape, logits.stride(), strict=True))


def _take(size: int) -> mmap.mmap:
    """The memory that was kept, if it is large enough, or new memory in pages as large as the system has them."""
    with suppress(IndexError):  # another thread may be faster
        if len(memory := _kept.pop()) >= size:
            return memory
    memory = mmap.mmap(-1, size)
    _advise(memory, "MADV_HUGEPAGE")
    return memory


def _give_back(memory: mmap.mmap) -> None:
    """Keep memory of which no tensor is left, the largest of such."""
    _advise(memory, "MADV_FREE")
    _kept[:] = [max([memory, *_kept], key=len)]


def _advise(memory: mmap.mmap, advice: str) -> None:
    """Tell the system what memory is for, where it listens."""
    if hasattr(mmap, advice):
        with suppress(OSError):  # an older system
            memory.madvise(getattr(mmap, advice))
