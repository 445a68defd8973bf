"""How alpha changes over training: functions from the optimizer step, counted from 0, to alpha.

The paper keeps alpha fixed; its ResNet needed an alpha that falls with the learning rate (appendix C.4), and one of its
ablations applies the divergence at every k-th step only (section 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, get_args

from rdrop.options import check_alpha

if TYPE_CHECKING:
    from torch.optim import Optimizer

Schedule = Callable[[int], float]
Course = Literal["constant", "warmup", "linear_decay", "cosine_decay", "learning_rate"]


def constant(alpha: float) -> Schedule:
    """Return alpha at every step.

    Examples:
        >>> constant(2.0)(100)
        2.0
    """
    check_alpha(alpha)
    return lambda step: alpha  # noqa: ARG005


def linear_warmup(alpha: float, steps: int) -> Schedule:
    """Rise from 0 to alpha over the first `steps` steps, then stay: alpha * min(1, step / steps).

    Examples:
        >>> [linear_warmup(2.0, steps=4)(step) for step in (0, 1, 4, 9)]
        [0.0, 0.5, 2.0, 2.0]
    """
    check_alpha(alpha)
    _check_steps(steps)
    return lambda step: alpha * min(1.0, step / steps)


def linear_decay(alpha: float, steps: int) -> Schedule:
    """Fall from alpha to 0 over `steps` steps, then stay at 0: alpha * max(0, 1 - step / steps).

    Examples:
        >>> [linear_decay(2.0, steps=4)(step) for step in (0, 1, 4, 9)]
        [2.0, 1.5, 0.0, 0.0]
    """
    check_alpha(alpha)
    _check_steps(steps)
    return lambda step: alpha * max(0.0, 1 - step / steps)


def cosine_decay(alpha: float, steps: int) -> Schedule:
    """Fall from alpha to 0 along half a cosine: alpha / 2 * (1 + cos(pi * min(1, step / steps))).

    Examples:
        >>> [round(cosine_decay(2.0, steps=4)(step), 3) for step in (0, 2, 4, 9)]
        [2.0, 1.0, 0.0, 0.0]
    """
    check_alpha(alpha)
    _check_steps(steps)
    return lambda step: alpha / 2 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def every(alpha: float, k: int) -> Schedule:
    """Return alpha at steps 0, k, 2k, ... and 0 at all others (paper, section 4.3).

    Examples:
        >>> [every(2.0, k=3)(step) for step in range(4)]
        [2.0, 0.0, 0.0, 2.0]
    """
    check_alpha(alpha)
    _check_steps(k, "k")
    return lambda step: alpha if step % k == 0 else 0.0


def follow_learning_rate(alpha: float, optimizer: Optimizer) -> Schedule:
    """Keep alpha in proportion to the learning rate: alpha * lr / peak (paper, appendix C.4).

    `lr` is that of the optimizer's first parameter group when the schedule is asked; `peak` is its `initial_lr`, which
    every scheduler of torch records, or the largest rate seen so far where no scheduler is attached. The step is not
    looked at.

    Examples:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> halved = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
        >>> follow_learning_rate(2.0, optimizer)(0)
        1.0
    """
    check_alpha(alpha)
    largest = 0.0

    def schedule(step: int) -> float:  # noqa: ARG001
        nonlocal largest
        group = optimizer.param_groups[0]
        rate = float(group["lr"])
        largest = max(largest, rate)
        peak = float(group.get("initial_lr", largest))
        return alpha * rate / peak if peak else 0.0

    return schedule


def named(course: Course, alpha: float, steps: int, optimizer: Optimizer | None = None) -> Schedule:
    """The usual courses of alpha over a training, by name.

    Args:
        course: `constant`; `warmup`: linear, over the first tenth; `linear_decay` or `cosine_decay`: to 0 at the end;
            `learning_rate`: in proportion to it.
        alpha: The highest value.
        steps: Optimizer steps of the whole training, at least 1.
        optimizer: Whose learning rate is followed.

    Raises:
        ValueError: A value is out of range, or there is no optimizer to follow.

    Examples:
        >>> [named("warmup", 2.0, steps=40)(step) for step in (0, 2, 4, 40)]
        [0.0, 1.0, 2.0, 2.0]
    """
    match course:
        case "constant":
            return constant(alpha)
        case "warmup":
            return linear_warmup(alpha, max(1, steps // 10))
        case "linear_decay":
            return linear_decay(alpha, steps)
        case "cosine_decay":
            return cosine_decay(alpha, steps)
        case "learning_rate":
            if optimizer is None:
                raise ValueError("the course is learning_rate, but there is no optimizer; pass the one to follow")
            return follow_learning_rate(alpha, optimizer)
    raise ValueError(f"course is {course!r}; expected one of {', '.join(map(repr, get_args(Course)))}")


def _check_steps(steps: int, name: str = "steps") -> None:
    if steps < 1:
        raise ValueError(f"{name} is {steps!r}; expected a whole number of at least 1")
