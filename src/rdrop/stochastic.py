"""Find, set and switch the randomness of a model.

Randomness hides in layers of torch's dropout family and their look-alikes (stochastic depth of timm, torchvision and
transformers), in numbers that a module hands to a function (`nn.MultiheadAttention`, the attention of most transformers
models, `nn.LSTM`) or reads from its `config` in every call, in LayerDrop and in `nn.RReLU`. A number counts only if
code that the module's `forward` can reach reads it; one that is merely stored is passed over.

Not seen: a rate written into the call (`F.dropout(x, 0.1, self.training)`), masks that a model draws itself
(SpecAugment, Gumbel noise), a number that only another module reads, TorchScript.
"""

from __future__ import annotations

import difflib
import dis
import functools
import inspect
import re
import warnings
import weakref
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from rdrop.errors import NoEffectWarning

_DROPPING = re.compile(r"dropout|droppath|stochasticdepth|dropblock|dropconnect", re.IGNORECASE)
_KNOWN_LIBRARIES = ("torch", "torchvision", "timm", "transformers")
_DROPOUT_KINDS = ("dropout", "functional dropout", "recurrent dropout", "config")


@dataclass(frozen=True)
class StochasticLayer:
    """One source of randomness in a model.

    Attributes:
        name: Dotted path of the layer, or of the module and the attribute that holds the rate.
        kind: `dropout`, `functional dropout` (a number handed to a function), `config` (a number read from the model's
            config in every call), `recurrent dropout`, `stochastic depth` (for each example), `layer drop` (a layer is
            left out for the whole batch) or `random activation`.
        rate: Probability of dropping, 0..1; of a random activation, the width of its interval of slopes.
        active: Whether it draws now: its module is in training mode and its rate above 0.
        rates: One rate for each pass if `set_dropout` was given a sequence, else None.
    """

    name: str
    kind: str
    rate: float
    active: bool
    rates: tuple[float, ...] | None


@dataclass(frozen=True)
class _Source:
    """Where one rate lives; the module is held weakly, because a cache must not keep a model."""

    name: str
    kind: str
    attribute: str
    reference: weakref.ref[nn.Module]

    def holder(self) -> tuple[Any, str]:
        """Object and attribute that hold the number."""
        module, (*config, attribute) = self.reference(), self.attribute.split(".")
        return (getattr(module, "config", None) if config else module), attribute

    def rate(self) -> float:
        """The number now; a recurrent network of one layer never uses its own."""
        module = self.reference()
        if isinstance(module, nn.RReLU):
            return module.upper - module.lower
        if isinstance(module, nn.RNNBase) and module.num_layers == 1:
            return 0.0
        return float(getattr(*self.holder(), 0.0))

    def rates(self) -> tuple[float, ...] | None:
        """The rates for each pass, if they are set."""
        stored: dict[str, tuple[float, ...]] = getattr(self.reference(), "rates_per_pass", {})
        return stored.get(self.attribute)

    def active(self) -> bool:
        """Whether it draws now."""
        module = self.reference()
        return module is not None and module.training and max(self.rate(), *(self.rates() or (0,))) > 0


_sources_of: weakref.WeakKeyDictionary[nn.Module, list[_Source]] = weakref.WeakKeyDictionary()
_quiet_of: weakref.WeakKeyDictionary[nn.Module, tuple[Any, list[weakref.ref[nn.Module]]]] = weakref.WeakKeyDictionary()
_warned: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and those nested in it (lambdas, comprehensions)."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


@functools.lru_cache(maxsize=4096)
def _reads(cls: Any) -> frozenset[tuple[str, str]]:
    """What the code that `cls.forward` can reach reads: (attribute it is read from, or "", attribute)."""
    found: set[tuple[str, str]] = set()
    seen: set[str] = set()
    todo = {"forward"}
    while todo:
        seen |= todo
        owners = cls.__mro__[: cls.__mro__.index(nn.Module)]
        members = [vars(owner).get(name) for owner in owners for name in todo]
        functions = [inspect.unwrap(getattr(member, "fget", None) or member) for member in members if member]
        for code in [code for f in functions if hasattr(f, "__code__") for code in _codes(f.__code__)]:
            previous = ""
            for instruction in dis.get_instructions(code):
                loads = instruction.opname in ("LOAD_ATTR", "LOAD_METHOD")
                found |= {(previous, instruction.argval)} if loads else set()
                previous = instruction.argval if loads else ""
        todo = {name for _, name in found} - seen
    return frozenset(found)


def _is_rate(value: object) -> bool:
    """Whether a value can be a probability of dropping."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _attributes(module: nn.Module) -> list[str]:
    """Attributes of a module (or `config.<name>`) that hold a rate which its forward reads."""
    if isinstance(module, _DropoutNd):
        return ["p"]
    if isinstance(module, nn.RReLU):
        return ["upper"]
    reads = _reads(type(module))  # type: ignore[arg-type]
    usual = ("p", "prob", "rate") if _DROPPING.search(type(module).__name__) else ()
    own = {name for _, name in reads if "drop" in name or name in usual}
    config = sorted(name for source, name in reads if source == "config" and "drop" in name)
    return [name for name, value in vars(module).items() if name in own and _is_rate(value)] + [
        f"config.{name}" for name in config if _is_rate(getattr(getattr(module, "config", None), name, None))
    ]


def _kind(module: nn.Module, attribute: str) -> str:
    """The kind of a source (see `StochasticLayer`)."""
    described = f"{type(module).__name__}.{attribute}".lower().replace("_", "")
    depth = "droppath" in described or "stochasticdepth" in described
    if "layerdrop" in described or (depth and getattr(module, "mode", "") == "batch"):
        return "layer drop"
    if depth:
        return "stochastic depth"
    if isinstance(module, nn.RReLU | nn.RNNBase):
        return "random activation" if isinstance(module, nn.RReLU) else "recurrent dropout"
    if attribute.startswith("config."):
        return "config"
    return "dropout" if _DROPPING.search(type(module).__name__) else "functional dropout"


def _sources(model: nn.Module, *, fresh: bool) -> list[_Source]:
    """Every source of randomness; `fresh` looks again instead of trusting the last look."""
    if fresh or model not in _sources_of:
        found = []
        for path, module in model.named_modules():
            layer = _DROPPING.search(type(module).__name__) or isinstance(module, nn.RReLU)
            attributes = _attributes(module)
            for attribute in attributes:
                name = path or type(module).__name__
                if not layer or len(attributes) > 1:
                    name = f"{path}.{attribute}".lstrip(".")
                found.append(_Source(name, _kind(module, attribute), attribute, weakref.ref(module)))
        _sources_of[model] = found
    return _sources_of[model]


def _distinct(sources: list[_Source]) -> list[_Source]:
    """Each number once: modules that read the same entry of the same config share it."""
    first: dict[tuple[int, str], _Source] = {}
    for source in sources:
        holder, attribute = source.holder()
        first.setdefault((id(holder), attribute), source)
    return list(first.values())


def stochastic_layers(model: nn.Module) -> list[StochasticLayer]:
    """Every source of randomness of a model that can be seen (the docstring of this module says what cannot).

    Args:
        model: Any module; wrappers such as DistributedDataParallel show in the names.

    Returns:
        One entry for each layer or rate, in the order of `model.named_modules()`; a shared one is listed once.

    Examples:
        >>> import rdrop
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Dropout(0.1), nn.MultiheadAttention(8, 2, dropout=0.2))
        >>> [(layer.name, layer.kind, layer.rate, layer.active) for layer in rdrop.stochastic_layers(model)]
        [('0', 'dropout', 0.1, True), ('1.dropout', 'functional dropout', 0.2, True)]
    """
    sources = _distinct(_sources(model, fresh=True))
    return [StochasticLayer(s.name, s.kind, s.rate(), s.active(), s.rates()) for s in sources]


def set_dropout(model: nn.Module, rate: float | Sequence[float], *, only: Collection[str] | None = None) -> list[str]:
    """Set dropout rates, the same for all passes or one for each.

    With a sequence, pass i of `forward_passes` uses `rate[i]` (the paper's ablation of two rates, in 0.3..0.5), and the
    passes run one after the other. The sequence is kept on each module as `rates_per_pass`; outside `forward_passes`
    the first rate holds, also when activation checkpointing recomputes a pass, so do not combine the two. A single
    number clears it.

    Args:
        model: Any module.
        rate: Probability of dropping, 0 <= rate < 1, or one for each pass.
        only: Names as in `stochastic_layers`. None: every dropout rate, but not those of stochastic depth and layer
            drop, which usually grow with depth; they are set when they are named.

    Returns:
        The names of what was set.

    Raises:
        ValueError: A rate is out of range, a name is unknown, or there is nothing to set.

    Examples:
        >>> import rdrop
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1))
        >>> rdrop.set_dropout(model, (0.3, 0.5))
        ['1']
        >>> rdrop.stochastic_layers(model)[0].rates
        (0.3, 0.5)
    """
    rates = tuple(float(r) for r in (rate if isinstance(rate, Sequence) else [rate]))
    if not rates or not all(0 <= r < 1 for r in rates):
        raise ValueError(f"rate is {rate!r}; expected a probability 0 <= rate < 1, or one for each pass")
    settable = {s.name: s for s in _sources(model, fresh=True) if s.kind != "random activation"}
    for name in only or ():
        if name not in settable:
            near = ", ".join(difflib.get_close_matches(name, settable) or list(settable)[:3]) or "none"
            raise ValueError(f"`only` names {name!r}, where no rate can be set; near it: {near}")
    chosen = [s for s in settable.values() if (s.kind in _DROPOUT_KINDS if only is None else s.name in only)]
    if not chosen:
        raise ValueError(
            f"{type(model).__name__} has no dropout rate to set; build it with dropout, add nn.Dropout "
            f"layers, or name what else is random in `only` ({_some(list(settable)) or 'there is nothing'})"
        )
    for source in chosen:
        setattr(*source.holder(), rates[0])
        stored = dict(getattr(source.reference(), "rates_per_pass", {}))
        stored.pop(source.attribute, None)
        if len(rates) > 1:
            stored[source.attribute] = rates
        vars(source.reference()).pop("rates_per_pass", None)
        vars(source.reference()).update({"rates_per_pass": stored} if stored else {})
    return [source.name for source in _distinct(chosen)]


def active_pattern(model: nn.Module) -> tuple[tuple[str, bool], ...]:
    """Kind of each source and whether it draws now: a cheap key for what was decided from it."""
    return tuple((source.kind, source.active()) for source in _sources(model, fresh=False))


def quiet_modules(model: nn.Module) -> list[nn.Module]:
    """The largest parts of a model that are known not to draw now; never the model itself.

    Code that is not of torch, torchvision, timm or transformers is not known: it may draw in ways that cannot be seen.
    """
    pattern = active_pattern(model)
    held = _quiet_of.get(model)
    if held is None or held[0] != pattern:
        drawing = {source.reference() for source in _sources(model, fresh=False) if source.active()}
        _quiet_of[model] = held = pattern, [weakref.ref(module) for module in _quiet(model, drawing)]
    return [module for reference in held[1] if (module := reference()) is not None]


def _quiet(model: nn.Module, drawing: Collection[nn.Module | None]) -> list[nn.Module]:
    """The outermost modules that can be called and hold no drawing or unknown one."""

    def known(module: nn.Module) -> bool:
        library = type(module).__module__.partition(".")[0] in _KNOWN_LIBRARIES
        return library and not isinstance(module, torch.jit.ScriptModule)

    modules = dict(model.named_modules(remove_duplicate=False))
    loud = {path for path, module in modules.items() if module in drawing or not known(module)} | {""}
    loud |= {path[:end] for path in loud for end, character in enumerate(path) if character == "."}
    quiet: dict[nn.Module, str] = {}
    for path, module in modules.items():
        called = type(module).forward is not nn.Module.forward
        if path not in loud and called and not any(path.startswith(f"{other}.") for other in quiet.values()):
            quiet[module] = path
    return list(quiet)


def rates_are_per_pass(model: nn.Module) -> bool:
    """Whether `set_dropout` gave some layer one rate for each pass."""
    return any(source.rates() for source in _sources(model, fresh=False))


@contextmanager
def rates_of_pass(model: nn.Module, index: int, passes: int) -> Iterator[None]:
    """Give every layer with rates for each pass that of pass `index`; afterwards, the one before."""
    before: list[tuple[Any, str, float]] = []
    try:
        for source in _sources(model, fresh=False):
            if rates := source.rates():
                if len(rates) != passes:
                    raise ValueError(
                        f"{source.name} has {len(rates)} rates {rates}, but there are {passes} passes; call "
                        "rdrop.set_dropout with one rate for each pass, or with a single number"
                    )
                holder, attribute = source.holder()
                before.append((holder, attribute, getattr(holder, attribute)))
                setattr(holder, attribute, rates[index])
        yield
    finally:
        for holder, attribute, value in reversed(before):
            setattr(holder, attribute, value)


@contextmanager
def _training(model: nn.Module, only: Collection[nn.Module]) -> Iterator[None]:
    """Training mode for the own flags of some modules alone; every flag returns afterwards."""
    before = [(module, module.training) for module in model.modules()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        # A TransformerEncoderLayer in evaluation mode would ignore the flags of its dropout layers.
        torch.backends.mha.set_fastpath_enabled(fast_path and not only)
        for module, _ in before:
            module.training = module in only
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, training in before:
            module.training = training


def randomness_off(model: nn.Module) -> AbstractContextManager[None]:
    """The whole model in evaluation mode; every flag returns afterwards, also after an error."""
    return _training(model, ())


def randomness_on(model: nn.Module) -> AbstractContextManager[None]:
    """Evaluation mode in which the stochastic layers draw (Monte Carlo dropout).

    Only a module's own flag is switched on, so normalisation layers keep their running statistics, also beneath a
    module that holds a rate. A module that asks its own flag before it uses the rate of a dropout layer within it
    (`self.drop.p if self.training`) is switched on too. Every flag returns afterwards, also after an error.

    Args:
        model: Any module.

    Returns:
        A context manager.

    Examples:
        >>> from torch import nn
        >>> from rdrop.stochastic import randomness_on
        >>> model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)).eval()
        >>> with randomness_on(model):
        ...     [module.training for module in model]
        [False, True]
    """
    on = {module for source in _sources(model, fresh=True) if (module := source.reference()) is not None}
    for module in model.modules():
        layers = {name for name, child in module.named_children() if isinstance(child, _DropoutNd)}
        if any(name == "p" and source in layers for source, name in _reads(type(module))):  # type: ignore[arg-type]
            on.add(module)
    return _training(model, {module for module in on if not isinstance(module, _NormBase)})


def warn_if_no_effect(model: nn.Module) -> bool:
    """Whether a forward draws anything; if not, say why and what to do, once per model and cause."""
    cause, text = _cause(model, _sources(model, fresh=False))
    warned = _warned.setdefault(model, set())
    if cause and cause not in warned:
        cause, text = _cause(model, _sources(model, fresh=True))
    if cause and cause not in warned:
        warned.add(cause)
        message = f"R-Drop has no effect on {type(model).__name__}, because all its passes are equal: {text}"
        warnings.warn(message, NoEffectWarning, stacklevel=3)
    return not cause


def starts_at_zero(model: nn.Module) -> bool:
    """Whether a weight that is trained is all zero, as in new adapters of LoRA and in residual branches.

    What is drawn inside of such a branch reaches the output once the weight has moved, and not before.
    """
    weights = (weight for name, weight in model.named_parameters() if weight.requires_grad and "bias" not in name)
    # Of what is sharded the part of this process: a question to all of them would wait for those that do not ask.
    return any(not getattr(weight, "to_local", lambda weight=weight: weight)().any() for weight in weights)


def _cause(model: nn.Module, sources: list[_Source]) -> tuple[str, str]:
    """Why nothing is drawn, and the remedy; empty if something is."""
    if any(source.active() for source in sources):
        return "", ""
    random = [source.name for source in sources if source.rate() > 0]
    if not sources:
        remedy = "build it with dropout (transformers: hidden_dropout_prob=0.1), or add nn.Dropout layers"
        return "none", f"no stochastic layer was found in it; {remedy}"
    if not random:
        names = _some([source.name for source in sources])
        return "zero", f"every rate is 0 ({names}); call rdrop.set_dropout(model, 0.1)"
    if model.training:
        return (
            "layers",
            f"its stochastic layers ({_some(random)}) are in evaluation mode; call .train() on them",
        )
    return "eval", "it is in evaluation mode, where dropout is off; call model.train() first"


def _some(names: list[str]) -> str:
    """The first few names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
