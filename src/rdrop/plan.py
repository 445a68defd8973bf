"""Decide how the passes of a model are run: what is correct for it, and of that the cheapest."""

from __future__ import annotations

import functools
import math
import random
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from rdrop.replay import Replay
from rdrop.running_statistics import buffers_kept
from rdrop.stochastic import active_pattern, rates_are_per_pass
from rdrop.strategies import Request, rows_of, run_in_turn
from rdrop.structures import leaves, map_leaves

_SHARED_PAYS_BELOW = 0.9  # of the operations of the other strategy: smaller batches and bookkeeping cost time too
_DISTRIBUTED = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")


@dataclass(frozen=True)
class PassPlan:
    """How `forward_passes` runs a model, and why.

    Attributes:
        strategy: `single`, `concat`, `sequential` or `shared`.
        reason: Why, in one sentence.
        passes: M.
        cost: Floating-point operations of a training step (forward and backward; where no gradient is asked for, of
            a forward) of each strategy that can be used, as a ratio to a plain one; nan for `shared` if the model has
            none that can be counted.
        refusals: Each strategy that cannot be used, with the reason.
    """

    strategy: str
    reason: str
    passes: int
    cost: Mapping[str, float]
    refusals: Mapping[str, str]


@dataclass(frozen=True)
class _Traits:
    """What one look through a model tells, as long as it is of that class: `fully_shard` gives it another."""

    of: type[nn.Module]
    distributed: str | None
    compiled: bool


_traits_of: weakref.WeakKeyDictionary[nn.Module, _Traits] = weakref.WeakKeyDictionary()
_plans_of: weakref.WeakKeyDictionary[nn.Module, dict[object, PassPlan]] = weakref.WeakKeyDictionary()


def _traits(model: nn.Module) -> _Traits:
    """The traits of a model, looked up once."""
    if model not in _traits_of or _traits_of[model].of is not type(model):
        names = {cls.__name__ for module in model.modules() for cls in type(module).__mro__}
        distributed = next((name for name in _DISTRIBUTED if name in names), None)
        _traits_of[model] = _Traits(type(model), distributed, "OptimizedModule" in names)
    return _traits_of[model]


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile has the model, or a part of it, or is looking at this very call."""
    called = getattr(model, "_compiled_call_impl", None) is not None
    return called or torch.compiler.is_compiling() or _traits(model).compiled


def refusals_of(model: nn.Module, request: Request) -> dict[str, str]:
    """Strategies that a model or a request rules out before anything is run.

    Raises:
        RuntimeError: None is left.
    """
    reasons: dict[str, list[str]] = {"concat": [], "sequential": [], "shared": []}
    if rates_are_per_pass(model):
        reasons["concat"].append(
            "each pass has a dropout rate of its own (rdrop.set_dropout sets one for all), so each needs a forward"
        )
    if request.one_sided:
        reasons["concat"].append("a pass without a gradient graph needs a forward of its own")
    if request.fraction < 1:
        reasons["shared"].append("a pass over other rows has nothing in common with the first")
    if request.branch_at is not None:
        below = f"passes with the same masks below {request.branch_at} are run by shared alone"
        reasons["concat"].append(below)
        reasons["sequential"].append(below)
    if (wrapper := _traits(model).distributed) is not None:
        reason = f"{wrapper} expects one forward for each backward"
        reasons["shared"].append(reason)
        if not request.one_sided:
            reasons["sequential"].append(reason)
    elif is_compiled(model):
        reasons["shared"].append("the operations of a compiled model cannot be watched")
    refusals = {name: found[0] for name, found in reasons.items() if found}
    if len(refusals) == len(reasons):
        raise RuntimeError(
            f"{type(model).__name__} cannot be run: " + "; ".join(f"{name}: {why}" for name, why in refusals.items())
        )
    return refusals


class _OutOfSight(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices operations that a `Replay` cannot see: those inside a custom autograd.Function, or in TorchScript."""

    def __init__(self, replay: Replay) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.replay, self.found = replay, set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.replay.blind:
            self.found.add(str(func))
        return func(*args, **(kwargs or {}))


def _operations(call: Callable[[], Any], weights: list[Tensor]) -> tuple[int, int]:
    """Floating-point operations (matrix products, convolutions, attention) of a call, and of its backward."""
    with FlopCounterMode(display=False) as counter:
        result = call()
        forward = int(counter.get_total_flops())
        answers = [t for t in leaves(result) if isinstance(t, Tensor) and t.requires_grad]
        if answers:  # some models refuse only in backward, for example under activation checkpointing
            torch.autograd.grad([t.sum() for t in answers], weights, allow_unused=True)
    return forward, int(counter.get_total_flops()) - forward


def _try(model: nn.Module, inputs: Any, rows: int, request: Request, costs: dict[str, float]) -> str | None:
    """Run `shared` once; sets the cost of every strategy, and returns why `shared` cannot be used, or None."""
    tensors = [*model.parameters(), *model.buffers(), *(t for t in leaves(inputs) if rows_of(t))]
    devices = sorted({(t.device.type, t.device.index) for t in tensors if t.device.type not in ("cpu", "meta")})
    kind = devices[0][0] if devices else "cuda"
    if kind != "cuda":
        return f"what {kind} draws cannot be watched"
    inputs = map_leaves(_no_leaf_of_the_graph, inputs)
    weights = [t for t in (*model.parameters(), *leaves(inputs)) if isinstance(t, Tensor) and t.requires_grad]
    with _own_generators([index for _, index in devices]), buffers_kept(model.modules()):
        forward, backward = _operations(functools.partial(model, *inputs[0], **inputs[1]), weights)
        plain = forward + backward
        for name in costs if plain else ():
            costs[name] = 1 + request.further(rows) * (forward if request.one_sided else plain) / plain
        replay = Replay(inputs)
        out_of_sight = _OutOfSight(replay)

        def watched() -> Any:
            with out_of_sight:
                return run_in_turn(model, inputs, rows, request, replay)

        try:
            shared = _operations(watched, weights)
        except Exception as error:
            return f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]}"
    if out_of_sight.found or replay.misled:
        found = ", ".join(sorted(out_of_sight.found)[:3]) or "operations"
        return f"{found} run out of sight, in a custom autograd.Function or in TorchScript"
    if replay.diverged:
        return "a pass took another way than the first and needed what was gone"
    costs["shared"] = sum(shared) / plain if plain else math.nan
    return None


@contextmanager
def _own_generators(devices: Sequence[int]) -> Iterator[None]:
    """Random numbers that are the same in every trial; afterwards the generators are as they were."""
    python = random.getstate()
    with torch.random.fork_rng(devices):
        for generator in (torch.default_generator, *(torch.cuda.default_generators[index] for index in devices)):
            generator.manual_seed(0)
        random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)


def _no_leaf_of_the_graph(leaf: Any) -> Any:
    """An input, itself not the start of a graph: the counter's hooks fail on those."""
    return leaf.view_as(leaf) if isinstance(leaf, Tensor) and leaf.requires_grad else leaf


def _decide(model: nn.Module, inputs: Any, rows: int, request: Request) -> PassPlan:
    """The plan for a model; runs it on the batch if that is needed to know."""
    refusals = refusals_of(model, request)
    cost = {
        name: 1 + request.further(rows) / (3 if request.one_sided else 1)
        for name in ("concat", "sequential")
        if name not in refusals
    }
    if "shared" not in refusals:
        found = _try(model, inputs, rows, request, cost)
        if found is not None:
            refusals["shared"] = found
    whole = {kind for kind, active in active_pattern(model) if active} == {"layer drop"}
    others = [name for name in (("sequential", "concat") if whole else ("concat", "sequential")) if name in cost]
    other = others[0] if others else None
    shared = cost.get("shared")
    if other is None:
        if shared is None:
            raise RuntimeError(f"{type(model).__name__} cannot be run: shared cannot be used: {refusals['shared']}")
        return PassPlan("shared", refusals["concat"], request.passes, cost, refusals)
    if shared is not None:
        reason = f"shared takes {shared:.2f} times the operations of a plain step, {other} {cost[other]:.2f}"
        strategy = "shared" if shared <= _SHARED_PAYS_BELOW * cost[other] else other
    else:
        strategy, reason = other, f"shared cannot be used: {refusals['shared']}"
    if strategy == "sequential":
        why = "layers are left out for a whole forward, so each pass needs its own" if whole else refusals.get("concat")
        reason = why or reason
    return PassPlan(strategy, reason, request.passes, cost, refusals)


def plan_passes(model: nn.Module, inputs: Any, rows: int, request: Request) -> PassPlan:
    """The plan for a model, decided once for its class, its mode, the request and which layers draw."""
    mode = (type(model), model.training, torch.is_grad_enabled(), is_compiled(model), rates_are_per_pass(model))
    key = (request, mode, active_pattern(model))
    plans = _plans_of.setdefault(model, {})
    if key not in plans:
        plans[key] = _decide(model, inputs, rows, request)
    return plans[key]
