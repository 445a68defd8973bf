"""Schedules of alpha."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR

from rdrop import schedule


def test_curves() -> None:
    assert [schedule.constant(3.0)(s) for s in (0, 9)] == [3.0, 3.0]
    assert [schedule.linear_warmup(3.0, 3)(s) for s in range(5)] == [0.0, 1.0, 2.0, 3.0, 3.0]
    assert [schedule.linear_decay(3.0, 3)(s) for s in range(5)] == pytest.approx([3.0, 2.0, 1.0, 0.0, 0.0])
    assert [schedule.cosine_decay(3.0, 4)(s) for s in (0, 2, 4, 8)] == pytest.approx([3.0, 1.5, 0.0, 0.0])
    assert [schedule.every(3.0, 2)(s) for s in range(5)] == [3.0, 0.0, 3.0, 0.0, 3.0]


def test_alpha_in_proportion_to_the_learning_rate() -> None:
    """With a scheduler, the peak is the rate that the scheduler started from, also under a warm-up."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    cosine = CosineAnnealingLR(optimizer, T_max=10)
    alpha = schedule.follow_learning_rate(2.0, optimizer)
    assert alpha(0) == 2.0
    for step in range(1, 10):
        optimizer.step()
        cosine.step()
        assert alpha(step) == pytest.approx(1 + math.cos(math.pi * step / 10))
    warm = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    LinearLR(warm, start_factor=0.25)
    assert schedule.follow_learning_rate(2.0, warm)(0) == pytest.approx(0.5)


def test_without_a_scheduler_the_largest_rate_is_the_peak() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    alpha = schedule.follow_learning_rate(2.0, optimizer)
    assert alpha(0) == 2.0
    optimizer.param_groups[0]["lr"] = 0.1
    assert alpha(1) == pytest.approx(0.5)
    optimizer.param_groups[0]["lr"] = 0.0
    assert alpha(2) == 0.0


@pytest.mark.parametrize(
    "build", [schedule.linear_warmup, schedule.linear_decay, schedule.cosine_decay, schedule.every]
)
def test_impossible_lengths_and_alphas_are_refused(build: Callable[[float, int], schedule.Schedule]) -> None:
    with pytest.raises(ValueError, match="is 0; expected a whole number of at least 1"):
        build(1.0, 0)
    with pytest.raises(ValueError, match="alpha is nan"):
        build(math.nan, 3)
