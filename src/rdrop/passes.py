"""Run a model M times on one batch, with different random masks, and nothing else.

Shapes: M passes, B rows of the batch (the first axis of its tensors).

- `concat`: the batch is repeated to [x; x], pass-major, and goes through one forward, as in the paper.
- `sequential`: M forwards. The only one that can give each pass its own rate.
- `shared`: one `torch.func.vmap` over the passes, so what lies below the first random layer runs once.
- `auto`: the cheapest of them that is correct for this model (see `explain_passes`).

Random numbers: masks come from torch's global generator of the device that draws them, and from no other. `sequential`
draws what M calls in a row would draw, bit for bit, and a single pass what one call would. `concat` draws each mask
once for M * B rows, `shared` once for all passes. The same seed gives the same masks within a strategy; masks differ
between passes and between strategies. What `auto` decides does not depend on random numbers or time, and its trial runs
leave generators and buffers as they were (but they do call the model's forward hooks).

BatchNorm: tracked statistics move once, as one plain forward of the batch moves them. `concat` pools the rows
of all passes, with the unbiased factor of one batch (a compiled model keeps the pooled one). Under activation
checkpointing a layer moves again when it is recomputed, as it always does.
"""

from __future__ import annotations

import copy
import functools
import math
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from rdrop.errors import NoEffectWarning
from rdrop.stochastic import active_pattern, rates_are_per_pass, rates_of_pass, warn_if_no_effect

Strategy = Literal["auto", "concat", "sequential", "shared"]

_SHARED_PAYS_BELOW = 0.8  # of the work of `concat`: vmap costs time that a count of operations does not show
_DISTRIBUTED = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")


@dataclass(frozen=True)
class NotBatched:
    """Marks an input whose first axis is not the batch, although it may have as many entries.

    Examples:
        >>> import torch, rdrop
        >>> from torch import nn
        >>> model = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        >>> x, mask = torch.ones(4, 4, 8), torch.ones(4, 4).tril().log()  # batch and length are both 4
        >>> rdrop.forward_passes(model, x, x, rdrop.NotBatched(mask), strategy="concat").shape
        torch.Size([2, 4, 4, 8])
    """

    tensor: Tensor


@dataclass(frozen=True)
class PassPlan:
    """How `forward_passes` runs a model, and why.

    Attributes:
        strategy: `single`, `concat`, `sequential` or `shared`.
        reason: Why, in one sentence.
        passes: M.
        cost: Floating-point operations of each strategy that can be used, as a ratio to one plain forward; nan for
            `shared` if the model has none that can be counted.
        refusals: Each strategy that cannot be used, with the reason.
    """

    strategy: str
    reason: str
    passes: int
    cost: Mapping[str, float]
    refusals: Mapping[str, str]


@dataclass(frozen=True)
class _Traits:
    """What one look through a model tells; layers are held weakly, because a cache must not keep a model."""

    distributed: str | None
    compiled: bool
    norms: tuple[weakref.ref[_NormBase], ...]


_traits_of: weakref.WeakKeyDictionary[nn.Module, _Traits] = weakref.WeakKeyDictionary()
_plans_of: weakref.WeakKeyDictionary[nn.Module, dict[object, PassPlan]] = weakref.WeakKeyDictionary()
_compared: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def _traits(model: nn.Module) -> _Traits:
    """The traits of a model, looked up once."""
    if model not in _traits_of:
        modules = list(model.modules())
        names = {cls.__name__ for module in modules for cls in type(module).__mro__}
        norms = [m for m in modules if isinstance(m, _NormBase) and m.track_running_stats]
        _traits_of[model] = _Traits(
            next((name for name in _DISTRIBUTED if name in names), None),
            "OptimizedModule" in names,
            tuple(weakref.ref(layer) for layer in norms),
        )
    return _traits_of[model]


def _compiled(model: nn.Module) -> bool:
    """Whether torch.compile has the model, or a part of it, or is looking at this very call."""
    called = getattr(model, "_compiled_call_impl", None) is not None
    return called or torch.compiler.is_compiling() or _traits(model).compiled


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    """The same structure with every leaf replaced; containers are copied, never changed."""
    if isinstance(value, NotBatched | PackedSequence):
        return function(value)
    if isinstance(value, Mapping):
        items = {key: _map(function, value[key]) for key in value}
        if type(value) is dict or not isinstance(value, MutableMapping):
            return type(value)(items)  # type: ignore[call-arg]
        copied: Any = copy.copy(value)
        for key, item in items.items():
            copied[key] = item
        return copied
    if isinstance(value, list | tuple):
        parts = [_map(function, item) for item in value]
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    if is_dataclass(value) and not isinstance(value, type):
        copied = copy.copy(value)
        for field in fields(value):
            object.__setattr__(copied, field.name, _map(function, getattr(value, field.name)))
        return copied
    return function(value)


def _leaves(value: Any) -> list[Any]:
    """The leaves of a structure, in order."""
    found: list[Any] = []
    _map(found.append, value)
    return found


def _unwrap(leaf: Any) -> Any:
    """An input as the model wants it."""
    return leaf.tensor if isinstance(leaf, NotBatched) else leaf


def _rows(leaf: Any) -> int | None:
    """Entries of the first axis of a tensor that has one."""
    return leaf.size(0) if isinstance(leaf, Tensor) and leaf.dim() > 0 else None


def _batch_size(inputs: Any, *, repeated: bool) -> int:
    """B, from the first tensor that has an axis."""
    for leaf in _leaves(inputs):
        packed = isinstance(leaf, PackedSequence)
        if repeated and (packed or (isinstance(leaf, Tensor) and leaf.is_nested)):
            raise TypeError(
                f"the batch holds a {'PackedSequence' if packed else 'nested tensor'}, which cannot be "
                'repeated; use strategy="sequential", or pack it inside the model'
            )
        rows = int(leaf.batch_sizes[0]) if packed else _rows(leaf)
        if rows is not None:
            return rows
    raise ValueError("no tensor with a batch axis among the inputs; expected the batch, as the model takes it")


def _sequential(calls: Sequence[Callable[[], Any]], rows: int) -> Any:
    """Several calls in a row: batch tensors stacked, scalars averaged, the rest from the first."""

    def merge(parts: tuple[Any, ...]) -> Any:
        first = parts[0]
        if not all(isinstance(part, Tensor) for part in parts) or _rows(first) not in (None, rows):
            return first
        if len({part.shape for part in parts}) > 1:
            shapes = ", ".join(str(tuple(part.shape)) for part in parts)
            raise ValueError(f"the passes give outputs of shapes {shapes}; they must agree to be compared")
        if first.dim() == 0:
            return torch.stack(parts).mean(0) if first.is_floating_point() else first
        return torch.stack(parts)

    outputs = [call() for call in calls]
    columns = [_leaves(output) for output in outputs]
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"the passes give outputs of {[len(column) for column in columns]} parts; they must agree")
    merged = iter([merge(parts) for parts in zip(*columns, strict=True)])
    return _map(lambda _: next(merged), outputs[0])


def _concat(model: nn.Module, inputs: Any, rows: int, passes: int) -> Any:
    """One forward of the repeated batch, its output split."""

    def repeat(leaf: Any) -> Any:
        return leaf.repeat(passes, *[1] * (leaf.dim() - 1)) if _rows(leaf) == rows else _unwrap(leaf)

    def split(leaf: Any) -> Any:
        return leaf.view(passes, rows, *leaf.shape[1:]) if _rows(leaf) == passes * rows else leaf

    args, kwargs = _map(repeat, inputs)
    layers = [] if _compiled(model) else [n for n in _moving_norms(model) if isinstance(n, _BatchNorm)]
    with _statistics_of_one_batch(layers, passes):
        return _map(split, model(*args, **kwargs))


def _shared(call: Callable[[], Any], rows: int, passes: int) -> Any:
    """One call under vmap. Only tensors can leave it: objects other than plain values become None."""
    outputs: list[Any] = []

    def one(_: Tensor) -> tuple[Tensor, ...]:
        outputs.append(call())
        return tuple(leaf for leaf in _leaves(outputs[0]) if isinstance(leaf, Tensor))

    def restore(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf if isinstance(leaf, bool | int | float | str | PackedSequence) else None
        tensor = next(tensors)
        if tensor.dim() == 1 and tensor.is_floating_point():
            return tensor.mean(0)
        return tensor if tensor.shape[1:2] == (rows,) else tensor[0]

    tensors = iter(vmap(one, randomness="different")(torch.zeros(passes)))
    return _map(restore, outputs[0])


def _moving_norms(model: nn.Module) -> list[_NormBase]:
    """Normalisation layers whose running statistics a forward moves."""
    layers = [reference() for reference in _traits(model).norms]
    return [n for n in layers if n is not None and n.training and n.running_var is not None]


@contextmanager
def _buffers_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Undo what a forward does to the buffers of some modules.

    Through `.data`: autograd has saved running statistics, though it never reads them, and would refuse changed ones.
    """
    before = [(m, name, b, b.detach().clone()) for m in modules for name, b in m.named_buffers(recurse=False)]
    try:
        yield
    finally:
        for module, name, buffer, value in before:
            buffer.data.copy_(value)
            setattr(module, name, buffer)


@contextmanager
def _statistics_of_one_batch(layers: Sequence[_NormBase], passes: int) -> Iterator[None]:
    """Give the running variance that a forward of the repeated batch moves the unbiased factor of one batch.

    With N = M n values per channel torch adds momentum * N / (N - 1) * variance; one batch: n / (n - 1).
    """
    old: dict[nn.Module, Tensor] = {}

    def before(layer: nn.Module, _: Any) -> None:
        old[layer] = layer.running_var.clone()  # type: ignore[operator]

    def after(layer: Any, inputs: tuple[Tensor, ...], _: Any) -> None:
        total = inputs[0].numel() // inputs[0].size(1)
        if isinstance(layer, nn.SyncBatchNorm) and torch.distributed.is_initialized():
            total *= torch.distributed.get_world_size(layer.process_group)
        one = total // passes
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


def _refusals(model: nn.Module) -> dict[str, str]:
    """Strategies that a model rules out before anything is run."""
    refusals: dict[str, str] = {}
    if rates_are_per_pass(model):
        reason = "each pass has a dropout rate of its own, which only one forward for each pass can use"
        refusals.update(concat=reason, shared=reason)
    if (wrapper := _traits(model).distributed) is not None:
        reason = f"{wrapper} expects one forward for each backward"
        refusals.update(sequential=reason, shared=reason)
    elif _compiled(model):
        refusals["shared"] = "torch.func.vmap does not go through a compiled model"
    elif ("recurrent dropout", True) in active_pattern(model):
        refusals["shared"] = "the masks inside a recurrent layer would be the same for all passes"
    if {"concat", "sequential"} <= refusals.keys():
        raise RuntimeError(
            f"{type(model).__name__} cannot be run: {refusals['concat']}, but {refusals['sequential']}; "
            "call rdrop.set_dropout with a single rate"
        )
    return refusals


class _FusedDropout(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices operations that draw a mask inside themselves, which vmap may make the same for all passes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for index, argument in enumerate(func._schema.arguments):
            if argument.name in ("dropout_p", "dropout"):
                rate = args[index] if index < len(args) else (kwargs or {}).get(argument.name, 0.0)
                self.found |= {str(func)} if rate else set()
        return func(*args, **(kwargs or {}))


def _count(call: Callable[[], Any]) -> tuple[int, Any]:
    """Floating-point operations of a call (matrix products, convolutions, attention), and its result."""
    with FlopCounterMode(display=False) as counter:
        result = call()
    return int(counter.get_total_flops()), result


def _try(model: nn.Module, inputs: Any, rows: int, passes: int) -> float | str:
    """Cost of `shared` as a ratio to one plain forward (nan if nothing can be counted), or why it is refused."""
    tensors = [*model.parameters(), *model.buffers(), *(t for t in _leaves(inputs) if _rows(t))]
    devices = sorted({(t.device.type, t.device.index) for t in tensors if t.device.type not in ("cpu", "meta")})
    call = functools.partial(model, *inputs[0], **inputs[1])
    kind = devices[0][0] if devices else "cuda"
    with torch.random.fork_rng([index for _, index in devices], device_type=kind), _buffers_kept(model.modules()):
        plain, _ = _count(call)
        try:
            with warnings.catch_warnings(), _FusedDropout() as fused:
                warnings.filterwarnings("error", message="There is a performance drop")  # a loop over the passes
                operations, output = _count(lambda: _shared(call, rows, passes))
            outputs = [t for t in _leaves(output) if isinstance(t, Tensor) and t.requires_grad]
            if outputs:  # some models refuse only in backward, for example under activation checkpointing
                weights = [p for p in model.parameters() if p.requires_grad]
                torch.autograd.grad([t.sum() for t in outputs], weights, allow_unused=True)
        except Exception as error:
            return f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]}"
    if fused.found:
        return f"the mask inside {', '.join(sorted(fused.found))} may be the same for all passes"
    return operations / plain if plain else math.nan


def _decide(model: nn.Module, inputs: Any, rows: int, passes: int) -> PassPlan:
    """The plan for a model; runs it on the batch if that is needed to know."""
    refusals = _refusals(model)
    cost = {name: float(passes) for name in ("concat", "sequential") if name not in refusals}
    active = {kind for kind, active in active_pattern(model) if active}
    if "concat" in refusals:
        strategy, reason = "sequential", refusals["concat"]
    elif active == {"layer drop"} and "sequential" not in refusals:
        strategy, reason = "sequential", "layers are left out for a whole forward, so each pass needs its own"
    else:
        strategy, found = "concat", refusals.get("shared") or _try(model, inputs, rows, passes)
        if isinstance(found, str):
            refusals["shared"], reason = found, f"shared cannot be used: {found}"
        else:
            cost["shared"] = found
            reason = f"shared takes {found:.2f} times the operations of one pass, concat {passes}"
            strategy = "shared" if found <= _SHARED_PAYS_BELOW * passes else "concat"
    return PassPlan(strategy, reason, passes, cost, refusals)


def _plan(model: nn.Module, inputs: Any, rows: int, passes: int) -> PassPlan:
    """The plan for a model, decided once for its mode, the number of passes and which layers draw."""
    mode = (model.training, torch.is_grad_enabled(), _compiled(model), rates_are_per_pass(model))
    key = (passes, mode, active_pattern(model))
    plans = _plans_of.setdefault(model, {})
    if key not in plans:
        plans[key] = _decide(model, inputs, rows, passes)
    return plans[key]


def _check_passes(passes: int) -> None:
    """Refuse what is no number of passes."""
    if type(passes) is not int or passes < 1:
        raise ValueError(f"passes is {passes!r}; expected a whole number of at least 1")


def explain_passes(model: nn.Module, *args: Any, passes: int = 2, **kwargs: Any) -> PassPlan:
    """How `forward_passes` with strategy `auto` runs this model on such a batch, at what cost, and why.

    The cost is what torch's FlopCounterMode counts in a forward: matrix products, convolutions and attention. (A
    backward takes twice as much of the same, so the ratio holds for a training step.) Nothing is timed: the decision is
    the same on every run. It is made once for a model, its mode, M, and the set of layers that draw.

    Args:
        model: The model.
        *args: Its inputs, as for `forward_passes`.
        passes: M >= 1.
        **kwargs: Its inputs.

    Returns:
        The plan.

    Raises:
        ValueError: M is no number of passes, or the inputs have no batch axis.
        RuntimeError: No strategy can be used.

    Examples:
        >>> import torch, rdrop
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.1), nn.Linear(64, 2))
        >>> plan = rdrop.explain_passes(model, torch.ones(4, 64))
        >>> plan.strategy, round(plan.cost["shared"], 2)
        ('shared', 1.03)
    """
    _check_passes(passes)
    if passes == 1:
        return PassPlan("single", "one pass is one plain forward", 1, {"single": 1.0}, {})
    rows = _batch_size((args, kwargs), repeated=False)
    return _plan(model, _map(_unwrap, (args, kwargs)), rows, passes)


def forward_passes(
    model: nn.Module | Sequence[nn.Module],
    *args: Any,
    passes: int = 2,
    strategy: Strategy = "auto",
    **kwargs: Any,
) -> Any:
    """Run a model M times on one batch, with different masks, and put a pass axis before the batch axis.

    The docstring of this module says what the strategies do, which random numbers are drawn, and what BatchNorm does.

    Args:
        model: A module; or a list or tuple of M different ones, each of which makes one pass (mutual learning).
        *args: Inputs of the model, also nested; they are never changed. B is the first axis of the first tensor that
            has one; every tensor with B rows belongs to the batch, unless it is wrapped in `NotBatched`.
        passes: M >= 1.
        strategy: `auto`, `concat`, `sequential` or `shared`.
        **kwargs: Inputs of the model.

    Returns:
        What the model returns (tensor, tuple, list, dict, dataclass), with (M, B, ...) for every tensor (B, ...). A
        scalar, such as a loss, is the mean over the passes; under `concat`, what the model makes of M * B rows. All
        else is that of the first pass, or of the one forward; under `shared`, objects that are neither tensors nor
        plain values (a key-value cache) are None.

    Raises:
        ValueError: Inputs or output have no batch axis, outputs do not match, or M contradicts the number of models.
        TypeError: `model` is no module, or the batch holds a PackedSequence or a nested tensor.
        RuntimeError: The strategy cannot be used for this model; the message says why.

    Warns:
        NoEffectWarning: The passes cannot differ, or do not in the first training step; once per model and cause.

    Examples:
        >>> import torch, rdrop
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1), nn.Linear(8, 3))
        >>> rdrop.forward_passes(model, torch.ones(4, 8)).shape
        torch.Size([2, 4, 3])
    """
    _check_passes(passes)
    if strategy not in get_args(Strategy):
        raise ValueError(f"strategy is {strategy!r}; expected one of {', '.join(get_args(Strategy))}")
    several = isinstance(model, list | tuple | nn.ModuleList)
    models: list[Any] = list(model) if isinstance(model, list | tuple | nn.ModuleList) else [model]
    if not models or not all(isinstance(m, nn.Module) for m in models):
        names = ", ".join(type(m).__name__ for m in models) or "an empty list"
        raise TypeError(f"model is {names}; expected a torch.nn.Module, or a list or tuple of them")
    repeated = passes > 1 and strategy != "sequential" and not several
    rows = _batch_size((args, kwargs), repeated=repeated)
    inputs = _map(_unwrap, (args, kwargs))
    calls = [functools.partial(m, *inputs[0], **inputs[1]) for m in models]
    if several:
        _check_several(models, passes, strategy)
        return _checked(_sequential(calls, rows), rows, passes, models)
    if passes == 1:
        return _checked(_sequential(calls, rows), rows, passes, models)
    if torch.compiler.is_compiling():
        if strategy not in ("auto", "concat") or any(hasattr(m, "rates_per_pass") for m in models[0].modules()):
            raise RuntimeError("inside a compiled function only concat can be used; compile the model instead")
        return _checked(_concat(models[0], (args, kwargs), rows, passes), rows, passes, models)
    random = warn_if_no_effect(models[0])
    if strategy in ("auto", "shared"):
        plan = _plan(models[0], inputs, rows, passes)
        chosen, refusals = (plan.strategy if strategy == "auto" else strategy), plan.refusals
    else:
        chosen, refusals = strategy, _refusals(models[0])
    if chosen in refusals:
        others = " or ".join(f'"{name}"' for name in ("concat", "sequential") if name not in refusals)
        name = type(models[0]).__name__
        raise RuntimeError(f'strategy="{chosen}" cannot be used for {name}: {refusals[chosen]}. Use {others}')
    if chosen == "concat":
        output = _concat(models[0], (args, kwargs), rows, passes)
    elif chosen == "shared":
        output = _shared(calls[0], rows, passes)
    else:
        norms = _moving_norms(models[0])

        def at(index: int) -> Any:
            with rates_of_pass(models[0], index, passes), _buffers_kept(norms if index else []):
                return calls[0]()

        output = _sequential([functools.partial(at, index) for index in range(passes)], rows)
    output = _checked(output, rows, passes, models)
    if random and models[0].training and models[0] not in _compared:
        _compared.add(models[0])
        _warn_if_identical(models[0], output, rows, passes)
    return output


def _check_several(models: list[nn.Module], passes: int, strategy: str) -> None:
    """Refuse what contradicts one pass for each of several models."""
    if passes != len(models):
        raise ValueError(f"passes is {passes}, but there are {len(models)} models; pass passes={len(models)}")
    if len(set(models)) < len(models):
        raise ValueError("a model is listed twice; to run one model several times, pass it alone with passes=M")
    if strategy not in ("auto", "sequential"):
        raise ValueError(f'strategy is "{strategy}"; several models run one after the other: expected "auto"')


def _checked(output: Any, rows: int, passes: int, models: Sequence[nn.Module]) -> Any:
    """The output, if there is a pass axis in it."""
    leaves = _leaves(output)
    if any(isinstance(leaf, Tensor) and leaf.shape[:2] == (passes, rows) for leaf in leaves):
        return output
    kinds = [str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in leaves]
    raise ValueError(
        f"{type(models[0]).__name__} returned nothing with the {rows} rows of the batch, but "
        f"{', '.join(kinds)}; the batch must be the first axis of inputs and outputs (unpack a "
        "PackedSequence inside the model)"
    )


def _warn_if_identical(model: nn.Module, output: Any, rows: int, passes: int) -> None:
    """Say so if what is random in a model does not reach its output."""
    carried = [t for t in _leaves(output) if isinstance(t, Tensor) and t.shape[:2] == (passes, rows)]
    answers = next((t for t in carried if t.is_floating_point()), None)
    if answers is not None and all(torch.equal(answers[0], other) for other in answers[1:]):
        warnings.warn(
            f"R-Drop has no effect on {type(model).__name__}: its passes gave identical outputs although "
            "layers in it draw. See in rdrop.stochastic_layers(model) whether they lie on the way to the output "
            'and have rates that matter; layers left out for a whole batch need strategy="sequential". '
            "If residual branches start at zero, it passes by itself.",
            NoEffectWarning,
            stacklevel=3,
        )
