"""Is dropout off the same as the average of many dropout models? The paper's claim, made measurable.

Shapes: B rows of a batch, C classes, n positions that count.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rdrop.stochastic import randomness_off, randomness_on, warn_if_no_effect

_IGNORED = -100


@dataclass(frozen=True)
class ConsistencyGap:
    """How far the predictions with dropout off are from the average of many with dropout on.

    Attributes:
        kl: Mean over positions of KL(average || dropout off), in nats; 0 if they agree.
        agreement: Fraction of positions with the same most probable class.
        accuracy_off: Accuracy with dropout off; nan without labels.
        accuracy_averaged: Accuracy of the average; nan without labels.
        nll_off: Mean negative log-likelihood with dropout off, in nats; nan without labels.
        nll_averaged: The same of the average; nan without labels.
        positions: How many positions were counted.
    """

    kl: float
    agreement: float
    accuracy_off: float
    accuracy_averaged: float
    nll_off: float
    nll_averaged: float
    positions: int


def consistency_gap(
    model: nn.Module,
    batches: Iterable[Any],
    samples: int = 16,
    *,
    logits: Callable[[Any], Tensor] | None = None,
) -> ConsistencyGap:
    """Measure how far dropout-off predictions are from the average of dropout-on predictions.

    With p_0 the probabilities with dropout off and p_1..p_S those of S random masks, the gap is the mean over positions
    of

        KL( 1/S sum_s p_s || p_0 ).

    The theory section of the paper bounds the gap between the full model and its sub-models by how much the sub-models
    differ, which is what R-Drop trains: the gap should be smaller after it. Monte Carlo error makes the gap of few
    samples larger than that of many, so compare equal numbers of samples.

    No gradients are recorded; training flags and running statistics stay as they were, and normalisation layers use
    their running statistics throughout. The masks advance torch's global generator, so a seed repeats the result.

    Args:
        model: A classifier of one or of many positions, in any mode.
        batches: Pairs (inputs, labels) or mappings with an optional key `labels`. Inputs: a tensor, a tuple or list of
            positional arguments, or a mapping of keyword arguments. Labels (B, ...) of class ids; -100 does not count;
            or None, then every position counts. `labels` of a mapping reaches the model too if it has such an argument.
        samples: S >= 1, masks that are averaged.
        logits: Picks the logits (B, ..., C) from the model's output. None: the output, its attribute or key `logits`,
            or its first item.

    Returns:
        The gap, over all positions of all batches that count.

    Raises:
        ValueError: `samples` is not positive, labels do not match the logits, or no position counts.
        TypeError: A batch is neither a pair nor a mapping, or no logits can be found in the output.

    Warns:
        NoEffectWarning: Nothing in the model is random, so that there is no gap to measure.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> import rdrop
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))
        >>> gap = rdrop.consistency_gap(model, [(torch.randn(16, 8), torch.zeros(16, dtype=torch.long))])
        >>> gap.positions, 0 < gap.kl < 0.01
        (16, True)
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; expected at least 1")
    with randomness_on(model):
        warn_if_no_effect(model)
    totals, labelled = torch.zeros(7, dtype=torch.float64), True
    with torch.no_grad():
        for batch in batches:
            call, labels = _read(model, batch)
            with randomness_off(model):
                off = _log_probabilities(call(), logits)
            average = torch.zeros_like(off)
            with randomness_on(model):
                for _ in range(samples):
                    average += _log_probabilities(call(), logits).exp_()
            labelled = labelled and labels is not None
            totals += _sums(off, average / samples, labels)
    torch.clear_autocast_cache()  # casts made here have no graph; a training step must not get one
    positions = int(totals[-1])
    if positions == 0:
        raise ValueError("no position counts: there is no batch, or every label is -100")
    kl, agreement, *scores = (totals[:-1] / positions).tolist()
    right_off, right_averaged, nll_off, nll_averaged = scores if labelled else [math.nan] * 4
    return ConsistencyGap(kl, agreement, right_off, right_averaged, nll_off, nll_averaged, positions)


def _read(model: nn.Module, batch: Any) -> tuple[Callable[[], Any], Tensor | None]:
    """A call of the model on a batch, and the labels."""
    if isinstance(batch, Mapping):
        labels = batch.get("labels")
        inner = getattr(model, "module", getattr(model, "_orig_mod", model))
        parameters = inspect.signature(inner.forward).parameters.values()
        takes_labels = any(p.name == "labels" or p.kind is p.VAR_KEYWORD for p in parameters)
        inputs: Any = {k: v for k, v in batch.items() if k != "labels" or takes_labels}
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, labels = batch
    else:
        raise TypeError(f"a batch is a {type(batch).__name__}; expected a pair (inputs, labels) or a mapping")
    if isinstance(inputs, Mapping):
        return functools.partial(model, **inputs), labels
    return functools.partial(model, *(inputs if isinstance(inputs, tuple | list) else (inputs,))), labels


def _log_probabilities(output: Any, pick: Callable[[Any], Tensor] | None) -> Tensor:
    """Log-probabilities (B, ..., C) of an output, in float32 or better."""
    found: Any
    if pick is not None:
        found = pick(output)
    elif isinstance(output, Mapping):
        found = output.get("logits")
    elif hasattr(output, "logits"):
        found = output.logits
    else:
        found = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(found, Tensor):
        raise TypeError(f"no logits in an output of type {type(output).__name__}; pass logits=<function of the output>")
    return torch.log_softmax(found, -1, dtype=torch.promote_types(found.dtype, torch.float32))


def _sums(off: Tensor, average: Tensor, labels: Tensor | None) -> Tensor:
    """Sums over the positions that count: the fields of `ConsistencyGap`, with the count last."""
    if labels is not None and labels.shape != off.shape[:-1]:
        raise ValueError(
            f"labels are {tuple(labels.shape)}, but the logits {tuple(off.shape)} have positions "
            f"{tuple(off.shape[:-1])}; pass class ids of that shape, or pick the logits with `logits`"
        )
    if labels is not None:
        counts = labels != _IGNORED
        off, average, labels = off[counts], average[counts], labels[counts]
    else:
        off, average = off.flatten(0, -2), average.flatten(0, -2)
    # A class that is impossible on both sides adds 0 instead of 0 * -inf.
    terms = torch.where(average > 0, average * (average.log() - off), 0.0)
    guess_off, guess_average = off.argmax(-1), average.argmax(-1)
    sums = [terms.sum(dtype=torch.float64), (guess_off == guess_average).sum()]
    if labels is None:
        sums += [torch.zeros(())] * 4
    else:
        right = labels.unsqueeze(-1)
        sums += [(guess_off == labels).sum(), (guess_average == labels).sum()]
        sums += [-off.gather(-1, right).sum(), -average.gather(-1, right).log().sum()]
    return torch.tensor([*(float(s) for s in sums), off.size(0)], dtype=torch.float64)
