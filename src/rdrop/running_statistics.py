"""BatchNorm under several passes: tracked statistics move once, as one plain forward of the batch moves them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

_norms_of: weakref.WeakKeyDictionary[nn.Module, tuple[weakref.ref[_NormBase], ...]] = weakref.WeakKeyDictionary()


def moving_norms(model: nn.Module) -> list[_NormBase]:
    """Normalisation layers whose running statistics a forward moves."""
    if model not in _norms_of:
        norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.track_running_stats]
        _norms_of[model] = tuple(weakref.ref(layer) for layer in norms)
    layers = [reference() for reference in _norms_of[model]]
    return [n for n in layers if n is not None and n.training and n.running_var is not None]


@contextmanager
def buffers_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Undo what a forward does to the buffers of some modules.

    Through `.data`: autograd has saved running statistics, though it never reads them, and would refuse changed ones.
    """
    held = [(m, name, b) for m in modules for name, b in m._buffers.items() if b is not None]
    values = [buffer.detach().clone() for _, _, buffer in held]
    try:
        yield
    finally:
        for (module, name, buffer), value in zip(held, values, strict=True):
            buffer.data.copy_(value)
            if module._buffers[name] is not buffer:
                setattr(module, name, buffer)


@contextmanager
def statistics_of_one_batch(layers: Sequence[_NormBase], share: float) -> Iterator[None]:
    """Give the running variance that a forward of a longer batch moves the unbiased factor of the batch in it.

    With N values per channel torch adds momentum * N / (N - 1) * variance; the batch, a `share` of them, has n of them
    and would add n / (n - 1).
    """
    old: dict[nn.Module, Tensor] = {}

    def before(layer: nn.Module, _: Any) -> None:
        old[layer] = layer.running_var.clone()  # type: ignore[operator]

    def after(layer: Any, inputs: tuple[Tensor, ...], _: Any) -> None:
        total = inputs[0].numel() // inputs[0].size(1)
        if isinstance(layer, nn.SyncBatchNorm) and torch.distributed.is_initialized():
            total *= torch.distributed.get_world_size(layer.process_group)
        one = round(total * share)
        if one > 1:
            seen = layer.num_batches_tracked.to(layer.running_var.dtype)
            momentum = 1 / seen if layer.momentum is None else layer.momentum
            added = layer.running_var.data - (1 - momentum) * old[layer]
            layer.running_var.data.add_(added, alpha=(total - 1) / total * one / (one - 1) - 1)

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_pre_hook(before).remove)
            hooks.callback(layer.register_forward_hook(after).remove)
        yield
