from __future__ import annotations

import pytest

from rdrop.errors import UserError
from rdrop.toolkit.arm_names import FIXED
from rdrop.toolkit.arms import description, nominal_steps, objective, recipe_of
from rdrop.toolkit.recipe import RDrop, Recipe, Training


def test_what_the_arms_train_with() -> None:
    recipe = Recipe(rdrop=RDrop(alpha=3.0, passes=4))
    arms = {arm: objective(arm, recipe) for arm in FIXED}
    assert {arm: (goal.passes, goal.alpha) for arm, goal in arms.items()} == {
        "plain": (1, 0.0),
        "twice": (4, 0.0),
        "rdrop": (4, 3.0),
        "longer": (1, 0.0),
    }
    assert [arm for arm, goal in arms.items() if goal.equal_compute] == ["longer"]
    assert len({description(arm, recipe) for arm in arms}) == 4


@pytest.mark.parametrize(
    ("batches", "accumulation", "steps"),
    [(10, 1, 10), (10, 4, 3), (1, 8, 1)],
)
def test_the_last_step_of_an_epoch_may_be_small(batches: int, accumulation: int, steps: int) -> None:
    training = Training(gradient_accumulation_steps=accumulation, epochs=2)
    assert nominal_steps(training, batches) == 2 * steps


def test_a_number_of_steps_goes_before_epochs() -> None:
    assert nominal_steps(Training(steps=7, epochs=2), batches=None) == 7


def test_settings_of_an_arm_change_that_arm_alone() -> None:
    chosen = {"plain": {"dropout": 0.1}, "rdrop": {"alpha": 4.0, "dropout": 0.5}}
    recipe = Recipe.model_validate({"model": {"dropout": 0.3}, "compare": {"chosen": chosen}})
    found = {arm: recipe_of(arm, recipe) for arm in FIXED}
    assert {arm: (of.model.dropout, of.rdrop.alpha) for arm, of in found.items()} == {
        "plain": (0.1, 1.0),
        "twice": (0.3, 1.0),
        "rdrop": (0.5, 4.0),
        "longer": (0.3, 1.0),
    }


def test_an_arm_that_cannot_be_had_with_the_recipe_is_a_users_mistake() -> None:
    recipe = Recipe(rdrop=RDrop(strategy="concat"))
    assert recipe_of("every-2", recipe).rdrop.every == 2
    with pytest.raises(UserError, match=r"^arm one-sided: rdrop.one_sided: got true, and concat for rdrop.strategy"):
        recipe_of("one-sided", recipe)
