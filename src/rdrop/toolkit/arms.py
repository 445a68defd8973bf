"""The arms of a comparison: what each of them trains with."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rdrop.toolkit.recipe import ArmName, Recipe

BASELINE: ArmName = "plain"


@dataclass(frozen=True)
class Objective:
    """The part of a run in which the arms differ."""

    passes: int
    alpha: float
    equal_compute: bool = False  # train for as long as a run of `rdrop` computes


def objective(arm: ArmName, recipe: Recipe) -> Objective:
    """What an arm trains with.

    >>> objective("twice", Recipe())
    Objective(passes=2, alpha=0.0, equal_compute=False)
    """
    match arm:
        case "plain":
            return Objective(passes=1, alpha=0.0)
        case "twice":
            return Objective(passes=recipe.rdrop.passes, alpha=0.0)
        case "rdrop":
            return Objective(passes=recipe.rdrop.passes, alpha=recipe.rdrop.alpha)
        case "longer":
            return Objective(passes=1, alpha=0.0, equal_compute=True)


def description(arm: ArmName, recipe: Recipe) -> str:
    """What an arm does, in one sentence.

    >>> description("plain", Recipe())
    'Plain training: one pass in each step.'
    """
    passes = recipe.rdrop.passes
    match arm:
        case "plain":
            return "Plain training: one pass in each step."
        case "twice":
            return f"{passes} passes in each step and no divergence: what the additional passes do on their own."
        case "rdrop":
            return f"R-Drop: {passes} passes in each step, tied together by the divergence."
        case "longer":
            return "Plain training with as many more steps as make its compute equal to that of `rdrop`."


def nominal_steps(recipe: Recipe) -> int:
    """Optimizer steps of a run, before `longer` is made longer.

    >>> nominal_steps(Recipe())
    600
    """
    batches = math.ceil(recipe.data.train_size / recipe.training.batch_size)
    return recipe.training.epochs * math.ceil(batches / recipe.training.gradient_accumulation_steps)
