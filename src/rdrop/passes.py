"""Run a model M times on one batch, with different random masks, and nothing else.

Shapes: M passes, B rows of the batch (the first axis of its tensors).

- `concat`: the batch is repeated to [x; x], pass-major, and goes through one forward, as in the paper.
- `sequential`: M forwards.
- `shared`: M forwards in which what does not depend on random numbers is computed once (see `rdrop.replay`).
- `auto`: the cheapest of them that is correct for this model (see `explain_passes`).

Three options make the passes after the first cheaper; their gradients are estimates of that of the full objective:

- `fraction`: only some rows, drawn anew each time, make them; the others repeat their first answer, at divergence 0.
  With alpha / fraction it is unbiased; the variance of the divergence's part grows by 1 / fraction.
- `one_sided`: they have no gradient graph, and the gradient of the first counts M times. Unbiased, because all passes
  are drawn alike; the variance grows, since one pass speaks for all.
- `branch_at`: they have the masks of the first up to a module, so the part below it runs once. Biased: the divergence
  sees only what the masks above do, and the weights below learn only from that.

Random numbers: masks come from torch's global generator of the device that draws them, and from no other. `sequential`
and `shared` draw what M calls in a row would draw, bit for bit, and a single pass what one call would. `concat` draws
each mask once for M * B rows. The same seed gives the same masks within a strategy. What `auto` decides does not depend
on random numbers or time, and its trial runs leave generators and buffers as they were (but they do call the model's
forward hooks).

BatchNorm: tracked statistics move once, as one plain forward of the batch moves them. `concat` pools the rows
of all passes, with the unbiased factor of one batch (a compiled model keeps the pooled one). Under activation
checkpointing a layer moves again when it is recomputed, as it always does.
"""

from __future__ import annotations

import difflib
import warnings
import weakref
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from rdrop.errors import NoEffectWarning
from rdrop.plan import PassPlan, is_compiled, plan_passes, refusals_of
from rdrop.replay import Replay
from rdrop.stochastic import starts_at_zero, warn_if_no_effect
from rdrop.strategies import Request, batch_size, run_concat, run_in_turn, stack, unwrap
from rdrop.structures import leaves, map_leaves

Strategy = Literal["auto", "concat", "sequential", "shared"]

_compared: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def _request(model: Any, passes: int, fraction: float, branch_at: str | nn.Module | None, one_sided: bool) -> Request:
    """What is asked for, checked."""
    if type(passes) is not int or passes < 1:
        raise ValueError(f"passes is {passes!r}; expected a whole number of at least 1")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction!r}; expected a share of the rows, 0 < fraction <= 1")
    if branch_at is None or not isinstance(model, nn.Module):
        return Request(passes, fraction, None if branch_at is None else str(branch_at), one_sided)
    if fraction < 1:
        raise ValueError(
            f"fraction is {fraction!r} and branch_at {branch_at!r}; expected one of the two, since a pass over other "
            "rows cannot share a trunk with the first"
        )
    if isinstance(branch_at, str):
        try:
            model.get_submodule(branch_at)
        except AttributeError:
            near = ", ".join(difflib.get_close_matches(branch_at, dict(model.named_modules()))) or "none"
            raise ValueError(f"branch_at is {branch_at!r}, which is no module of the model; near it: {near}") from None
        return Request(passes, fraction, branch_at, one_sided)
    name = next((name for name, module in model.named_modules() if module is branch_at), None)
    if name is None:
        raise ValueError(f"branch_at is {str(branch_at)!r}, which is no module of the model")
    return Request(passes, fraction, name, one_sided)


def explain_passes(
    model: nn.Module,
    *args: Any,
    passes: int = 2,
    fraction: float = 1.0,
    branch_at: str | nn.Module | None = None,
    one_sided: bool = False,
    **kwargs: Any,
) -> PassPlan:
    """How `forward_passes` with strategy `auto` runs this model on such a batch, at what cost, and why.

    The cost is what torch's FlopCounterMode counts in forward and backward: matrix products, convolutions and
    attention. Nothing is timed: the decision is the same on every run. It is made once for a model, its mode, what is
    asked for, and the set of layers that draw.

    Args:
        model: The model.
        *args: Its inputs, as for `forward_passes`.
        passes: M >= 1.
        fraction: As for `forward_passes`.
        branch_at: As for `forward_passes`.
        one_sided: As for `forward_passes`.
        **kwargs: Its inputs.

    Returns:
        The plan.

    Raises:
        ValueError: An option is out of range, or the inputs have no batch axis.
        RuntimeError: No strategy can be used.

    Examples:
        >>> import torch, rdrop
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.1), nn.Linear(64, 2))
        >>> plan = rdrop.explain_passes(model, torch.ones(4, 64))
        >>> plan.strategy, round(plan.cost["shared"], 2)
        ('shared', 1.04)
    """
    request = _request(model, passes, fraction, branch_at, one_sided)
    if passes == 1:
        return PassPlan("single", "one pass is one plain forward", 1, {"single": 1.0}, {})
    rows = batch_size((args, kwargs), repeated=False)
    return plan_passes(model, map_leaves(unwrap, (args, kwargs)), rows, request)


def forward_passes(
    model: nn.Module | Sequence[nn.Module],
    *args: Any,
    passes: int = 2,
    strategy: Strategy = "auto",
    fraction: float = 1.0,
    branch_at: str | nn.Module | None = None,
    one_sided: bool = False,
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
        fraction: Share of the rows, 0 < fraction <= 1, that make the passes after the first; they are drawn anew in
            each call, one at least. The others have the answer of the first pass in every pass. Divide alpha by it.
        branch_at: A module, or its dotted name, below which all passes have the same masks: what is called before it
            runs once. `rdrop.blocks` names the places where a model can be cut.
        one_sided: The passes after the first have no gradient graph, and gradients through the first count M times.
        **kwargs: Inputs of the model.

    Returns:
        What the model returns (tensor, tuple, list, dict, dataclass), with (M, B, ...) for every tensor (B, ...). A
        scalar, such as a loss, is the mean over the passes; under `concat`, what the model makes of M * B rows. All
        else is that of the first pass, or of the one forward.

    Raises:
        ValueError: An option is out of range or names no module, inputs or output have no batch axis, outputs do not
            match, or M contradicts the number of models.
        TypeError: `model` is no module, or the batch holds a PackedSequence or a nested tensor.
        RuntimeError: The strategy cannot be used for this model; the message says why.

    Warns:
        NoEffectWarning: The passes cannot differ, or do not in the first training step (with a branch that starts at
            zero, as LoRA's adapters do: once it has moved); once per model and cause.

    Examples:
        >>> import torch, rdrop
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1), nn.Linear(8, 3))
        >>> rdrop.forward_passes(model, torch.ones(4, 8)).shape
        torch.Size([2, 4, 3])
    """
    if strategy not in get_args(Strategy):
        raise ValueError(f"strategy is {strategy!r}; expected one of {', '.join(get_args(Strategy))}")
    request = _request(model, passes, fraction, branch_at, one_sided)
    several = isinstance(model, list | tuple | nn.ModuleList)
    models: list[Any] = list(model) if isinstance(model, list | tuple | nn.ModuleList) else [model]
    if not models or not all(isinstance(m, nn.Module) for m in models):
        names = ", ".join(type(m).__name__ for m in models) or "an empty list"
        raise TypeError(f"model is {names}; expected a torch.nn.Module, or a list or tuple of them")
    repeated = passes > 1 and strategy not in ("sequential", "shared") and not several
    rows = batch_size((args, kwargs), repeated=repeated)
    inputs = map_leaves(unwrap, (args, kwargs))
    if several:
        _check_several(models, request, strategy)
    if several or passes == 1:
        return _checked(stack([m(*inputs[0], **inputs[1]) for m in models], rows), rows, passes, models)
    if torch.compiler.is_compiling():
        if strategy not in ("auto", "concat") or any(hasattr(m, "rates_per_pass") for m in models[0].modules()):
            raise RuntimeError("inside a compiled function only concat can be used; compile the model instead")
        output = run_concat(models[0], (args, kwargs), rows, request, compiled=True)
        return _checked(output, rows, passes, models)
    random = warn_if_no_effect(models[0])
    if strategy in ("auto", "shared"):
        plan = plan_passes(models[0], inputs, rows, request)
        chosen, refusals = (plan.strategy if strategy == "auto" else strategy), plan.refusals
    else:
        chosen, refusals = strategy, refusals_of(models[0], request)
    if chosen in refusals:
        others = " or ".join(f'"{name}"' for name in get_args(Strategy)[1:] if name not in refusals)
        name = type(models[0]).__name__
        raise RuntimeError(f'strategy="{chosen}" cannot be used for {name}: {refusals[chosen]}. Use {others}')
    if chosen == "concat":
        output = run_concat(models[0], (args, kwargs), rows, request, compiled=is_compiled(models[0]))
    else:
        replay = Replay(inputs) if chosen == "shared" else None
        output = run_in_turn(models[0], (args, kwargs), rows, request, replay)
    output = _checked(output, rows, passes, models)
    if random and models[0].training and models[0] not in _compared:
        equal = _are_equal(output, rows, passes)
        if not (equal and starts_at_zero(models[0])):
            _compared.add(models[0])
            if equal:
                _warn_of_equal_passes(models[0])
    return output


def _check_several(models: list[nn.Module], request: Request, strategy: str) -> None:
    """Refuse what contradicts one pass for each of several models."""
    passes = request.passes
    if request != Request(passes):
        raise ValueError("several models make one whole pass each; fraction, branch_at, one_sided are for a single one")
    if passes != len(models):
        raise ValueError(f"passes is {passes}, but there are {len(models)} models; pass passes={len(models)}")
    if len(set(models)) < len(models):
        raise ValueError("a model is listed twice; to run one model several times, pass it alone with passes=M")
    if strategy not in ("auto", "sequential"):
        raise ValueError(f'strategy is "{strategy}"; several models run one after the other: expected "auto"')


def _checked(output: Any, rows: int, passes: int, models: Sequence[nn.Module]) -> Any:
    """The output, if there is a pass axis in it."""
    found = leaves(output)
    if any(isinstance(leaf, Tensor) and leaf.shape[:2] == (passes, rows) for leaf in found):
        return output
    kinds = [str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in found]
    raise ValueError(
        f"{type(models[0]).__name__} returned nothing with the {rows} rows of the batch, but "
        f"{', '.join(kinds)}; the batch must be the first axis of inputs and outputs (unpack a "
        "PackedSequence inside the model)"
    )


def _are_equal(output: Any, rows: int, passes: int) -> bool:
    """Whether all passes gave the same answer."""
    carried = [t for t in leaves(output) if isinstance(t, Tensor) and t.shape[:2] == (passes, rows)]
    answers = next((t for t in carried if t.is_floating_point()), None)
    return answers is not None and all(torch.equal(answers[0], other) for other in answers[1:])


def _warn_of_equal_passes(model: nn.Module) -> None:
    """Say that what is random in a model does not reach its output."""
    warnings.warn(
        f"R-Drop has no effect on {type(model).__name__}: its passes gave identical outputs although "
        "layers in it draw. See in rdrop.stochastic_layers(model) whether they lie on the way to the output "
        'and have rates that matter; layers left out for a whole batch need strategy="sequential".',
        NoEffectWarning,
        stacklevel=3,
    )
