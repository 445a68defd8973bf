"""A function that asks networks is called once for each pass, with the answers of that pass."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rdrop import forward_passes, set_dropout
from rdrop.integrations.answers_of_passes import AnswersOfPasses
from rdrop.integrations.objective_config import RDropConfig

X = torch.arange(24.0).view(6, 4) / 24


class Counting(nn.Sequential):
    """Counts the rows that it is given."""

    def forward(self, input: Tensor) -> Tensor:
        self.rows = [*getattr(self, "rows", []), len(input)]
        found: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
        return found


def network(inputs: int = 4, outputs: int = 4, dropout: float = 0.5) -> Counting:
    torch.manual_seed(0)
    return Counting(nn.Dropout(dropout), nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs))


def passes(rdrop: RDropConfig | None = None, **networks: nn.Module) -> AnswersOfPasses:
    return AnswersOfPasses(networks, rdrop or RDropConfig(strategy="concat"))


def test_one_call_makes_all_passes() -> None:
    model: Any = network()
    same: Any = network()
    torch.manual_seed(1)
    found, (question,) = passes(model=model).run(lambda index: model(X))
    torch.manual_seed(1)
    expected = forward_passes(same, X, strategy="concat")
    assert torch.equal(torch.stack(found), expected)
    assert torch.equal(torch.stack(question.answers), expected)
    assert model.rows == [12]
    assert torch.equal(model[2].running_var, same[2].running_var)


def test_what_the_function_draws_itself_is_the_same_in_each_pass_and_goes_on_afterwards() -> None:
    model = network()
    drawn: list[list[float]] = []

    def function(index: int) -> Tensor:
        before = [torch.rand(()).item(), random.random(), float(np.random.rand())]
        answer: Tensor = model(X * sum(before))
        drawn.append([*before, torch.rand(()).item(), random.random(), float(np.random.rand())])
        return answer

    asking = passes(model=model)
    for _ in range(2):
        asking.run(function)
    assert drawn[0] == drawn[1]
    assert drawn[2] == drawn[3]
    assert not set(drawn[0]) & set(drawn[2])
    assert model.rows == [12, 12]


def test_a_head_on_a_backbone_gets_the_features_of_the_pass_and_masks_of_its_own() -> None:
    backbone, head = network(), network(outputs=3)
    torch.manual_seed(1)
    features = forward_passes(backbone, X, strategy="concat")
    expected, after = torch.stack([head(each) for each in features]), torch.rand(3)
    torch.manual_seed(1)
    found, questions = passes(backbone=backbone, head=head).run(lambda index: head(backbone(X)))
    assert torch.equal(torch.stack(found), expected)
    assert torch.equal(torch.rand(3), after)
    assert [question.name for question in questions] == ["backbone", "head"]
    assert head.rows == [6] * 4


def test_masks_of_a_head_are_not_those_that_the_function_draws_afterwards() -> None:
    backbone, head = network(), nn.Sequential(nn.Dropout(0.5))
    drawn = []

    def function(index: int) -> Tensor:
        answer: Tensor = head(torch.ones(6, 4) + 0 * backbone(X))
        drawn.append((answer.detach() > 0, torch.rand(6, 4) < 0.5))
        return answer

    passes(backbone=backbone, head=head).run(function)
    (first, own), (second, same) = drawn
    assert torch.equal(own, same)
    assert not torch.equal(first, second)
    assert not torch.equal(second, own)


def test_features_without_gradients_are_those_of_the_pass_too() -> None:
    backbone, head = network(), nn.Linear(4, 3)

    def function(index: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            features: Tensor = backbone(X)
        return features, head(features)

    (one, other), _ = passes(backbone=backbone, head=head).run(function)
    assert not torch.equal(one[0], other[0])
    for features, answer in (one, other):
        torch.testing.assert_close(answer, head(features))


def test_running_statistics_move_once_in_a_head() -> None:
    backbone, head = network(), network(dropout=0.0)
    passes(backbone=backbone, head=head).run(lambda index: head(backbone(X)))
    assert head[2].num_batches_tracked == 1


def test_independent_questions_are_put_for_all_passes() -> None:
    model = network()
    passes(model=model).run(lambda index: (model(X), model(X + 1)))
    assert model.rows == [12, 12]


def test_a_network_in_evaluation_mode_answers_once() -> None:
    model, teacher = network(), network().eval()
    (one, other), _ = passes(model=model, teacher=teacher).run(lambda index: (model(X), teacher(X)))
    assert torch.equal(one[1], other[1])
    assert teacher.rows == [6]


def test_each_pass_has_its_own_rate_in_a_head() -> None:
    backbone, head = nn.Linear(4, 4).eval(), nn.Sequential(nn.Dropout(0.5))
    set_dropout(head, (0.0, 0.9))
    (first, second), _ = passes(backbone=backbone, head=head).run(lambda index: head(backbone(X)))
    assert torch.equal(first, backbone(X))
    assert 0 < second.count_nonzero() < X.numel() / 2


def test_what_has_no_pass_axis_is_given_whole() -> None:
    class WithTable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.dropout(x), torch.arange(5)

    model = WithTable()
    (one, _), _ = passes(model=model).run(lambda index: model(X))
    assert torch.equal(one[1], torch.arange(5))


def test_modules_are_as_they_were_also_after_an_error() -> None:
    model = network()
    model.compile(backend="eager")
    before = dict(vars(model))

    def function(index: int) -> Tensor:
        model(X)
        raise KeyError

    with pytest.raises(KeyError):
        passes(model=model).run(function)
    assert vars(model).keys() - {"rows"} == before.keys()
    assert vars(model)["_compiled_call_impl"] is before["_compiled_call_impl"]


@pytest.mark.parametrize("compiled", ["in place", "wrapped"])
def test_compiled_networks_are_compiled_once_and_answer_as_others(compiled: str) -> None:
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    class Network(nn.Module):  # torch 2.8 does not compile the layers of torch itself in place
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.layers(x)
            return found

    plain = Network()
    torch.manual_seed(1)
    expected, _ = passes(model=plain).run(lambda index: plain(X))
    model: Any = Network()
    if compiled == "in place":
        model.compile(backend=backend, fullgraph=True)
    else:
        model = torch.compile(model, backend=backend, fullgraph=True)
    asking = passes(model=model)
    torch.manual_seed(1)
    found, _ = asking.run(lambda index: model(X))
    assert torch.equal(torch.stack(found), torch.stack(expected))
    asking.run(lambda index: model(X))
    assert len(graphs) == 1


def test_inputs_that_are_drawn_out_of_reach_are_refused() -> None:
    model, own = network(), torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="model was given other inputs in pass 2"):
        passes(model=model).run(lambda index: model(torch.rand(6, 4, generator=own)))


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        (lambda model, other, index: model(X) if index else (model(X), model(X)), "pass 2 asked 1 questions"),
        (lambda model, other, index: (model(X), model(X)) if index else model(X), "question 2 of pass 2 is to model"),
        (lambda model, other, index: other(X) if index else model(X), "question 1 of pass 2 is to other"),
    ],
)
def test_other_questions_in_other_passes_are_refused(questions: Callable[..., Any], message: str) -> None:
    model, other = network(), network()
    with pytest.raises(ValueError, match=message):
        passes(model=model, other=other).run(lambda index: questions(model, other, index))


@pytest.mark.parametrize("options", [{"fraction": 0.5}, {"one_sided": True, "strategy": "sequential"}])
def test_cheaper_passes_of_a_head_are_refused(options: Any) -> None:
    backbone, head = network(), network()
    asking = passes(RDropConfig(**options), backbone=backbone, head=head)
    with pytest.raises(ValueError, match="Counting is asked after backbone"):
        asking.run(lambda index: head(backbone(X)))


def test_that_nothing_is_drawn_is_said_once_if_it_holds_of_all_networks() -> None:
    still, other, drawing = network(dropout=0.0), network(dropout=0.0), network()
    asking = passes(still=still, drawing=drawing)
    asking.run(lambda index: drawing(still(X)))
    asking = passes(still=other, head=network(dropout=0.0))
    with pytest.warns(match="R-Drop has no effect on Counting") as said:
        asking.run(lambda index: other(X))
    assert len(said) == 1
    asking.run(lambda index: other(X))
