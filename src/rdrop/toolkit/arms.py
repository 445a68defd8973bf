"""The arms of a comparison: what each of them trains with."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rdrop.toolkit.recipe import ArmName, Recipe, Training

BASELINE: ArmName = "plain"


@dataclass(frozen=True)
class Objective:
    """The part of a run in which the arms differ."""

    passes: int
    alpha: float
    every: int = 1  # of so many steps, one has these passes, and the others have one
    equal_compute: bool = False  # train for as long as a run of `rdrop` computes


def recipe_of(arm: ArmName, recipe: Recipe) -> Recipe:
    """The recipe with the settings that were chosen for one arm.

    >>> recipe = Recipe.model_validate({"compare": {"chosen": {"rdrop": {"alpha": 3.0, "dropout": 0.4}}}})
    >>> recipe_of("rdrop", recipe).rdrop.alpha, recipe_of("twice", recipe).rdrop.alpha
    (3.0, 1.0)
    """
    chosen = recipe.compare.chosen.get(arm)
    if chosen is None:
        return recipe
    alpha = {} if chosen.alpha is None else {"rdrop": recipe.rdrop.model_copy(update={"alpha": chosen.alpha})}
    dropout = {} if chosen.dropout is None else {"model": recipe.model.model_copy(update={"dropout": chosen.dropout})}
    return recipe.model_copy(update=alpha | dropout)


def objective(arm: ArmName, recipe: Recipe) -> Objective:
    """What an arm trains with; `recipe` is that of the arm.

    >>> objective("twice", Recipe())
    Objective(passes=2, alpha=0.0, every=1, equal_compute=False)
    """
    match arm:
        case "plain":
            return Objective(passes=1, alpha=0.0)
        case "twice":
            return Objective(passes=recipe.rdrop.passes, alpha=0.0, every=recipe.rdrop.every)
        case "rdrop":
            return Objective(passes=recipe.rdrop.passes, alpha=recipe.rdrop.alpha, every=recipe.rdrop.every)
        case "longer":
            return Objective(passes=1, alpha=0.0, equal_compute=True)


def description(arm: ArmName, recipe: Recipe) -> str:
    """What an arm does, in one sentence.

    >>> description("plain", Recipe())
    'Plain training: one pass in each step.'
    """
    passes, every = recipe.rdrop.passes, recipe.rdrop.every
    where = "each step" if every == 1 else f"one of {every} steps, one in the others"
    match arm:
        case "plain":
            return "Plain training: one pass in each step."
        case "twice":
            return f"{passes} passes in {where} and no divergence: what the additional passes do on their own."
        case "rdrop":
            return f"R-Drop: {passes} passes in {where}, tied together by the divergence."
        case "longer":
            return "Plain training with as many more steps as make its compute equal to that of `rdrop`."


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
