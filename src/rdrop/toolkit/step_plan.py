"""A training step of an arm on a model: its objective within a budget, what it costs, how its passes are run."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rdrop.block_names import block
from rdrop.errors import UserError
from rdrop.passes import explain_passes, forward_passes
from rdrop.toolkit.arms import Objective
from rdrop.toolkit.images.network_pair import NetworkPair
from rdrop.toolkit.recipe import RDrop


@dataclass(frozen=True)
class StepPlan:
    """What is known of an arm's steps before the first is made."""

    goal: Objective
    compute: float
    """Operations of a step as a ratio to one plain step; in the mean, where steps differ."""
    strategy: str
    """How the passes are run: `single`, `concat`, `shared` or `sequential`."""

    @property
    def form(self) -> str:
        """What a budget has left of the objective, in words; empty if all of it.

        >>> StepPlan(Objective(passes=2, alpha=4.0, every=4, budget=1.25), 1.25, "concat").form
        'in one of 4 steps, with 4 times the alpha'
        """
        if self.goal.budget is None:
            return ""
        if self.goal.every > 1:
            return f"in one of {self.goal.every} steps, with {self.goal.every} times the alpha"
        return f"for {self.goal.fraction:.2g} of the examples" if self.goal.fraction < 1 else ""


def plan_step(model: nn.Module, batch: dict[str, Tensor], goal: Objective, rdrop: RDrop) -> StepPlan:
    """Plan the steps of an arm: counts the operations of its passes, and chooses its form if there is a budget.

    Counted are the matrix products and convolutions of forward and backward on a real batch, which is what
    `torch.utils.flop_counter` knows; the loss and the optimizer's update have none.

    Args:
        model: The network; it stays as it is.
        batch: A few training examples.
        goal: The arm's objective as the recipe has it.
        rdrop: The recipe's section.

    Raises:
        UserError: The passes cannot be made with this model.
    """
    if isinstance(model, NetworkPair) or goal.passes == 1:  # the two passes of a pair are one of each, in every arm
        return StepPlan(goal, 1.0, "single")
    inputs: dict[str, Any] = {name: column for name, column in batch.items() if name != "labels"}
    model = deepcopy(model).train()
    shift: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shift is not None and "decoder_input_ids" not in inputs:
        inputs["decoder_input_ids"] = shift(labels=batch["labels"])
    whole = _counted(model, inputs, goal, rdrop)
    if goal.budget is None or whole.compute <= goal.budget:
        return whole
    cheaper = [form for form in forms(goal, whole.compute) if form.fraction == 1 or rdrop.strategy != "shared"]
    return max((_counted(model, inputs, form, rdrop) for form in cheaper), key=_share)


def forms(goal: Objective, cost: float) -> list[Objective]:
    """The cheaper forms of an objective that keep to its budget, the one that is to be preferred among equals first.

    Both estimate the same gradient without bias, and with a variance that grows as the share of what is kept falls:
    the divergence of some examples in each step, or that of all examples in one of k steps, with k times the alpha.

    Args:
        goal: The objective, with a budget.
        cost: Operations of a step of the whole form, above the budget, as a ratio to a plain step.

    >>> for form in forms(Objective(passes=2, alpha=1.0, budget=1.25), cost=2.0):
    ...     print(form.fraction, form.every, form.alpha)
    0.25 1 1.0
    1.0 4 4.0
    """
    assert goal.budget is not None
    spare = goal.budget - 1
    every = math.ceil((cost - 1) / spare - 1e-9)
    fraction = min(1.0, spare / (goal.passes - 1))  # of rows that share nothing with the first pass
    return [replace(goal, fraction=fraction), replace(goal, every=every, alpha=every * goal.alpha)]


def pass_options(model: nn.Module, goal: Objective) -> dict[str, Any]:
    """What an arm asks of `forward_passes`, beside the number of passes.

    Raises:
        ValueError: The model has not the block at which the passes are to part.
    """
    branch_at = None if goal.branch_at is None else block(model, goal.branch_at)
    return {"fraction": goal.fraction, "branch_at": branch_at, "one_sided": goal.one_sided}


def _share(plan: StepPlan) -> float:
    """The share of the divergence that a form computes."""
    return plan.goal.fraction / plan.goal.every


def _counted(model: nn.Module, inputs: dict[str, Any], goal: Objective, rdrop: RDrop) -> StepPlan:
    """A plan for a form as it is."""
    try:
        # Also where the strategy is given: what planning runs on the model is not to be counted below.
        plan = explain_passes(model, passes=goal.passes, **pass_options(model, goal), **inputs)
        strategy: Any = plan.strategy if rdrop.strategy == "auto" else rdrop.strategy
        # A fraction is that of a full batch, and not of these few examples.
        options = pass_options(model, replace(goal, fraction=1.0))
        tied = _operations(model, inputs, passes=goal.passes, strategy=strategy, **options)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the passes of the arm cannot be made: {error}") from error
    more = tied / _operations(model, inputs) - 1
    return StepPlan(goal, 1 + more * goal.fraction / goal.every, strategy)


def _operations(model: nn.Module, inputs: dict[str, Any], *, passes: int = 1, **options: Any) -> int:
    """Floating-point operations of one forward and backward."""
    with FlopCounterMode(display=False) as counter:
        forward_passes(model, passes=passes, **options, **inputs)["logits"].sum().backward()
    return int(counter.get_total_flops())
