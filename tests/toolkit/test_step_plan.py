from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from rdrop.errors import UserError
from rdrop.toolkit.arms import Objective
from rdrop.toolkit.recipe import RDrop
from rdrop.toolkit.step_plan import StepPlan, forms, plan_step

WIDTH = 64
BATCH = {"x": torch.ones(4, WIDTH), "labels": torch.zeros(4)}


class Classifier(nn.Module):
    """Four equal layers; dropout before the layer of a given place."""

    def __init__(self, dropout_before: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(WIDTH, WIDTH) for _ in range(4)]
        layers.insert(dropout_before, nn.Dropout(0.5))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.layers(x)}


def planned(dropout_before: int = 0, passes: int = 2, strategy: str = "auto", **goal: float) -> StepPlan:
    model = Classifier(dropout_before)
    rdrop = RDrop.model_validate({"strategy": strategy, "passes": passes})
    return plan_step(model, BATCH, Objective(passes=passes, alpha=3.0, **goal), rdrop)  # type: ignore[arg-type]


def test_without_a_budget_the_objective_stays() -> None:
    plan = planned()
    assert (plan.goal, plan.strategy, plan.form) == (Objective(passes=2, alpha=3.0), "concat", "")
    assert plan.compute == 2.0


@pytest.mark.parametrize("budget", [2.0, 3.0])
def test_what_a_budget_pays_for_stays_whole(budget: float) -> None:
    plan = planned(budget=budget)
    assert (plan.compute, plan.form, plan.goal.fraction, plan.goal.every) == (2.0, "", 1.0, 1)


@pytest.mark.parametrize(("passes", "budget", "fraction"), [(2, 1.25, 0.25), (2, 1.1, 0.1), (3, 1.5, 0.25)])
def test_a_budget_for_a_part_buys_as_large_a_part_as_it_can(passes: int, budget: float, fraction: float) -> None:
    plan = planned(passes=passes, budget=budget)
    assert plan.goal.fraction == pytest.approx(fraction)
    assert (plan.goal.every, plan.goal.alpha) == (1, 3.0)
    assert plan.compute == pytest.approx(budget)
    assert plan.form == f"for {fraction:g} of the examples"


def test_a_cheap_shared_step_now_and_then_goes_before_a_dear_part_of_each() -> None:
    # Backward through the first layer is half, as nothing flows into the inputs; the last layer is 3 of 11 parts.
    plan = planned(dropout_before=3, budget=1.1)
    assert (plan.strategy, plan.goal.every, plan.goal.fraction, plan.goal.alpha) == ("shared", 3, 1.0, 9.0)
    assert plan.compute == pytest.approx(1 + 3 / 11 / 3)
    assert plan.form == "in one of 3 steps, with 3 times the alpha"


def test_shared_passes_are_over_all_examples() -> None:
    plan = planned(strategy="shared", budget=1.5)
    assert (plan.strategy, plan.goal.every, plan.goal.fraction) == ("shared", 2, 1.0)
    assert plan.compute <= 1.5


@pytest.mark.parametrize("cost", [1.05, 1.3, 2.0, 4.0])
@pytest.mark.parametrize("budget", [1.01, 1.1, 1.25, 1.5, 1.9])
def test_no_form_is_dearer_than_its_budget(budget: float, cost: float) -> None:
    part, seldom = forms(Objective(passes=2, alpha=1.0, budget=budget), cost)
    assert 1 + part.fraction <= budget + 1e-9
    assert 1 + (cost - 1) / seldom.every <= budget + 1e-9


@pytest.mark.parametrize(("budget", "every"), [(1.1, 10), (1.2, 5), (1.25, 4), (1.3, 4), (1.5, 2)])
def test_steps_with_several_passes_are_as_frequent_as_the_budget_allows(budget: float, every: int) -> None:
    _, seldom = forms(Objective(passes=2, alpha=1.0, budget=budget), cost=2.0)
    assert (seldom.every, seldom.alpha) == (every, float(every))


def test_one_pass_costs_one_whatever_the_budget() -> None:
    goal = replace(Objective(passes=1, alpha=0.0), budget=1.1)
    assert plan_step(Classifier(0), BATCH, goal, RDrop()) == StepPlan(goal, 1.0, "single")


def test_a_block_that_is_not_there_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match=r"the passes of the arm cannot be made: branch_at is -9, but Classifier has 4"):
        plan_step(Classifier(0), BATCH, Objective(passes=2, alpha=1.0, branch_at=-9), RDrop())
