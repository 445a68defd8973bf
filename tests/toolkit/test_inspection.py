from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rdrop.errors import UserError
from rdrop.stochastic import StochasticLayer
from rdrop.toolkit.inspection import LayerGroup, group_layers, inspect_model
from rdrop.toolkit.model_source import Example


def network(rate: float = 0.1, *, inplace: bool = False) -> nn.Sequential:
    """Dropout late in the network, so that almost everything can be shared by the passes."""
    return nn.Sequential(
        nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 64), nn.Dropout(rate, inplace), nn.Linear(64, 2)
    )


def example(model: nn.Module) -> Example:
    return Example(model, "function", (torch.ones(4, 64),))


def layer(name: str, rate: float = 0.1, *, active: bool = True) -> StochasticLayer:
    return StochasticLayer(name, "dropout", rate, active, None)


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        (["a.0.drop", "a.1.drop", "a.2.drop"], ["a.{0..2}.drop"]),
        (["a.1.drop", "a.4.drop"], ["a.{1,4}.drop"]),
        (["a.0.b.0.drop", "a.0.b.1.drop", "a.3.b.1.drop"], ["a.{0,3}.b.{0..1}.drop"]),
        (["0", "1.drop1", "1.drop2"], ["0", "1.drop1", "1.drop2"]),
        (["b.0.x", "a.0.x", "b.10.x", "b.9.x"], ["b.{0,9,10}.x", "a.0.x"]),
    ],
)
def test_names_that_differ_in_numbers_alone_are_one_group(names: list[str], patterns: list[str]) -> None:
    groups = group_layers([layer(name) for name in names])
    assert [group.pattern for group in groups] == patterns
    assert sum(group.count for group in groups) == len(names)


def test_a_group_keeps_the_span_of_rates_and_how_many_are_active() -> None:
    found = group_layers([layer("b.0.p", 0.0, active=False), layer("b.1.p", 0.05), layer("b.2.p", 0.1)])
    assert found == [LayerGroup("b.{0..2}.p", "dropout", 3, 2, 0.0, 0.1)]


def test_rates_per_pass_are_part_of_the_span() -> None:
    (group,) = group_layers([StochasticLayer("drop", "dropout", 0.3, True, (0.3, 0.5))])
    assert (group.lowest_rate, group.highest_rate) == (0.3, 0.5)


def test_what_was_found_in_a_network() -> None:
    found = inspect_model(example(network()), passes=3)
    assert (found.model, found.parameters) == ("Sequential", sum(p.numel() for p in network().parameters()))
    assert found.layers == [LayerGroup("3", "dropout", 1, 1, 0.1, 0.1)]
    assert (found.passes, found.strategy, found.refusals) == (3, "shared", {})
    assert found.cost["concat"] == found.cost["sequential"] == 3.0
    # Two passes more of the last layer alone; the inputs of the first layer need no gradient.
    assert found.cost["shared"] == pytest.approx(1 + 2 * 3 * 64 * 2 / (64 * 64 * 5 + 3 * 64 * 2))
    assert (found.step_ratio, found.device) == ({}, None)


def test_a_model_in_evaluation_mode_is_looked_at_as_in_training() -> None:
    assert inspect_model(example(network().eval())).layers[0].active == 1


def test_warnings_name_what_spoils_r_drop() -> None:
    (norms,) = inspect_model(example(network())).warnings
    assert norms.startswith("1 BatchNorm layers normalise with the statistics of the batch")
    rate, _ = inspect_model(example(network(0.0))).warnings
    assert "R-Drop has no effect on Sequential" in rate
    (none,) = inspect_model(example(nn.Linear(64, 2)), measure=True).warnings
    assert "R-Drop has no effect on Linear" in none
    assert inspect_model(example(network(inplace=True))).refusals == {}


def test_the_rate_is_set_before_the_look() -> None:
    found = inspect_model(example(network(0.0)), dropout=0.25)
    assert found.layers[0].highest_rate == 0.25
    with pytest.raises(UserError, match=r"--dropout 1\.5: .*0 <= rate < 1"):
        inspect_model(example(network()), dropout=1.5)
    with pytest.raises(UserError, match=r"--dropout 0\.1: Linear has no dropout rate to set"):
        inspect_model(example(nn.Linear(64, 2)), dropout=0.1)


def test_times_are_taken_for_every_strategy_that_can_be_used() -> None:
    ticks: list[tuple[int, int]] = []
    found = inspect_model(example(network()), measure=True, tick=lambda *tick: ticks.append(tick))
    assert found.step_ratio.keys() == {"concat", "sequential", "shared"}
    assert all(ratio > 0 for ratio in found.step_ratio.values())
    assert ticks == [(done, 36) for done in range(1, 37)]
    assert found.device == (str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu")
    assert inspect_model(example(network(inplace=True)), measure=True).step_ratio.keys() == found.step_ratio.keys()


class Nested(nn.Module):
    """Inputs by name, and an answer that is not the first tensor of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, *, batch: dict[str, Tensor]) -> dict[str, object]:
        dropped = torch.dropout(batch["x"], 0.5, self.training)
        return {"ids": batch["x"].argmax(-1), "parts": [self.linear(dropped)]}


def test_inputs_and_outputs_may_be_nested() -> None:
    nested = Example(Nested(), "function", kwargs={"batch": {"x": torch.ones(4, 8)}})
    assert inspect_model(nested, measure=True).step_ratio["concat"] > 0


def test_a_model_that_cannot_be_run_is_answered_with_the_shapes() -> None:
    wrong = Example(network(), "function", (torch.ones(2, 5),), {"extra": torch.ones(1), "flag": True})
    with pytest.raises(UserError, match=r"Sequential cannot be run on \[2, 5\], extra \[1\], flag bool: TypeError"):
        inspect_model(wrong)


def test_a_model_without_a_gradient_has_no_step_to_measure() -> None:
    frozen = network().requires_grad_(False)
    with pytest.raises(UserError, match="returns nothing that depends on its weights"):
        inspect_model(example(frozen), measure=True)
