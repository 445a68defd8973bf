"""Cheaper passes: what they compute, what they cost, and that those said to be unbiased are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import rdrop
from rdrop import explain_passes, forward_passes, rdrop_loss
from rdrop.passes import Strategy


class Masked(nn.Module):
    """Multiplies by masks that a test chooses, in the order of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop, self.head = nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)
        self.masks: Iterator[Tensor] = iter(())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.linear(x) * next(self.masks))
        return out


def gradients(model: nn.Module, loss: Tensor) -> Tensor:
    model.zero_grad()
    torch.autograd.backward(loss)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def deep() -> nn.Sequential:
    block = [nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*block, *[nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.5)], nn.Linear(6, 3))


# One-sided: the passes after the first have no graph.


@pytest.mark.parametrize("passes", [2, 3])
@pytest.mark.parametrize("divergence", ["symmetric_kl", "js"])
def test_the_one_sided_gradient_is_unbiased(passes: int, divergence: Any) -> None:
    """Over all orders of the same masks its mean is the full gradient, exactly; every order is equally likely."""
    torch.manual_seed(0)
    model, x, labels = Masked().double(), torch.randn(7, 4, dtype=torch.float64), torch.randint(3, (7,))
    masks = [(torch.rand(7, 5, dtype=torch.float64) > 0.5).double() * 2 for _ in range(passes)]
    found = []
    for order in itertools.permutations(range(passes)):
        # The first pass comes last, after those without a graph.
        model.masks = iter([masks[i] for i in order[::-1]])
        out = forward_passes(model, x, passes=passes, strategy="sequential", one_sided=True)
        found.append(gradients(model, rdrop_loss(out, labels, alpha=3.0, divergence=divergence).loss))
    model.masks = iter(masks)
    out = forward_passes(model, x, passes=passes, strategy="sequential")
    full = gradients(model, rdrop_loss(out, labels, alpha=3.0, divergence=divergence).loss)
    torch.testing.assert_close(torch.stack(found).mean(0), full, rtol=1e-10, atol=1e-12)
    assert (found[0] - full).norm() > 0.01 * full.norm()


@pytest.mark.parametrize("strategy", ["auto", "sequential", "shared"])
def test_one_sided_passes_answer_like_the_others_and_keep_no_graph(strategy: Strategy) -> None:
    torch.manual_seed(0)
    model, x = deep(), torch.randn(5, 6)
    out = forward_passes(model, x, passes=3, strategy=strategy, one_sided=True)
    assert out.shape == (3, 5, 3)
    model.zero_grad()
    torch.autograd.backward(out[1:].sum(), retain_graph=True)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    torch.autograd.backward(out[0].sum())
    head: Any = model[-1]
    assert head.bias.grad.tolist() == [15.0] * 3  # five rows, three times
    with torch.no_grad():
        assert not forward_passes(model, x, strategy=strategy, one_sided=True).requires_grad


def test_one_sided_needs_a_forward_of_its_own_and_costs_a_third_more() -> None:
    model, x = deep(), torch.randn(5, 6, requires_grad=True)
    plan = explain_passes(model, x, one_sided=True)
    assert plan.cost["sequential"] == pytest.approx(4 / 3)
    assert plan.cost["shared"] == pytest.approx((90 + 54 + 2 * 90) / (3 * 90))  # the first layer is not run again
    assert "forward of its own" in plan.refusals["concat"]
    with pytest.raises(
        RuntimeError, match=r'"concat" cannot be used .* forward of its own.*Use "sequential" or "shared"'
    ):
        forward_passes(model, x, strategy="concat", one_sided=True)


# A fraction of the rows.


@pytest.mark.parametrize("strategy", ["concat", "sequential"])
@pytest.mark.shows("torch", "cheaper")
def test_the_gradient_of_a_fraction_is_unbiased(strategy: Strategy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all choices of rows, the mean of the divergence's part is that of the full gradient."""
    torch.manual_seed(0)
    model, x, labels = Masked().double(), torch.randn(4, 4, dtype=torch.float64), torch.randint(3, (4,))
    first, second = ((torch.rand(4, 5, dtype=torch.float64) > 0.5).double() * 2 for _ in range(2))
    found, task = [], []
    for rows in itertools.combinations(range(4), 2):
        order = torch.tensor([*rows, *(i for i in range(4) if i not in rows)])
        monkeypatch.setattr(torch, "randperm", lambda *_, order=order, **__: order)
        again = second[list(rows)]
        model.masks = iter([torch.cat([first, again])] if strategy == "concat" else [first, again])
        out = forward_passes(model, x, strategy=strategy, fraction=0.5)
        found.append(gradients(model, rdrop_loss(out, labels, alpha=2.0).loss))
        model.masks = iter([torch.cat([first, again])] if strategy == "concat" else [first, again])
        out = forward_passes(model, x, strategy=strategy, fraction=0.5)
        task.append(gradients(model, rdrop_loss(out, labels, alpha=0.0).loss))
    model.masks = iter([first, second])
    out = forward_passes(model, x, strategy="sequential")
    whole = gradients(model, rdrop_loss(out, labels, alpha=1.0).loss)
    model.masks = iter([first, second])
    out = forward_passes(model, x, strategy="sequential")
    without = gradients(model, rdrop_loss(out, labels, alpha=0.0).loss)
    mean = torch.stack([a - b for a, b in zip(found, task, strict=True)]).mean(0)
    torch.testing.assert_close(mean, whole - without, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("strategy", ["auto", "concat", "sequential"])
def test_only_some_rows_make_further_passes(strategy: Strategy) -> None:
    torch.manual_seed(0)
    model, x, calls = deep(), torch.randn(8, 6), []
    model[0].register_forward_hook(lambda *hooked: calls.append(len(hooked[2])))
    counts = torch.zeros(8)
    for _ in range(200):
        out = forward_passes(model, x, passes=3, strategy=strategy, fraction=0.25)
        differ = (out[1:] != out[0]).flatten(2).any(2).any(0)
        assert differ.sum() <= 2
        counts += differ
    assert counts.min() > 20  # every row has its turn
    assert sum(calls) == 200 * (8 + 2 * 2)


def test_the_rows_of_a_fraction_are_those_of_the_seed() -> None:
    model, x = deep(), torch.randn(8, 6)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(forward_passes(model, x, fraction=0.4))
    assert torch.equal(*found)


def test_a_fraction_of_structures_and_of_one_row() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: dict[str, Tensor], table: Tensor) -> dict[str, Tensor]:
            return {"a": self.drop(x["a"]) @ table, "ids": x["ids"], "mean": x["a"].mean()}

    x = {"a": torch.ones(3, 30), "ids": torch.arange(3)}
    for strategy in ("concat", "sequential"):
        out = forward_passes(Pair(), x, rdrop.NotBatched(torch.eye(30)), fraction=0.01, strategy=strategy)
        assert out["a"].shape == (2, 3, 30)
        assert torch.equal(out["ids"], torch.arange(3).expand(2, 3))
        assert out["mean"].dim() == 0


@pytest.mark.parametrize("strategy", ["concat", "sequential"])
def test_statistics_move_once_with_a_fraction(strategy: Strategy) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6)
    forward_passes(nn.Sequential(norm, nn.Dropout(0.5)), torch.randn(64, 6), passes=3, strategy=strategy, fraction=0.25)
    assert norm.num_batches_tracked == 1
    torch.testing.assert_close(norm.running_var, torch.ones(6), atol=0.05, rtol=0)


def test_a_fraction_and_one_side_may_be_combined() -> None:
    torch.manual_seed(0)
    model, x, labels = Masked().double(), torch.randn(4, 4, dtype=torch.float64), torch.randint(3, (4,))
    mask = (torch.rand(4, 5, dtype=torch.float64) > 0.5).double() * 2
    # With the same masks nothing diverges, and the gradient is that of one plain pass.
    model.masks = iter([mask[:1] * 0 + 1, mask * 0 + 1])
    out = forward_passes(model, x, fraction=0.25, one_sided=True)
    found = gradients(model, rdrop_loss(out, labels, alpha=5.0).loss)
    model.masks = iter([mask * 0 + 1])
    plain = gradients(model, nn.functional.cross_entropy(model(x), labels))
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-12)


# Passes that part at a block.


def test_below_the_branch_the_passes_have_the_same_masks() -> None:
    torch.manual_seed(0)
    model, x, lower, upper = deep(), torch.randn(50, 6), [], []
    model[2].register_forward_hook(lambda *hooked: lower.append(hooked[2]))
    model[5].register_forward_hook(lambda *hooked: upper.append(hooked[2]))
    out = forward_passes(model, x, passes=3, branch_at="3")
    assert lower[-1] is lower[-2] is lower[-3]
    assert not any(torch.equal(upper[-1], upper[i]) for i in (-2, -3))
    assert not torch.equal(out[0], out[1])
    lower.clear()
    forward_passes(model, x, passes=3, branch_at=model[3])
    assert len({id(output) for output in lower}) == 1
    masks = [lower[0] != 0]
    forward_passes(model, x, passes=3, branch_at="3")
    assert not torch.equal(masks[0], lower[-1] != 0)  # but new ones in each call


def test_what_a_branch_costs_is_counted() -> None:
    model, x = deep(), torch.randn(50, 6, requires_grad=True)
    plan = explain_passes(model, x, branch_at="3")
    assert plan.strategy == "shared"
    assert plan.cost == {"shared": pytest.approx((36 + 36 + 2 * 18) / (36 + 36 + 18))}
    assert set(plan.refusals) == {"concat", "sequential"}


def test_a_branch_that_cannot_be_is_named() -> None:
    model, x = deep(), torch.randn(5, 6)
    with pytest.raises(ValueError, match="branch_at is 'sixth', which is no module of the model"):
        forward_passes(model, x, branch_at="sixth")
    with pytest.raises(ValueError, match=r"branch_at is 'Linear\(.*which is no module"):
        forward_passes(model, x, branch_at=nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"fraction is 0\.5 and branch_at '3'; expected one of the two"):
        forward_passes(model, x, branch_at="3", fraction=0.5)
    with pytest.raises(RuntimeError, match=r'"concat" cannot be used .*same masks below 3.*Use "shared"'):
        forward_passes(model, x, branch_at="3", strategy="concat")

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.drop = nn.Linear(6, 3), nn.Linear(6, 3), nn.Dropout()

        def forward(self, y: Tensor) -> Tensor:
            out: Tensor = self.drop(self.used(y))
            return out

    with pytest.raises(RuntimeError, match="branch_at is 'unused', a module that Unused did not call"):
        forward_passes(Unused(), x, branch_at="unused")


def test_blocks_are_named_by_their_place() -> None:
    import timm

    assert rdrop.blocks(nn.Linear(2, 2)) == []
    assert rdrop.blocks(deep()) == ["0", "3", "6"]
    assert rdrop.blocks(timm.create_model("resnet10t"))[-2:] == ["layer3.0", "layer4.0"]
    assert rdrop.blocks(timm.create_model("vit_tiny_patch16_224", depth=3)) == ["blocks.0", "blocks.1", "blocks.2"]


# What cannot be.


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5, float("nan")])
def test_a_fraction_is_a_share(fraction: float) -> None:
    with pytest.raises(ValueError, match="expected a share of the rows, 0 < fraction <= 1"):
        forward_passes(deep(), torch.randn(5, 6), fraction=fraction)


def test_several_models_make_whole_passes() -> None:
    with pytest.raises(ValueError, match="several models make one whole pass each"):
        forward_passes([deep(), deep()], torch.randn(5, 6), one_sided=True)
    with pytest.raises(ValueError, match="several models make one whole pass each"):
        forward_passes([deep(), deep()], torch.randn(5, 6), branch_at="3")


@pytest.mark.usefixtures("process_group")
def test_distributed_models_take_what_has_one_backward_for_one_forward() -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3)))
    x = torch.randn(5, 6)
    for options in ({"fraction": 0.5}, {"one_sided": True}):
        loss = forward_passes(model, x, **options).square().mean()
        assert gradients(model, loss).abs().sum() > 0
    assert "DistributedDataParallel" in explain_passes(model, x, one_sided=True).refusals["shared"]
    with pytest.raises(RuntimeError, match=r"cannot be run: concat: .*shared: DistributedDataParallel"):
        forward_passes(model, x, branch_at="module.3")
