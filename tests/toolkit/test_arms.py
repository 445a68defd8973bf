from __future__ import annotations

from typing import get_args

import pytest

from rdrop.toolkit.arms import description, nominal_steps, objective
from rdrop.toolkit.recipe import ArmName, RDrop, Recipe


def test_what_the_arms_train_with() -> None:
    recipe = Recipe(rdrop=RDrop(alpha=3.0, passes=4))
    arms = {arm: objective(arm, recipe) for arm in get_args(ArmName)}
    assert {arm: (goal.passes, goal.alpha) for arm, goal in arms.items()} == {
        "plain": (1, 0.0),
        "twice": (4, 0.0),
        "rdrop": (4, 3.0),
        "longer": (1, 0.0),
    }
    assert [arm for arm, goal in arms.items() if goal.equal_compute] == ["longer"]
    assert len({description(arm, recipe) for arm in arms}) == 4


@pytest.mark.parametrize(
    ("train_size", "batch_size", "accumulation", "steps"),
    [(300, 32, 1, 10), (300, 32, 4, 3), (320, 32, 1, 10), (300, 300, 8, 1)],
)
def test_the_last_batch_of_an_epoch_may_be_small(
    train_size: int, batch_size: int, accumulation: int, steps: int
) -> None:
    training = {"batch_size": batch_size, "gradient_accumulation_steps": accumulation, "epochs": 2}
    recipe = Recipe.model_validate({"data": {"train_size": train_size}, "training": training})
    assert nominal_steps(recipe) == 2 * steps
