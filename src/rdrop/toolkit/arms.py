"""The arms of a comparison: what each of them trains with."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rdrop.errors import UserError
from rdrop.toolkit.arm_names import ArmName, economy, variant
from rdrop.toolkit.recipe import Chosen, RDrop, Recipe, Training, conflict

BASELINE: ArmName = "plain"


@dataclass(frozen=True)
class Objective:
    """The part of a run in which the arms differ."""

    passes: int
    alpha: float
    every: int = 1  # of so many steps, one has these passes, and the others have one
    fraction: float = 1.0  # of the examples make more than one pass
    branch_at: str | int | None = None  # below it, the passes have the same masks
    one_sided: bool = False  # passes after the first have no gradients
    budget: float | None = None  # what a step may cost, as a ratio to a plain one; the form is chosen by it
    equal_compute: bool = False  # train for as long as a run of `rdrop` computes
    longer: float = 1.0  # times the steps of `plain`


def recipe_of(arm: ArmName, recipe: Recipe) -> Recipe:
    """The recipe with the settings that were chosen for one arm.

    >>> recipe = Recipe.model_validate({"compare": {"chosen": {"rdrop": {"alpha": 3.0, "dropout": 0.4}}}})
    >>> recipe_of("rdrop", recipe).rdrop.alpha, recipe_of("twice", recipe).rdrop.alpha
    (3.0, 1.0)
    """
    chosen = recipe.compare.chosen.get(arm, Chosen())
    rdrop = economy(arm) or {}
    if chosen.alpha is not None:
        rdrop = {**rdrop, "alpha": chosen.alpha}
    found = conflict(recipe.rdrop.model_copy(update=rdrop))
    if found is not None:
        raise UserError(f"arm {arm}: {found[1]}: {found[0]}")
    model = {} if chosen.dropout is None else {"dropout": chosen.dropout}
    return recipe.model_copy(
        update={"rdrop": recipe.rdrop.model_copy(update=rdrop), "model": recipe.model.model_copy(update=model)}
    )


def objective(arm: ArmName, recipe: Recipe) -> Objective:
    """What an arm trains with; `recipe` is that of the arm.

    >>> goal = objective("every-2", recipe_of("every-2", Recipe()))
    >>> goal.passes, goal.alpha, goal.every
    (2, 1.0, 2)
    """
    found = variant(arm)
    if arm in ("plain", "longer"):
        return Objective(passes=1, alpha=0.0, equal_compute=arm == "longer")
    if found is not None and found.kind == "longer":
        return Objective(passes=1, alpha=0.0, longer=found.number)
    rdrop = recipe.rdrop
    alpha = 0.0 if arm == "twice" else rdrop.alpha
    return Objective(
        rdrop.passes, alpha, rdrop.every, rdrop.fraction, rdrop.branch_at, rdrop.one_sided, budget=rdrop.budget
    )


def description(arm: ArmName, recipe: Recipe) -> str:
    """What an arm does, in one sentence.

    >>> description("plain", Recipe())
    'Plain training: one pass in each step.'
    >>> description("fraction-0.25", Recipe())
    'R-Drop: 2 passes in each step, the further ones for 0.25 of the examples, tied together by the divergence.'
    """
    found = variant(arm)
    if arm == "plain":
        return "Plain training: one pass in each step."
    if arm == "longer":
        return "Plain training with as many more steps as make its compute equal to that of `rdrop`."
    if found is not None and found.kind == "longer":
        return f"Plain training with {found.number:g} times the steps."
    passes = _passes(recipe_of(arm, recipe).rdrop)
    if arm == "twice":
        return f"{passes} and no divergence: what the additional passes do on their own."
    return f"R-Drop: {passes}, tied together by the divergence."


def _passes(rdrop: RDrop) -> str:
    """How many passes are made, and where and how."""
    told = f"{rdrop.passes} passes in " + (
        "each step" if rdrop.every == 1 else f"one of {rdrop.every} steps, one in the others"
    )
    if rdrop.fraction < 1:
        told += f", the further ones for {rdrop.fraction:g} of the examples"
    if rdrop.branch_at is not None:
        where = f"block {rdrop.branch_at}" if isinstance(rdrop.branch_at, int) else rdrop.branch_at
        told += f", with the same masks below {where}"
    if rdrop.budget is not None:
        told += f", as often as {rdrop.budget:g} times the operations of a plain step allow"
    return told + (", the further ones without gradients" if rdrop.one_sided else "")


def notes_on_form(arm: ArmName, form: str, recipe: Recipe) -> list[str]:
    """What a budget has left of an arm's objective, as a sentence; none if all of it.

    >>> notes_on_form("rdrop", "for 0.25 of the examples", Recipe(rdrop=RDrop(budget=1.25)))
    ['Within 1.25 times the operations of a plain step, rdrop makes its further passes for 0.25 of the examples.']
    """
    if not form:
        return []
    budget = f"{recipe.rdrop.budget:g} times the operations of a plain step"
    return [f"Within {budget}, {arm} makes its further passes {form}."]


def nominal_steps(training: Training, batches: int | None) -> int:
    """Optimizer steps of a run, before `longer` is made longer.

    Args:
        training: How a run is trained.
        batches: Micro-batches in one pass over the training split; None if nobody knows, then `training.steps` counts.

    >>> nominal_steps(Training(epochs=60), batches=10)
    600
    """
    if training.steps is not None:
        return training.steps
    assert batches is not None
    return training.epochs * math.ceil(batches / training.gradient_accumulation_steps)
