"""What R-Drop meets in a model: its randomness, what several passes cost, and what to beware of."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rdrop.errors import RDropWarning, UserError
from rdrop.passes import Strategy, explain_passes, forward_passes
from rdrop.plan import PassPlan
from rdrop.stochastic import StochasticLayer, set_dropout, stochastic_layers, warn_if_no_effect
from rdrop.toolkit.model_source import Example

WARM_UP, ROUNDS = 2, 7
TIMM_RATES = "timm builds models with drop_rate=0; try --dropout 0.1 here, and drop_rate=0.1 in your program."


@dataclass(frozen=True)
class LayerGroup:
    """Stochastic layers whose names differ in numbers alone."""

    pattern: str
    """Their names in one, for example `blocks.{0..11}.drop`."""
    kind: str
    count: int
    active: int
    """How many of them draw in training."""
    lowest_rate: float
    highest_rate: float


@dataclass(frozen=True)
class Inspection:
    """What `rdrop inspect` shows."""

    model: str
    parameters: int
    layers: list[LayerGroup]
    passes: int
    strategy: str
    """The strategy that `auto` chooses."""
    reason: str
    cost: dict[str, float]
    """Operations of a step with each strategy, as a ratio to a step with one pass."""
    refusals: dict[str, str]
    step_ratio: dict[str, float]
    """The same in measured time; empty unless asked for."""
    device: str | None
    """Where the times were taken."""
    warnings: list[str]


def inspect_model(
    example: Example,
    *,
    passes: int = 2,
    dropout: float | None = None,
    measure: bool = False,
    tick: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Look at a model in training mode.

    Args:
        example: The model and a batch for it.
        passes: M >= 2.
        dropout: Dropout rate to set first, 0 <= rate < 1; None leaves the rates.
        measure: Also time forward and backward with every strategy, which takes seconds to minutes.
        tick: Called with the steps timed so far and their number.

    Returns:
        What was found.

    Raises:
        UserError: The model cannot be run on the batch, or has no rate that could be set.

    >>> from rdrop.toolkit.model_source import load_example
    >>> found = inspect_model(load_example("test_vit"), dropout=0.1)
    >>> found.strategy, found.cost["concat"], found.layers[0].pattern
    ('concat', 2.0, 'pos_drop')
    """
    model, args, kwargs = example.model.train(), example.args, example.kwargs or {}
    try:
        if dropout is not None:
            set_dropout(model, dropout)
    except ValueError as error:
        raise UserError(f"--dropout {dropout}: {error}") from error
    device = _device() if measure else None
    # What the library warns about is part of what is shown.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RDropWarning)
        warn_if_no_effect(model)
        try:
            plan = explain_passes(model, *args, passes=passes, **kwargs)
        except Exception as error:  # the model's own code can raise anything
            raise UserError(
                f"{type(model).__name__} cannot be run on {_shapes(args, kwargs)}: {type(error).__name__}: {error}"
            ) from error
        step_ratio = {} if device is None else _step_ratios(example, plan, device, tick)
    told = list(dict.fromkeys(str(warning.message) for warning in caught))
    if told and example.origin == "timm":
        told.append(TIMM_RATES)
    return Inspection(
        model=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=group_layers(stochastic_layers(model)),
        passes=passes,
        strategy=plan.strategy,
        reason=plan.reason,
        cost=dict(plan.cost),
        refusals=dict(plan.refusals),
        step_ratio=step_ratio,
        device=None if device is None else str(device),
        warnings=[*told, *_cautions(model)],
    )


def group_layers(layers: list[StochasticLayer]) -> list[LayerGroup]:
    """Layers whose names differ in numbers alone become one group, in the order of the first of each.

    >>> layers = [StochasticLayer(f"blocks.{i}.drop", "dropout", 0.1, True, None) for i in range(3)]
    >>> [(group.pattern, group.count) for group in group_layers(layers)]
    [('blocks.{0..2}.drop', 3)]
    """
    groups: dict[tuple[str, str], list[StochasticLayer]] = {}
    for layer in layers:
        groups.setdefault((_NUMBER.sub("*", layer.name), layer.kind), []).append(layer)
    return [_group(members) for members in groups.values()]


_NUMBER = re.compile(r"(?<![^.])[0-9]+(?![^.])")  # a whole part of a dotted name


def _group(members: list[StochasticLayer]) -> LayerGroup:
    columns = zip(*([int(number) for number in _NUMBER.findall(layer.name)] for layer in members), strict=True)
    numbers = iter([_span(sorted(set(column))) for column in columns])
    rates = [rate for layer in members for rate in (layer.rates or (layer.rate,))]
    return LayerGroup(
        pattern=_NUMBER.sub(lambda _: next(numbers), members[0].name),
        kind=members[0].kind,
        count=len(members),
        active=sum(layer.active for layer in members),
        lowest_rate=min(rates),
        highest_rate=max(rates),
    )


def _span(numbers: list[int]) -> str:
    """`5`, `{0..11}` or `{1,3,5}`."""
    first, last = numbers[0], numbers[-1]
    if len(numbers) == 1:
        return str(first)
    if numbers == list(range(first, last + 1)):
        return f"{{{first}..{last}}}"
    return "{" + ",".join(map(str, numbers)) + "}"


def _cautions(model: nn.Module) -> list[str]:
    """What to know before using R-Drop on this model, besides the warnings of the library."""
    told = []
    modules = list(model.modules())
    norms = sum(isinstance(module, _BatchNorm) for module in modules)
    if norms:
        told.append(
            f"{norms} BatchNorm layers normalise with the statistics of the batch: concat pools them over "
            "all passes, sequential and shared take those of each pass. Their running statistics move once "
            "per step."
        )
    return told


def _class(module: nn.Module) -> str:
    return type(module).__name__.lower()


def _device() -> torch.device:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def _step_ratios(
    example: Example, plan: PassPlan, device: torch.device, tick: Callable[[int, int], None] | None
) -> dict[str, float]:
    """Median time of forward and backward with every strategy that can be used, to that of one pass.

    The strategies take turns, so that a machine that slows down does so for all of them.
    """
    model, args = example.model.to(device), _moved(example.args, device)
    kwargs = _moved(dict(example.kwargs or {}), device)
    ways: dict[str, tuple[int, Strategy]] = {"plain": (1, "auto")}
    for strategy in ("concat", "sequential", "shared"):
        if strategy in plan.cost:
            ways[strategy] = (plan.passes, strategy)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    total = (WARM_UP + ROUNDS) * len(ways)
    for done in range(total):
        way = list(ways)[done % len(ways)]
        passes, strategy = ways[way]
        start = _now(device)
        output = forward_passes(model, *args, passes=passes, strategy=strategy, **kwargs)
        answers = [tensor for tensor in _tensors(output) if tensor.requires_grad]
        if not answers:
            raise UserError(f"{type(model).__name__} returns nothing that depends on its weights: no step to measure")
        answers[0].float().mean().backward()  # type: ignore[no-untyped-call]
        seconds[way].append(_now(device) - start)
        model.zero_grad()
        if tick is not None:
            tick(done + 1, total)
    plain = median(seconds["plain"][WARM_UP:])
    return {way: median(times[WARM_UP:]) / plain for way, times in seconds.items() if way != "plain"}


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def _moved(value: Any, device: torch.device) -> Any:
    """Inputs on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, device) for item in value)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of a model's output, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def _shapes(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """The inputs in a message."""
    named = [*(("", value) for value in args), *((f"{key} ", value) for key, value in kwargs.items())]
    return ", ".join(
        f"{name}{list(value.shape) if isinstance(value, Tensor) else type(value).__name__}" for name, value in named
    )
