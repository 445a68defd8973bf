"""How several passes of one model are run: in one forward of a longer batch, or one after the other."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.rnn import PackedSequence

from rdrop.replay import Replay
from rdrop.running_statistics import buffers_kept, moving_norms, statistics_of_one_batch
from rdrop.stochastic import quiet_modules, rates_of_pass
from rdrop.structures import NotBatched, leaves, map_leaves


@dataclass(frozen=True)
class Request:
    """What is asked for: `rdrop.forward_passes` explains each."""

    passes: int
    fraction: float = 1.0
    branch_at: str | None = None
    one_sided: bool = False

    def again(self, rows: int) -> int:
        """Rows of the batch that make more than one pass."""
        return max(1, round(self.fraction * rows))

    def stands_for(self, rows: int) -> float:
        """For how many rows of the batch one stands that makes more than one pass."""
        return rows / self.again(rows)

    def further(self, rows: int) -> float:
        """Batches that the passes after the first are over."""
        return (self.passes - 1) * self.again(rows) / rows


def unwrap(leaf: Any) -> Any:
    """An input as the model wants it."""
    return leaf.tensor if isinstance(leaf, NotBatched) else leaf


def rows_of(leaf: Any) -> int | None:
    """Entries of the first axis of a tensor that has one."""
    return leaf.size(0) if isinstance(leaf, Tensor) and leaf.dim() > 0 else None


def batch_size(inputs: Any, *, repeated: bool) -> int:
    """B, from the first tensor that has an axis."""
    for leaf in leaves(inputs):
        packed = isinstance(leaf, PackedSequence)
        if repeated and (packed or (isinstance(leaf, Tensor) and leaf.is_nested)):
            raise TypeError(
                f"the batch holds a {'PackedSequence' if packed else 'nested tensor'}, which cannot be "
                'repeated; use strategy="sequential", or pack it inside the model'
            )
        rows = int(leaf.batch_sizes[0]) if packed else rows_of(leaf)
        if rows is not None:
            return rows
    raise ValueError("no tensor with a batch axis among the inputs; expected the batch, as the model takes it")


def run_concat(model: nn.Module, inputs: Any, rows: int, request: Request, *, compiled: bool) -> Any:
    """One forward of [x; x], or of [x; some rows of x], its output split."""
    passes, again = request.passes, request.again(rows)
    total = rows + (passes - 1) * again
    chosen = None if again == rows else _some_rows(inputs, rows, again)

    def repeat(leaf: Any) -> Any:
        if rows_of(leaf) != rows:
            return unwrap(leaf)
        if chosen is None:
            return torch.cat([leaf] * passes)  # which keeps the memory format, unlike `repeat`
        return torch.cat([leaf, *[leaf[chosen]] * (passes - 1)])

    def split(leaf: Any) -> Any:
        if rows_of(leaf) != total:
            return leaf
        if chosen is None:
            return leaf.view(passes, rows, *leaf.shape[1:])
        first, *rest = leaf.split([rows, *[again] * (passes - 1)])
        return torch.stack([first, *[first.index_copy(0, chosen, part) for part in rest]])

    args, kwargs = map_leaves(repeat, inputs)
    layers = [] if compiled else [n for n in moving_norms(model) if isinstance(n, _BatchNorm)]
    with statistics_of_one_batch(layers, rows / total):
        return map_leaves(split, model(*args, **kwargs))


def run_in_turn(model: nn.Module, inputs: Any, rows: int, request: Request, replay: Replay | None = None) -> Any:
    """M forwards; under a `Replay` they share what does not depend on random numbers."""
    passes, again = request.passes, request.again(rows)
    chosen = None if again == rows else _some_rows(inputs, rows, again)
    norms = moving_norms(model)
    grad = torch.is_grad_enabled()

    def call(index: int) -> Any:
        def some(leaf: Any) -> Any:
            return leaf[chosen] if index and chosen is not None and rows_of(leaf) == rows else unwrap(leaf)

        args, kwargs = map_leaves(some, inputs)
        forward = functools.partial(model, *args, **kwargs)
        no_graph = torch.no_grad() if request.one_sided and index else nullcontext()
        with rates_of_pass(model, index, passes), buffers_kept(norms if index else []), no_graph:
            return forward() if replay is None else replay.run(forward)

    outputs = {}
    with nullcontext() if replay is None else replay.as_wholes(quiet_modules(model)):
        # What has no graph goes first where that is possible: then the graph of the other is not in memory yet.
        for index in sorted(range(passes), key=lambda i: -i if request.one_sided and replay is None else i):
            with _draws_shared_below(model, request.branch_at, replay if index == 0 else None):
                outputs[index] = call(index)
    calls = [outputs[index] for index in range(passes)]
    return stack(calls, rows, chosen=chosen, graph=passes if request.one_sided and grad else None)


def stack(outputs: Sequence[Any], rows: int, *, chosen: Tensor | None = None, graph: int | None = None) -> Any:
    """The outputs of several calls as one: batch tensors stacked, scalars averaged, the rest from the first.

    Args:
        outputs: One for each pass.
        rows: Rows of the batch.
        chosen: Rows that all calls but the first were made with; the others are taken from the first.
        graph: None, or that only the first has a gradient graph: then its gradient counts so many times.
    """

    def merge(parts: tuple[Any, ...]) -> Any:
        first = parts[0]
        if not all(isinstance(part, Tensor) for part in parts) or rows_of(first) not in (None, rows):
            return first
        if chosen is not None and first.dim():
            parts = first, *(first.index_copy(0, chosen, part.to(first.dtype)) for part in parts[1:])
        if len({part.shape for part in parts}) > 1:
            shapes = ", ".join(str(tuple(part.shape)) for part in parts)
            raise ValueError(f"the passes give outputs of shapes {shapes}; they must agree to be compared")
        if graph is not None:
            parts = _times(first, graph), *(part.detach() for part in parts[1:])
        if first.dim() == 0:
            return torch.stack(parts).mean(0) if first.is_floating_point() else first
        return torch.stack(parts)

    columns = [leaves(output) for output in outputs]
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"the passes give outputs of {[len(column) for column in columns]} parts; they must agree")
    merged = iter([merge(parts) for parts in zip(*columns, strict=True)])
    return map_leaves(lambda _: next(merged), outputs[0])


def _times(tensor: Tensor, factor: int) -> Tensor:
    """The same tensor, with a multiple of its gradient."""
    if not tensor.requires_grad:
        return tensor
    tensor = tensor.view_as(tensor)
    tensor.register_hook(lambda gradient: gradient * factor)  # type: ignore[no-untyped-call]
    return tensor


def _some_rows(inputs: Any, rows: int, count: int) -> Tensor:
    """So many rows, drawn without replacement on the device of the batch; in order, as they lie in memory."""
    device = next(leaf.device for leaf in leaves(inputs) if rows_of(leaf) == rows)
    return torch.randperm(rows, device=device)[:count].sort().values


@contextmanager
def _draws_shared_below(model: nn.Module, branch_at: str | None, replay: Replay | None) -> Iterator[None]:
    """Until a module is called for the first time, all passes get the random numbers of the first."""
    if branch_at is None or replay is None:
        yield
        return

    def reached(*_: Any) -> None:
        replay.draws_are_shared = False

    replay.draws_are_shared = True
    hook = model.get_submodule(branch_at).register_forward_pre_hook(reached)
    try:
        yield
    finally:
        hook.remove()
    if replay.draws_are_shared:
        raise RuntimeError(
            f"branch_at is {branch_at!r}, a module that {type(model).__name__} did not call; name one that its "
            "forward calls"
        )
