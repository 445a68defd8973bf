from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rdrop.toolkit import train
from rdrop.toolkit.arm_names import FIXED, ArmName
from rdrop.toolkit.arms import description, objective
from rdrop.toolkit.runs import RunRecord
from rdrop.toolkit.step_plan import plan_step
from rdrop.toolkit.task import Task
from rdrop.toolkit.tasks.digits import DigitsRecipe, DigitsTask, TensorRows
from rdrop.toolkit.train import UNTIMED_STEPS, Watch, build_model, survey


def recipe(**sections: dict[str, Any]) -> DigitsRecipe:
    """A comparison of two epochs of three steps."""
    training = {"epochs": 2, "eval_every_epochs": 1} | sections.pop("training", {})
    return DigitsRecipe.model_validate(
        {"data": {"train_size": 96}, "training": training, "compare": {"samples": 2}} | sections
    )


def train_run(recipe: DigitsRecipe, arm: ArmName, seed: int, advance: Callable[[int], None]) -> RunRecord:
    """A run as a comparison makes it."""
    return train.train_run(recipe, arm, seed, survey(recipe).nominal_steps, advance)


def silent(steps: int) -> None:
    """Progress that nobody watches."""


def lasting(record: RunRecord) -> dict[str, Any]:
    """What must not depend on the clock."""
    return record.model_dump(exclude={"seconds", "step_ms"})


def test_a_run_has_everything_that_the_report_shows() -> None:
    told: list[int] = []
    record = train_run(recipe(), "rdrop", 0, told.append)
    run = record.run
    assert (run.status, run.error, run.optimizer_steps, sum(told)) == ("finished", None, 6, 6)
    assert {metric.name for metric in survey(recipe()).metrics} <= run.metrics.keys()
    assert run.curves.keys() > {"train_loss", "task_loss", "divergence", "eval_accuracy", "eval_nll"}
    assert not run.curves.keys() & {"eval_loss", "eval_runtime"}
    assert all(curve.steps == [3, 6] for curve in run.curves.values())
    assert run.curves["eval_accuracy"].values[-1] == run.metrics["accuracy"]
    assert sum(b.count for b in run.reliability) == 1797 - 96
    for loss, task_loss, divergence in zip(
        *(run.curves[name].values for name in ("train_loss", "task_loss", "divergence")), strict=True
    ):
        assert divergence > 0
        assert loss == pytest.approx(task_loss + divergence, rel=1e-5)


def test_a_run_is_repeated_bit_for_bit_and_seeds_differ() -> None:
    first = train_run(recipe(), "rdrop", 1, silent)
    torch.rand(7)  # a state of the generator that the run must not see
    assert lasting(train_run(recipe(), "rdrop", 1, silent)) == lasting(first)
    assert train_run(recipe(), "rdrop", 2, silent).run.metrics != first.run.metrics


def test_arms_share_weights_and_data_order_and_plain_has_no_divergence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights: dict[str, list[Tensor]] = {}
    order: dict[str, list[list[int]]] = {}
    arm: ArmName = "plain"
    build, read = train.build_model, TensorRows.__getitems__

    def watched_build(task: Task[Any], seed: int) -> torch.nn.Module:
        model = build(task, seed)
        weights[arm] = [weight.detach().clone() for weight in model.parameters()]
        return model

    def watched_read(self: TensorRows, indices: list[int]) -> dict[str, Tensor]:
        if len(self) == 96 and indices != [0, 1, 2, 3]:  # the first four are those that operations are counted on
            order.setdefault(arm, []).append(list(indices))
        return read(self, indices)

    monkeypatch.setattr(train, "build_model", watched_build)
    monkeypatch.setattr(TensorRows, "__getitems__", watched_read)
    records = {}
    for arm in FIXED:
        records[arm] = train_run(recipe(), arm, 0, silent)
    for arm in ("twice", "rdrop", "longer"):
        assert all(map(torch.equal, weights[arm], weights["plain"]))
        assert order[arm][:6] == order["plain"][:6]
    assert order["plain"][:3] != order["plain"][3:6]
    assert len({record.run.metrics["nll"] for record in records.values()}) == 4
    assert "divergence" not in records["plain"].run.curves
    assert "divergence" in records["twice"].run.curves


@pytest.mark.parametrize("strategy", ["auto", "concat"])
def test_longer_computes_as_much_as_rdrop(strategy: str) -> None:
    long = recipe(training={"epochs": 10, "eval_every_epochs": 10}, rdrop={"strategy": strategy})
    rdrop, longer = (train_run(long, arm, 0, silent) for arm in ("rdrop", "longer"))
    assert rdrop.run.optimizer_steps == survey(long).nominal_steps == 30
    assert rdrop.strategy == {"auto": "shared", "concat": "concat"}[strategy]
    assert (longer.strategy, longer.step_compute) == ("single", 1.0)
    assert longer.run.optimizer_steps == round(30 * rdrop.step_compute)
    if strategy == "concat":
        assert rdrop.step_compute == 2.0
    else:
        assert 1.0 < rdrop.step_compute < 1.3


def test_in_every_fourth_step_costs_a_fourth() -> None:
    seldom = recipe(training={"epochs": 10, "eval_every_epochs": 10}, rdrop={"strategy": "concat", "every": 4})
    rdrop, longer = (train_run(seldom, arm, 0, silent) for arm in ("rdrop", "longer"))
    assert rdrop.step_compute == 1.25
    assert longer.run.optimizer_steps == round(1.25 * rdrop.run.optimizer_steps)
    assert "2 passes in one of 4 steps, one in the others" in description("rdrop", seldom)
    watch = Watch(silent, nominal=1, steps=1, every=4)
    watch.times = [9.0] * UNTIMED_STEPS + [5.0, 1.0, 1.0, 1.0] * 3 + [5.0]
    assert watch.step_ms() == 2000.0


@pytest.mark.filterwarnings("ignore::rdrop.errors.NoEffectWarning")  # the consistency gap without dropout
def test_longer_is_as_long_with_a_dropout_rate_of_its_own() -> None:
    chosen = recipe(compare={"samples": 2, "chosen": {"longer": {"dropout": 0.0}}})
    longer = train_run(chosen, "longer", 0, silent)
    assert longer.run.optimizer_steps == round(6 * train_run(chosen, "rdrop", 0, silent).step_compute) == 7


def test_computation_is_counted_by_hand_as_well() -> None:
    small = recipe()
    task = DigitsTask(small)
    batch = task.load(0).train[:8]
    model = build_model(task, 0)
    plan = plan_step(model, batch, objective("rdrop", small), small.rdrop)
    assert all(weight.grad is None for weight in model.parameters())
    # Multiplications of one image, forward: 3x3 convolutions on 8x8, then 1024 x 128 and 128 x 10. Backward
    # is twice that, except that nothing flows into the image. Two passes repeat only what follows the
    # dropout.
    first, second, head = 9 * 1 * 32 * 64, 9 * 32 * 64 * 64, 1024 * 128 + 128 * 10
    expected = (2 * first + 3 * second + 2 * 3 * head) / (2 * first + 3 * second + 3 * head)
    assert plan.strategy == "shared"
    assert plan.compute == pytest.approx(expected, rel=1e-3)


def test_a_run_that_diverges_is_kept_as_failed() -> None:
    told: list[int] = []
    record = train_run(recipe(training={"learning_rate": 1e30}), "plain", 0, told.append)
    assert record.run.status == "failed"
    assert record.run.error is not None
    assert record.run.error.startswith("FloatingPointError: the training loss is nan at step ")
    assert (record.run.metrics, record.run.reliability, sum(told)) == ({}, [], 6)
    assert RunRecord.model_validate_json(record.model_dump_json()) == record


def test_a_run_that_raises_is_kept_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(DigitsTask, "consistency", broken)
    record = train_run(recipe(), "plain", 0, silent)
    assert (record.run.status, record.run.error) == ("failed", "RuntimeError: out of luck")
    assert record.run.optimizer_steps == 6


@pytest.mark.parametrize("schedule", ["warmup", "linear_decay", "cosine_decay", "learning_rate"])
def test_alpha_takes_its_course(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alphas: list[float] = []
    history = train.curves

    def watched(state: Any, goal: Any) -> Any:
        alphas.extend(entry["alpha"] for entry in state.log_history if "alpha" in entry)
        return history(state, goal)

    monkeypatch.setattr(train, "curves", watched)
    courses = recipe(training={"epochs": 4, "lr_scheduler": "linear"}, rdrop={"schedule": schedule, "alpha": 2.0})
    assert train_run(courses, "rdrop", 0, silent).run.status == "finished"
    steps = 12
    decay = [2.0 * (1 - step / steps) for step in range(steps)]
    expected = {
        "warmup": [2.0 * 2 / 3, 2.0, 2.0, 2.0],
        "linear_decay": [sum(decay[first : first + 3]) / 3 for first in range(0, steps, 3)],
        "learning_rate": [sum(decay[first : first + 3]) / 3 for first in range(0, steps, 3)],
    }
    if schedule == "cosine_decay":
        assert alphas == sorted(alphas, reverse=True)
        assert alphas[0] > 1.9
        assert alphas[-1] < 0.2
    else:
        assert alphas == pytest.approx(expected[schedule])
