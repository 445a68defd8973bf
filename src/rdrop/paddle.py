"""R-Drop for PaddlePaddle: the same objective and passes, for training loops and for `paddle.Model.fit`.

The numbers are those of `rdrop.rdrop_loss`, to rounding: one table of cases holds both to them. Nothing here needs
torch.
"""

from __future__ import annotations

import inspect
import math
import warnings
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

import paddle
from paddle import Tensor, nn
from paddle.nn import functional as F
from paddle.utils.layers_utils import flatten, map_structure

from rdrop.errors import NoEffectWarning, ProbabilitiesWarning
from rdrop.options import Divergence, Kind, Objective, Reduction, StopGradient, check_alpha, check_choice
from rdrop.schedule import Schedule
from rdrop.shapes import check_class_ids, check_reduction, check_shapes, wrong_dtype

__all__ = ["RDropLoss", "RDropNetwork", "RDropOutput", "divergence", "forward_passes", "rdrop_loss"]

Strategy = Literal["concat", "sequential"]
IMPOSSIBLE = -1e30  # in place of a logit of -inf, so that no gradient meets an infinity
_FLOATS = (paddle.float16, paddle.bfloat16, paddle.float32, paddle.float64)
_compared: weakref.WeakKeyDictionary[Any, set[bool]] = weakref.WeakKeyDictionary()


class RDropOutput(NamedTuple):
    """The objective and its two terms."""

    loss: Tensor
    task_loss: Tensor
    divergence: Tensor


def rdrop_loss(
    logits: Tensor,
    labels: Tensor | None,
    *,
    alpha: float | Tensor = 1.0,
    kind: Kind = "categorical",
    ignore_index: int | None = -100,
    mask: Tensor | None = None,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
    divergence: Divergence = "symmetric_kl",
    stop_gradient: StopGradient | None = None,
) -> RDropOutput:
    """R-Drop's objective on the logits of M passes over one batch.

        task_loss  = mean_i  -log P_i(y)
        divergence = mean over ordered pairs i != j of KL(P_i || P_j)
        loss       = task_loss + alpha * divergence

    each a mean over the positions that count (Liang et al. 2021, arXiv 2106.14448, eq. 4; `rdrop.rdrop_loss` explains
    every option and the units of alpha). Softmax and sums run in float32, or in float64 for float64 logits, inside
    `paddle.amp.auto_cast` as well. It can be part of a `paddle.jit.to_static` program.

    Args:
        logits: `(M, B, ..., C)`, M >= 1; `(M, B, ...)` for the binary and the regression kind. Classes whose logit is
            -inf are impossible.
        labels: Class ids `(B, ...)`, class probabilities `(B, ..., C)`, or None for unlabelled data.
        alpha: Weight of the divergence, at least 0.
        kind: `categorical`, `binary` or `regression`.
        ignore_index: Positions with this label count in neither term; None: every label counts.
        mask: True at the positions that count, `(B, ...)`.
        class_weight: `(C,)`; for the binary kind one weight for each label.
        label_smoothing: In 0..1; task loss only.
        reduction: `mean` over the positions that count, `sum`, or `none` for `(B, ...)`.
        normalizer: Replaces the number of positions that `mean` divides by.
        divergence: `symmetric_kl`, `kl`, `js` or `mse`.
        stop_gradient: Passes that are constants inside the divergence: none, the `first`, or the `rest`.

    Returns:
        `loss`, `task_loss` and `divergence`.

    Raises:
        ValueError: A shape or an option is out of place, or, on the CPU, a class id.
        TypeError: A tensor has the wrong kind of dtype.

    Warns:
        ProbabilitiesWarning: On the CPU: the logits look like probabilities.

    Examples:
        >>> import paddle
        >>> from rdrop.paddle import rdrop_loss
        >>> logits = paddle.to_tensor([[[2.0, 0.0]], [[0.0, 0.0]]])
        >>> out = rdrop_loss(logits, paddle.to_tensor([0]), alpha=1.0)
        >>> [round(float(term), 4) for term in out]
        [0.7908, 0.41, 0.3808]
    """
    objective = Objective(kind, divergence, stop_gradient, label_smoothing)
    check_reduction(reduction, normalizer)
    if isinstance(alpha, int | float):
        check_alpha(alpha)
    _check(logits, labels, mask, class_weight, kind, ignore_index)
    with paddle.amp.auto_cast(enable=False):  # level O2 would compute all of it in half precision
        z = logits if logits.dtype == paddle.float64 else logits.astype("float32")
        categorical = kind == "categorical"
        counts = paddle.ones(z.shape[1 : z.ndim - categorical], "bool") if mask is None else mask.astype("bool")
        if labels is not None and not (categorical and labels.dtype in _FLOATS):
            if labels.dtype not in _FLOATS:
                labels = labels.astype("int64")  # against an unsigned one -100 would wrap around to a real class
            if ignore_index is not None:
                counts = paddle.logical_and(counts, labels != ignore_index)
        # What stands where nothing counts, be it nan, must not reach a gradient.
        z = paddle.where((counts.unsqueeze(-1) if categorical else counts).expand(z.shape), z, paddle.zeros_like(z))
        task, distance = _rows(z, labels, counts, class_weight, objective)
        zero = paddle.zeros_like(distance)
        task, distance = paddle.where(counts, task, zero), paddle.where(counts, distance, zero)
        if reduction != "none":
            by: Any = counts.astype(z.dtype).sum() if normalizer is None else normalizer
            by = paddle.where(by != 0, by, paddle.ones_like(by)) if paddle.is_tensor(by) else by or 1.0
            by = by if reduction == "mean" else 1.0
            task, distance = task.sum() / by, distance.sum() / by
        return RDropOutput(task + alpha * distance, task, distance)


def divergence(
    logits: Tensor,
    *,
    kind: Kind = "categorical",
    divergence: Divergence = "symmetric_kl",
    stop_gradient: StopGradient | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """The divergence alone, beside a task loss of your own; the arguments are those of `rdrop_loss`.

    Examples:
        >>> import paddle
        >>> round(float(divergence(paddle.to_tensor([[[2.0, 0.0]], [[0.0, 0.0]]]))), 4)
        0.3808
    """
    options: dict[str, Any] = {"divergence": divergence, "stop_gradient": stop_gradient, "normalizer": normalizer}
    return rdrop_loss(logits, None, kind=kind, mask=mask, reduction=reduction, **options).divergence


class RDropLoss(nn.Layer):
    """`rdrop_loss` as a layer, which gives the loss alone; the two terms of the last call are attributes.

    Alpha may follow a schedule, a function of the optimizer step (`rdrop.schedule` has the usual ones): call `step`
    after each optimizer step, as with a learning-rate scheduler. The step is part of `state_dict`.

    Args:
        alpha: A number, or a schedule.
        **options: `kind`, `ignore_index`, `class_weight`, `label_smoothing`, `reduction`, `divergence` and
            `stop_gradient`, as for `rdrop_loss`.

    Attributes:
        task_loss: Of the last call, without gradients.
        divergence: Of the last call, without gradients.

    Raises:
        ValueError: An option is out of range.
        TypeError: There is no such option.

    Examples:
        >>> import paddle
        >>> criterion = RDropLoss(alpha=2.0, label_smoothing=0.1)
        >>> loss = criterion(paddle.zeros([2, 4, 3]), paddle.to_tensor([0, 1, 2, 0]))
        >>> round(float(loss), 4), float(criterion.divergence)
        (1.0986, 0.0)
    """

    def __init__(self, alpha: float | Schedule = 1.0, **options: Any) -> None:
        super().__init__()
        self.alpha, self.options = alpha if callable(alpha) else check_alpha(alpha), options
        inspect.signature(rdrop_loss).bind(None, None, **options)
        Objective(**{name: each for name, each in options.items() if name in Objective.__dataclass_fields__})
        check_reduction(options.get("reduction", "mean"), options.get("normalizer"))
        self.register_buffer("current_step", paddle.zeros([], "int64"))
        self.task_loss = self.divergence = paddle.zeros([])

    @property
    def current_alpha(self) -> float:
        """Alpha at the current step."""
        return self.alpha(int(self.current_step)) if callable(self.alpha) else self.alpha

    def step(self) -> None:
        """Go on to the next optimizer step of the schedule."""
        self.current_step += 1

    def forward(self, logits: Tensor, labels: Tensor | None, **options: Any) -> Tensor:
        """The loss; `options`, such as `mask` and `normalizer`, go before those of the layer."""
        options = {**self.options, **options}
        if "alpha" not in options:
            options["alpha"] = self.current_alpha
        out = rdrop_loss(logits, labels, **options)
        self.task_loss, self.divergence = out.task_loss.detach(), out.divergence.detach()
        return out.loss


def forward_passes(
    model: nn.Layer | Sequence[nn.Layer],
    *args: Any,
    passes: int = 2,
    strategy: Strategy | None = None,
    fraction: float = 1.0,
    one_sided: bool = False,
    **kwargs: Any,
) -> Any:
    """Run a network M times on one batch, with different masks, and put a pass axis before the batch axis.

    What draws no random numbers need not run M times. Where a network can be cut into a trunk without dropout and a
    head with it, `forward_passes(head, trunk(x))` makes M passes for hardly more than the price of one; with dropout in
    the trunk, too, its masks are those of one pass, and the divergence sees those of the head alone.

    `fraction` and `one_sided` make the passes after the first cheaper. Both give unbiased gradients, of a higher
    variance, as `rdrop.passes` says.

    Args:
        model: A network; or a list of M different ones that make one pass each (mutual learning).
        *args: Inputs of the network, also nested. B is the first axis of the first tensor that has one; every tensor
            with B rows belongs to the batch, all else goes to every pass as it is.
        passes: M >= 1.
        strategy: `concat`: one forward of the repeated batch, as in the paper; `sequential`: M forwards, of which the
            first alone moves the statistics of BatchNorm. None: `concat`, or `sequential` where that alone can be.
        fraction: Share of the rows, 0 < fraction <= 1, that make the passes after the first; they are drawn anew in
            each call, one at least. The others have the answer of the first pass in every pass. Divide alpha by it.
        one_sided: The passes after the first have no gradient graph, and gradients through the first count M times.
            They need forwards of their own.
        **kwargs: Inputs of the network.

    Returns:
        What the network returns (tensor, tuple, list, dict), with `(M, B, ...)` for every tensor `(B, ...)`. All else
        is that of the first pass, or of the one forward.

    Raises:
        ValueError: An option is out of range, M contradicts the number of networks, or inputs or output have no batch.

    Warns:
        NoEffectWarning: The passes were equal in the first call with a network, in training or in evaluation mode.

    Examples:
        >>> import paddle
        >>> model = paddle.nn.Sequential(paddle.nn.Linear(8, 8), paddle.nn.Dropout(0.5), paddle.nn.Linear(8, 3))
        >>> tuple(forward_passes(model, paddle.ones([4, 8])).shape)
        (2, 4, 3)
        >>> trunk, head = model[:1], model[1:]
        >>> tuple(forward_passes(head, trunk(paddle.ones([4, 8])), passes=8).shape)
        (8, 4, 3)
    """
    if type(passes) is not int or passes < 1:
        raise ValueError(f"passes is {passes!r}; expected a whole number of at least 1")
    several = isinstance(model, list | tuple | nn.LayerList)
    strategy = _strategy(strategy, fraction, one_sided, several)
    networks: list[Any] = list(model) if several else [model]
    if several and len(networks) != passes:
        raise ValueError(f"passes is {passes}, but there are {len(networks)} networks; pass passes={len(networks)}")
    if len({id(each) for each in networks}) < len(networks):
        raise ValueError("a network is listed twice; to run one network several times, pass it alone with passes=M")
    network, name = networks[0], type(networks[0]).__name__
    given: Any = flatten((args, kwargs))
    rows = next((each.shape[0] for each in given if paddle.is_tensor(each) and each.ndim), None)
    if rows is None:
        raise ValueError("the inputs hold no tensor with a batch axis; expected one with the batch on its first axis")
    again = rows if passes == 1 else _again(rows, fraction)
    chosen = None if again == rows else paddle.randperm(rows)[:again].sort()
    inputs: Any = (args, kwargs)
    if not several and (strategy == "concat" or passes == 1):
        inputs = map_structure(lambda each: _repeat(each, rows, passes, chosen), inputs)
        found: Any = map_structure(lambda each: _unfold(each, rows, passes, chosen), network(*inputs[0], **inputs[1]))
    else:
        answers = [network(*args, **kwargs)]
        kept = [] if several else [(each, each.clone()) for each in _statistics(network)]
        inputs = map_structure(lambda each: _some(each, rows, chosen), inputs)
        with paddle.no_grad() if one_sided else nullcontext():
            answers += [each(*inputs[0], **inputs[1]) for each in (networks * passes)[1:passes]]
        for each, before in kept:
            if paddle.in_dynamic_mode():
                each.set_value(before)  # paddle.assign counts as a change that forbids the backward
            else:
                paddle.assign(before, each)
        found = map_structure(lambda *each: _stack(each, rows, chosen, one_sided), *answers)
    stacked = [each for each in flatten(found) if _has_rows(each, passes) and each.shape[1:2] == [rows]]
    if not stacked:
        raise ValueError(f"{name} returned nothing with the {rows} rows of the batch on its first axis")
    seen = _compared.setdefault(network, set())
    if passes > 1 and not several and network.training not in seen and paddle.in_dynamic_mode():
        seen.add(network.training)
        if bool((stacked[0] == stacked[0][:1]).all()):
            needed = "dropout with a rate above 0 on the way to the output" if network.training else "model.train()"
            text = f"R-Drop has no effect on {name}: its passes gave identical outputs. It needs {needed}."
            warnings.warn(text, NoEffectWarning, stacklevel=2)
    return found


def _has_rows(value: Any, rows: int) -> bool:
    return paddle.is_tensor(value) and list(value.shape[:1]) == [rows]


def _strategy(strategy: Strategy | None, fraction: float, one_sided: bool, several: bool) -> Strategy:
    """How the passes are run; options that contradict each other are refused."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction!r}; expected a share of the rows, 0 < fraction <= 1")
    if several and (fraction < 1 or one_sided):
        raise ValueError("several networks make one whole pass each; fraction and one_sided are for a single one")
    if strategy is None:
        return "sequential" if one_sided else "concat"
    check_choice("strategy", strategy, Strategy)
    if one_sided and strategy == "concat":
        raise ValueError('one_sided needs a forward of its own for each pass, and strategy is "concat"; leave it out')
    return strategy


def _again(rows: int, fraction: float) -> int:
    """Rows of the batch that make more than one pass."""
    return max(1, round(fraction * rows))


def _some(value: Any, rows: int, chosen: Tensor | None) -> Any:
    """The rows that make a further pass, of what belongs to the batch."""
    return value if chosen is None or not _has_rows(value, rows) else value[chosen]


def _repeat(value: Any, rows: int, passes: int, chosen: Tensor | None) -> Any:
    """[x; x] of what belongs to the batch, or [x; some rows of x]."""
    return paddle.concat([value, *[_some(value, rows, chosen)] * (passes - 1)]) if _has_rows(value, rows) else value


def _unfold(value: Any, rows: int, passes: int, chosen: Tensor | None) -> Any:
    """The pass axis of an answer to what `_repeat` gives."""
    again = rows if chosen is None else len(chosen)
    if not _has_rows(value, rows + (passes - 1) * again):
        return value
    if chosen is None:
        return value.reshape([passes, rows, *value.shape[1:]])
    return _stack(value.split([rows, *[again] * (passes - 1)]), rows, chosen, one_sided=False)


def _stack(parts: Sequence[Any], rows: int, chosen: Tensor | None, one_sided: bool) -> Any:
    """The answers of several calls; all but the first were made with some rows, or without a graph."""
    first = parts[0]
    if not _has_rows(first, rows):
        return first
    if chosen is not None:
        parts = [first, *(paddle.scatter(first, chosen, part.astype(first.dtype)) for part in parts[1:])]
    if one_sided:
        parts = [_times(first, len(parts)), *(part.detach() for part in parts[1:])]
    return paddle.stack(parts)


def _times(tensor: Tensor, factor: int) -> Tensor:
    """The same tensor, with a multiple of its gradient."""
    if tensor.stop_gradient:
        return tensor
    # A hook would do, which a static program does not take; and a PyLayer does not survive a second backward.
    nothing = paddle.where(paddle.isfinite(tensor), tensor - tensor.detach(), paddle.zeros_like(tensor))
    return tensor + (factor - 1) * nothing


def _statistics(network: nn.Layer) -> list[Tensor]:
    """Running means and variances, which Paddle keeps among the parameters."""
    layers = network.sublayers(include_self=True)
    found = [getattr(layer, name, None) for layer in layers for name in ("_mean", "_variance")]
    return [each for each in found if each is not None]


class RDropNetwork(nn.Layer):
    """A network for `paddle.Model`, which makes M passes in training and one in evaluation.

    Its output is that of the first pass, as metrics want it; the others are kept for `loss`.

    Args:
        network: Gives logits `(B, ..., C)`. A list of M different ones makes one pass each (mutual learning); in
            evaluation they answer with the logarithm of the mean of their probabilities.
        passes: M.
        strategy: As for `forward_passes`.
        trunk: What makes the inputs of `network` out of those of the whole, and runs once for all passes.
        fraction: As for `forward_passes`; `loss` divides alpha by it.
        one_sided: As for `forward_passes`.

    Raises:
        ValueError: Options are out of range or contradict each other.

    Examples:
        >>> import paddle
        >>> network = RDropNetwork(paddle.nn.Sequential(paddle.nn.Dropout(0.5), paddle.nn.Linear(8, 3)))
        >>> model = paddle.Model(network)
        >>> model.prepare(paddle.optimizer.Adam(parameters=model.parameters()), network.loss(alpha=1.0))
        >>> import numpy as np
        >>> [loss] = model.train_batch([np.ones((4, 8), "float32")], [np.array([0, 1, 2, 0])])
    """

    def __init__(
        self,
        network: nn.Layer | Sequence[nn.Layer],
        passes: int = 2,
        strategy: Strategy | None = None,
        trunk: nn.Layer | None = None,
        fraction: float = 1.0,
        one_sided: bool = False,
    ) -> None:
        super().__init__()
        _strategy(strategy, fraction, one_sided, not isinstance(network, nn.Layer))
        self.network: Any = network if isinstance(network, nn.Layer) else nn.LayerList(network)
        self.trunk, self.fraction = trunk, fraction
        self._how: dict[str, Any] = {
            "passes": passes,
            "strategy": strategy,
            "fraction": fraction,
            "one_sided": one_sided,
        }
        self._answers: list[Tensor] = []
        first = trunk or (network if isinstance(network, nn.Layer) else network[0])

        def forward(*inputs: Any) -> Tensor:
            return self._forward(*inputs)

        # From its arguments paddle.Model.fit knows how many columns of a row are inputs.
        forward.__signature__ = inspect.signature(type(first).forward)  # type: ignore[attr-defined]
        self.forward = forward  # type: ignore[method-assign]

    def _forward(self, *inputs: Any) -> Tensor:
        """The answers of the first pass."""
        found: Any = inputs if self.trunk is None else (self.trunk(*inputs),)
        if self.training:
            self._answers = [forward_passes(self.network, *found, **self._how)]
            return self._answers[0][0]
        self._answers = []
        if not isinstance(self.network, nn.LayerList):
            return self.network(*found)  # type: ignore[no-any-return]
        return paddle.stack([F.softmax(each(*found)) for each in self.network]).mean(0).log()

    def loss(self, alpha: float | Schedule = 1.0, **options: Any) -> nn.Layer:
        """The loss for `paddle.Model.prepare`: the objective in training, the task loss in evaluation.

        The steps of a schedule are the batches in training. Where a fraction of the rows stands for all, alpha is
        divided by their share.
        """
        return _LossOfNetwork(self, RDropLoss(alpha, **options))


class _LossOfNetwork(nn.Layer):
    """The objective of the answers that a network has kept."""

    def __init__(self, network: RDropNetwork, criterion: RDropLoss) -> None:
        super().__init__()
        self.criterion = criterion
        self._network = [network]  # in a list: the loss does not own it

    def forward(self, first: Tensor, labels: Tensor) -> Tensor:
        """The loss; `paddle.vision` has labels of shape (B, 1)."""
        if labels.ndim == first.ndim and labels.shape[-1] == 1 and labels.dtype not in _FLOATS:
            labels = labels.squeeze(-1)
        kept, rows = self._network[0]._answers, first.shape[0]
        alpha = self.criterion.current_alpha * rows / _again(rows, self._network[0].fraction)
        found: Tensor = self.criterion(kept[0] if kept else first.unsqueeze(0), labels, alpha=alpha)
        if kept:
            kept.clear()
            self.criterion.step()
        return found


def _rows(
    z: Tensor, labels: Tensor | None, counts: Tensor, weight: Tensor | None, objective: Objective
) -> tuple[Tensor, Tensor]:
    """Task loss and divergence of each position."""
    if objective.kind == "regression":
        answers = _stopped(z, objective)
        distance = 2 * (answers - answers.mean(0)).square().sum(0) / max(1, z.shape[0] - 1)
        task = paddle.zeros_like(distance) if labels is None else (z - labels.astype(z.dtype)).square().mean(0)
        return task, distance
    if objective.kind == "binary":
        log_p = paddle.stack([F.log_sigmoid(z), F.log_sigmoid(-z)], -1)
        possible = paddle.ones(log_p.shape, "bool")
        yes = None if labels is None else labels.astype(z.dtype)
        target = None if yes is None else paddle.stack([yes, 1 - yes], -1)
    else:
        possible = z > -math.inf
        log_p = _log_softmax(paddle.where(possible, z, paddle.full_like(z, IMPOSSIBLE)))
        target = None if labels is None else _target(labels, z, counts)
    distance = _divergence(log_p, possible, objective)
    if target is None:
        return paddle.zeros_like(distance), distance
    everywhere = possible.all(0)
    if objective.label_smoothing:
        share = objective.label_smoothing / everywhere.astype(z.dtype).sum(-1, keepdim=True).clip(min=1)
        target = (1 - objective.label_smoothing) * target + share * everywhere.astype(z.dtype)
    if weight is not None and objective.kind == "categorical":
        target = target * weight.astype(z.dtype)
    wanted = (target != 0).expand(log_p.shape)
    task = -paddle.where(wanted, target * log_p, paddle.zeros_like(log_p)).sum(-1).mean(0)
    missed = paddle.logical_and(wanted, paddle.logical_not(possible)).any(-1).any(0)
    task = paddle.where(missed, paddle.full_like(task, math.inf), task)
    if weight is not None and objective.kind == "binary":
        task = task * weight.astype(z.dtype)
    return task, distance


def _log_softmax(z: Tensor) -> Tensor:
    """Log-probabilities. Paddle's own (3.3) cuts off what is far below the highest."""
    z = z - z.max(-1, keepdim=True).detach()
    return z - z.exp().sum(-1, keepdim=True).log()


def _target(labels: Tensor, z: Tensor, counts: Tensor) -> Tensor:
    """Probabilities of the classes."""
    if labels.dtype in _FLOATS:
        return labels.astype(z.dtype)
    ids = paddle.where(counts, labels, paddle.zeros_like(labels)).astype("int64")
    return F.one_hot(ids, z.shape[-1]).astype(z.dtype)


def _stopped(answers: Tensor, objective: Objective) -> Tensor:
    """The answers, with the passes that `stop_gradient` names held constant."""
    if objective.stop_gradient is None:
        return answers
    return paddle.stack([each if objective.moves(i) else each.detach() for i, each in enumerate(answers.unbind(0))])


def _divergence(log_p: Tensor, possible: Tensor, objective: Objective) -> Tensor:
    """The divergence of log-probabilities `(M, ..., C)`; the formulas are those of `rdrop.divergences`.

    A class that is impossible in all passes adds nothing. One that is so in some alone makes a Kullback-Leibler
    divergence infinite. Both are decided beside the formula, which sees finite numbers only.
    """
    passes = int(log_p.shape[0])
    if passes == 1:
        return paddle.zeros(log_p.shape[1:-1], log_p.dtype)
    log_p = _stopped(log_p, objective)
    zero = paddle.zeros_like(log_p)
    log_p = paddle.where(possible, log_p, zero)
    p = paddle.where(possible, log_p.exp(), zero)
    if objective.divergence == "mse":
        return (2 * (p - p.mean(0)).square().sum(0) / (passes - 1)).sum(-1)
    if objective.divergence == "js":
        mixed = paddle.where(possible, log_p, paddle.full_like(log_p, IMPOSSIBLE))
        log_mean = paddle.logsumexp(mixed, 0) - math.log(passes)
        return paddle.where(possible, p * (log_p - log_mean), zero).sum(-1).sum(0) / passes
    everywhere = possible.all(0)
    if objective.divergence == "kl":
        terms = p[0] * (log_p[0] - log_p[1:].mean(0))
        infinite = paddle.logical_and(paddle.logical_not(possible[1:].all(0)), p[0] > 0)
    else:
        terms = ((p - p.mean(0)) * (log_p - log_p.mean(0))).sum(0) / (passes - 1)
        infinite = paddle.logical_and(paddle.logical_not(everywhere), (p > 0).any(0))
    terms = paddle.where(everywhere, terms, paddle.zeros_like(terms))
    return paddle.where(infinite, paddle.full_like(terms, math.inf), terms).sum(-1)


def _check(
    z: Tensor, labels: Tensor | None, mask: Tensor | None, weight: Tensor | None, kind: Kind, ignore_index: int | None
) -> None:
    """Refuse dtypes, shapes and class ids that would give a wrong loss."""
    categorical = kind == "categorical"
    if z.dtype not in _FLOATS:
        raise wrong_dtype("logits", z.dtype)
    soft = categorical and labels is not None and labels.dtype in _FLOATS
    shapes = [None if each is None else tuple(each.shape) for each in (labels, mask, weight)]
    check_shapes(kind, tuple(z.shape), *shapes, soft=soft)
    if categorical and labels is not None and labels.dtype == paddle.bool:
        raise wrong_dtype("labels", "bool")
    if mask is not None and mask.dtype in _FLOATS:
        raise wrong_dtype("mask", mask.dtype)
    if not categorical or not paddle.in_dynamic_mode() or paddle.device.get_device() != "cpu":
        return
    if labels is not None and not soft:
        check_class_ids(labels.numpy(), None if mask is None else mask.numpy(), z.shape[-1], ignore_index)
    first = z.detach().flatten(0, -2)[:1].astype("float64")
    if first.size > 1 and float(first.min()) >= 0 and abs(float(first.sum()) - 1) < 1e-5:
        text = "the logits look like probabilities (the first row is non-negative and sums to 1)"
        text += ": rdrop_loss applies the softmax itself, so pass the network's raw scores"
        warnings.warn(text, ProbabilitiesWarning, stacklevel=3)
