"""The passes and the networks of PaddlePaddle; the numbers of the objective are held by the contract suite."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.nn import functional as F

import paddle_on_two_ranks
import rdrop.paddle
from rdrop import NoEffectWarning, schedule
from rdrop.errors import ProbabilitiesWarning
from rdrop.paddle import RDropLoss, RDropNetwork, divergence, forward_passes, rdrop_loss

B, C = 6, 3
WRONG: Any = "shared"
FRACTION: Any = 2.0
X = np.random.default_rng(0).normal(size=(B, 8)).astype("float32")
Y = np.array([0, 2, 1, 1, 0, 2])


# Of Paddle's own full_like in a static program, and of what it looks at in all modules: torch 2.8 has deprecated names.
compiled = pytest.mark.filterwarnings(
    "ignore:Tensor do not have 'place' interface:UserWarning", "ignore:.*reduce_op. is deprecated:FutureWarning"
)


def network(dropout: float = 0.5) -> nn.Sequential:
    paddle.seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1D(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, C))


def logits(passes: int = 2) -> Any:
    return paddle.to_tensor(np.random.default_rng(1).normal(size=(passes, B, C)).astype("float32"), stop_gradient=False)


def gradients(model: Any) -> list[Any]:
    return [weight.grad.numpy() for weight in model.parameters() if not weight.stop_gradient]


def test_concat_is_one_forward_of_the_doubled_batch() -> None:
    model, x = network(), paddle.to_tensor(X)
    paddle.seed(7)
    found = forward_passes(model, x, passes=3)
    paddle.seed(7)
    expected = model(paddle.concat([x, x, x])).reshape([3, B, C])
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-6)
    assert not (found[0] == found[1]).all()


def test_sequential_is_calls_in_turn() -> None:
    model, x = network(), paddle.to_tensor(X)
    paddle.seed(7)
    found = forward_passes(model, x, strategy="sequential")
    paddle.seed(7)
    np.testing.assert_allclose(found.numpy(), paddle.stack([model(x), model(x)]).numpy(), rtol=1e-6)


@pytest.mark.parametrize("strategy", ["concat", "sequential"])
@pytest.mark.shows("PaddlePaddle", "BatchNorm")
def test_statistics_move_as_in_one_plain_forward(strategy: Any) -> None:
    model, plain, x = network(), network(), paddle.to_tensor(X)
    before = plain[1]._mean.numpy().copy()
    plain(x)
    rdrop_loss(forward_passes(model, x, passes=3, strategy=strategy), paddle.to_tensor(Y)).loss.backward()
    assert all(np.abs(each).sum() > 0 for each in gradients(model)[-2:])
    assert not np.allclose(plain[1]._mean.numpy(), before)
    for ours, theirs in ((model[1]._mean, plain[1]._mean), (model[1]._variance, plain[1]._variance)):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.shows("PaddlePaddle", "pair")
def test_two_different_networks_learn_from_each_other() -> None:
    pair = [network(), nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, C))]
    logits = forward_passes(pair, paddle.to_tensor(X))
    divergence(logits).backward()
    assert all(np.abs(each).sum() > 0 for model in pair for each in gradients(model)[::2])
    with pytest.raises(ValueError, match="passes is 2, but there are 3 networks"):
        forward_passes([*pair, network()], paddle.to_tensor(X))
    with pytest.raises(ValueError, match="a network is listed twice"):
        forward_passes([pair[0], pair[0]], paddle.to_tensor(X))


@pytest.mark.shows("PaddlePaddle", "cheaper")
def test_a_trunk_without_dropout_runs_once() -> None:
    """The passes of a head over one trunk are those of the whole, with the same masks, values and gradients."""
    model: Any = network()
    x, y = paddle.to_tensor(X), paddle.to_tensor(Y)
    trunk, head = model[:3], model[3:]
    rows: list[int] = []
    trunk[0].register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[0]))
    paddle.seed(7)
    whole = forward_passes(model, x, passes=3)
    rdrop_loss(whole, y, alpha=2.0).loss.backward()
    expected = gradients(model)
    model.clear_gradients()
    paddle.seed(7)
    found = forward_passes(head, trunk(x), passes=3)
    rdrop_loss(found, y, alpha=2.0).loss.backward()
    assert rows == [3 * B, B]
    np.testing.assert_allclose(found.numpy(), whole.numpy(), rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients(model), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


class Masked(nn.Layer):
    """Draws the masks that are laid out for it."""

    def __init__(self) -> None:
        super().__init__()
        paddle.seed(0)
        self.first, self.last = nn.Linear(8, 5), nn.Linear(5, C)
        self.masks: Any = iter([])

    def forward(self, x: Any) -> Any:
        return self.last(F.relu(self.first(x)) * next(self.masks))


def gradient_of(model: Any, loss: Any) -> Any:
    """Of all weights, as one vector."""
    model.clear_gradients()
    loss.backward()
    return np.concatenate([each.flatten() for each in gradients(model)])


@pytest.mark.parametrize("strategy", ["concat", "sequential"])
@pytest.mark.shows("PaddlePaddle", "cheaper")
def test_the_gradient_of_a_fraction_is_unbiased(strategy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all choices of rows, the mean of the gradient is the full one, where alpha is divided by the fraction."""
    model, x, y = Masked(), paddle.to_tensor(X[:4]), paddle.to_tensor(Y[:4])
    first, second = (paddle.to_tensor(mask * 2) for mask in np.random.default_rng(2).random((2, 4, 5)) > 0.5)
    first, second = first.astype("float32"), second.astype("float32")

    def out(*masks: Any, **how: Any) -> Any:
        model.masks = iter(masks)
        return forward_passes(model, x, **how)

    found, task = [], []
    for rows in itertools.combinations(range(4), 2):
        order = paddle.to_tensor([*rows, *(i for i in range(4) if i not in rows)])
        monkeypatch.setattr(paddle, "randperm", lambda _, order=order: order)
        again = second[list(rows)]
        masks = [paddle.concat([first, again])] if strategy == "concat" else [first, again]
        logits = out(*masks, strategy=strategy, fraction=0.5)
        others = [i for i in range(4) if i not in rows]
        assert (logits[1] == logits[0]).all(-1).numpy().nonzero()[0].tolist() == others
        found.append(gradient_of(model, rdrop_loss(logits, y, alpha=2.0).loss))
        logits = out(*masks, strategy=strategy, fraction=0.5)
        task.append(gradient_of(model, rdrop_loss(logits, y, alpha=0.0).loss))
    whole = gradient_of(model, rdrop_loss(out(first, second, strategy="sequential"), y, alpha=1.0).loss)
    without = gradient_of(model, rdrop_loss(out(first, second, strategy="sequential"), y, alpha=0.0).loss)
    np.testing.assert_allclose(np.mean(found, 0) - np.mean(task, 0), whole - without, rtol=1e-3, atol=1e-6)
    assert np.abs(found[0] - task[0] - whole + without).max() > 1e-3


@pytest.mark.parametrize("passes", [2, 3])
def test_the_one_sided_gradient_is_unbiased(passes: int) -> None:
    """Over all orders of the same masks its mean is the full gradient."""
    model, x, y = Masked(), paddle.to_tensor(X), paddle.to_tensor(Y)
    masks = [
        paddle.to_tensor(mask * 2).astype("float32") for mask in np.random.default_rng(2).random((passes, B, 5)) > 0.5
    ]
    found = []
    for order in itertools.permutations(masks):
        model.masks = iter(order)
        logits = forward_passes(model, x, passes=passes, one_sided=True)
        found.append(gradient_of(model, rdrop_loss(logits, y, alpha=3.0).loss))
    model.masks = iter(masks)
    logits = forward_passes(model, x, passes=passes, strategy="sequential")
    full = gradient_of(model, rdrop_loss(logits, y, alpha=3.0).loss)
    np.testing.assert_allclose(np.mean(found, 0), full, rtol=1e-3, atol=1e-6)
    assert np.linalg.norm(found[0] - full) > 0.01 * np.linalg.norm(full)


def test_passes_that_are_one_sided_keep_no_graph() -> None:
    model, x = network(), paddle.to_tensor(X)
    found = forward_passes(model, x, passes=3, fraction=0.5, one_sided=True)
    assert tuple(found.shape) == (3, B, C)
    assert [(found[i] == found[0]).all(-1).sum().item() for i in (1, 2)] == [B // 2] * 2
    found[1:].sum().backward(retain_graph=True)
    assert all(each is None or not each.numpy().any() for each in (weight.grad for weight in model.parameters()))
    found[0].sum().backward()
    assert model[-1].bias.grad.tolist() == [3.0 * B] * C
    with paddle.no_grad():
        assert forward_passes(model, x, one_sided=True).stop_gradient


@pytest.mark.parametrize("strategy", ["concat", "sequential"])
def test_statistics_move_once_with_a_fraction(strategy: Any) -> None:
    model, x = network(), paddle.to_tensor(X)
    plain = network()
    plain(x)
    forward_passes(model, x, strategy=strategy, fraction=0.5)
    if strategy == "sequential":  # in a batch of more rows they are those of more rows
        np.testing.assert_allclose(model[1]._mean.numpy(), plain[1]._mean.numpy(), rtol=1e-5, atol=1e-6)
    rows: list[int] = []
    first: Any = model[0]
    first.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[0]))
    forward_passes(model, x, strategy=strategy, passes=3, fraction=0.01)
    assert rows == ([B + 2] if strategy == "concat" else [B, 1, 1])


@pytest.mark.parametrize(("fraction", "alpha"), [(0.5, 4.0), (0.25, 6.0)])  # of six rows three, and two
def test_a_fit_divides_alpha_by_the_share_of_the_rows(fraction: float, alpha: float) -> None:
    wrapped, alone = RDropNetwork(network(), fraction=fraction), network()
    model: Any = paddle.Model(wrapped)
    model.prepare(paddle.optimizer.SGD(0.1, parameters=model.parameters()), wrapped.loss(alpha=2.0))
    paddle.seed(7)
    [loss] = model.train_batch([X], [Y[:, None]])
    paddle.seed(7)
    expected = rdrop_loss(
        forward_passes(alone, paddle.to_tensor(X), fraction=fraction), paddle.to_tensor(Y), alpha=alpha
    )
    assert float(np.squeeze(loss)) == pytest.approx(float(expected.loss), rel=1e-5)


def test_what_is_not_of_the_batch_goes_to_every_pass() -> None:
    class Shifted(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network()

        def forward(self, x: Any, shift: Any) -> Any:
            return self.layers(x) + shift

    found = forward_passes(Shifted(), paddle.to_tensor(X), paddle.full([1, C], 100.0))
    assert tuple(found.shape) == (2, B, C)
    assert float(found.min()) > 50


class Nested(nn.Layer):
    """Takes a mapping and keywords, and answers a mapping with a list, a name and a mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, batch: Any, shift: Any, ids: Any) -> Any:
        logits = self.layers(batch["x"]) + shift
        return {"logits": [logits, ids], "name": "nested", "mean": logits.mean()}


@pytest.mark.parametrize("strategy", ["concat", "sequential"])
def test_nested_inputs_and_outputs(strategy: Any) -> None:
    batch, shift, ids = {"x": paddle.to_tensor(X)}, paddle.full([1, C], 100.0), paddle.to_tensor(Y)
    found = forward_passes(Nested(), batch, shift=shift, ids=ids, strategy=strategy)
    scores, repeated = found["logits"]
    assert tuple(scores.shape) == (2, B, C)
    assert float(scores.min()) > 50
    assert repeated.tolist() == [Y.tolist()] * 2
    assert found["name"] == "nested"
    assert found["mean"].shape == []


class Mean(nn.Layer):
    """Answers without a batch axis."""

    def forward(self, x: Any) -> Any:
        return x.mean(0)


def test_a_batch_that_cannot_be_found_is_told() -> None:
    with pytest.raises(ValueError, match="the inputs hold no tensor with a batch axis"):
        forward_passes(network(), 3)
    for strategy in ("concat", "sequential"):
        with pytest.raises(ValueError, match="Mean returned nothing with the 6 rows of the batch"):
            forward_passes(Mean(), paddle.ones([B, 8]), strategy=strategy)


@pytest.mark.shows("PaddlePaddle", "no effect")
def test_passes_that_cannot_differ_are_spoken_of_once() -> None:
    model = network(dropout=0.0)
    with pytest.warns(NoEffectWarning, match="R-Drop has no effect on Sequential.*It needs dropout with a rate"):
        forward_passes(model, paddle.to_tensor(X))
    forward_passes(model, paddle.to_tensor(X))
    model = network()
    model.eval()
    with pytest.warns(NoEffectWarning, match=r"It needs model\.train\(\)"):
        forward_passes(model, paddle.to_tensor(X))
    forward_passes(model, paddle.to_tensor(X))


@pytest.mark.shows("PaddlePaddle", "steps")
def test_a_step_is_that_of_the_formulas() -> None:
    model, x, y = network(), paddle.to_tensor(X), paddle.to_tensor(Y)
    paddle.seed(7)
    criterion = RDropLoss(alpha=2.0)
    loss = criterion(forward_passes(model, x), y)
    loss.backward()
    found = gradients(model)
    model.clear_gradients()
    paddle.seed(7)
    first, second = model(paddle.concat([x, x])).chunk(2)
    p, q = F.softmax(first), F.softmax(second)
    apart = ((p - q) * (p.log() - q.log())).sum(-1).mean() / 2
    task = (F.cross_entropy(first, y) + F.cross_entropy(second, y)) / 2
    (task + 2.0 * apart).backward()
    assert float(apart) > 0.01
    assert float(loss) == pytest.approx(float(task + 2.0 * apart), rel=1e-5)
    assert float(criterion.task_loss) == pytest.approx(float(task), rel=1e-4)
    assert float(criterion.divergence) == pytest.approx(float(apart), rel=1e-4)
    for ours, theirs in zip(found, gradients(model), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.shows("PaddlePaddle", "evaluation")
def test_a_model_that_is_fitted_trains_on_both_passes_and_is_judged_on_one() -> None:
    wrapped = RDropNetwork(network(), passes=2)
    model: Any = paddle.Model(wrapped)
    optimizer = paddle.optimizer.SGD(0.1, parameters=model.parameters())
    model.prepare(optimizer, wrapped.loss(alpha=2.0), paddle.metric.Accuracy())
    twin, x, y = network(), paddle.to_tensor(X), paddle.to_tensor(Y)
    paddle.seed(7)
    [loss], _ = model.train_batch([X], [Y[:, None]])
    paddle.seed(7)
    expected = rdrop_loss(forward_passes(twin, x), y, alpha=2.0)
    assert float(np.squeeze(loss)) == pytest.approx(float(expected.loss), rel=1e-5)
    [value], _ = model.eval_batch([X], [Y[:, None]])
    wrapped.eval()
    plain = F.cross_entropy(wrapped(x), y)
    assert float(np.squeeze(value)) == pytest.approx(float(plain), rel=1e-5)
    [answers] = model.predict_batch([X])
    assert answers.shape == (B, C)


def test_a_trunk_in_a_model_that_is_fitted() -> None:
    whole = network()
    wrapped = RDropNetwork(whole[3:], passes=3, trunk=whole[:3])
    model: Any = paddle.Model(wrapped)
    optimizer = paddle.optimizer.SGD(0.1, parameters=model.parameters())
    model.prepare(optimizer, wrapped.loss(alpha=2.0), paddle.metric.Accuracy())
    before = [weight.numpy().copy() for weight in whole.parameters()]
    paddle.seed(7)
    [loss], _ = model.train_batch([X], [Y[:, None]])
    twin = network()
    paddle.seed(7)
    expected = rdrop_loss(forward_passes(twin, paddle.to_tensor(X), passes=3), paddle.to_tensor(Y), alpha=2.0)
    assert float(np.squeeze(loss)) == pytest.approx(float(expected.loss), rel=1e-4)
    assert all((weight.numpy() != old).any() for weight, old in zip(whole.parameters(), before, strict=True))
    [answers] = model.predict_batch([X])
    whole.eval()
    np.testing.assert_allclose(answers, whole(paddle.to_tensor(X)).numpy(), rtol=1e-5)


class Sum(nn.Layer):
    """A trunk with two inputs."""

    def forward(self, x: Any, y: Any) -> Any:
        return x + y


def test_a_fit_knows_the_inputs_from_the_trunk() -> None:
    rows = paddle.io.TensorDataset([paddle.to_tensor(X), paddle.to_tensor(X), paddle.to_tensor(Y[:, None])])
    wrapped = RDropNetwork(network(), trunk=Sum())
    model = paddle.Model(wrapped)
    model.prepare(paddle.optimizer.SGD(0.1, parameters=model.parameters()), wrapped.loss(alpha=2.0))
    model.fit(rows, batch_size=3, epochs=1, verbose=0)


def test_a_pair_in_a_model_that_is_fitted() -> None:
    """Both are trained; in evaluation they answer with the mean of their probabilities."""
    pair = [network(0.0), nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, C))]
    wrapped = RDropNetwork(pair)
    model: Any = paddle.Model(wrapped)
    model.prepare(paddle.optimizer.SGD(0.1, parameters=model.parameters()), wrapped.loss(alpha=2.0))
    before = [weight.numpy().copy() for each in pair for weight in each.parameters()]
    [loss] = model.train_batch([X], [Y[:, None]])
    twins = [network(0.0), nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, C))]
    for weight, old in zip([weight for each in twins for weight in each.parameters()], before, strict=True):
        weight.set_value(old)
    expected = rdrop_loss(forward_passes(twins, paddle.to_tensor(X)), paddle.to_tensor(Y), alpha=2.0).loss
    assert float(np.squeeze(loss)) == pytest.approx(float(expected), rel=1e-5)
    after = [weight.numpy() for each in pair for weight in each.parameters()]
    moved = [(new != old).any() for new, old in zip(after, before, strict=True)]
    assert moved[0]
    assert moved[-2]
    wrapped.eval()
    mean = (F.softmax(pair[0](paddle.to_tensor(X))) + F.softmax(pair[1](paddle.to_tensor(X)))) / 2
    np.testing.assert_allclose(F.softmax(wrapped(paddle.to_tensor(X))).numpy(), mean.numpy(), rtol=1e-5)
    assert "network.1.0.weight" in wrapped.state_dict()


@pytest.mark.shows("PaddlePaddle", "schedule")
def test_alpha_follows_a_schedule_in_a_fit() -> None:
    rows = paddle.io.TensorDataset([paddle.to_tensor(X), paddle.to_tensor(Y[:, None])])
    wrapped = RDropNetwork(network())
    asked: list[int] = []

    def alpha(step: int) -> float:
        asked.append(step)
        return float(step)

    loss: Any = wrapped.loss(alpha=alpha)
    model = paddle.Model(wrapped)
    model.prepare(paddle.optimizer.SGD(0.1, parameters=model.parameters()), loss)
    model.fit(rows, rows, batch_size=3, epochs=2, verbose=0)
    assert asked == [0, 1, 2, 2, 2, 3, 4, 4]  # two batches of training and two of evaluation in each epoch
    assert loss.criterion.current_alpha == 4.0


def test_a_fit_adds_the_gradients_of_micro_batches() -> None:
    """Paddle does not divide by their number, so that both terms grow alike."""
    wrapped = RDropNetwork(network(0.0)[3:])
    model: Any = paddle.Model(wrapped)
    model.prepare(paddle.optimizer.SGD(0.1, parameters=model.parameters()), wrapped.loss(alpha=2.0))
    with pytest.warns(NoEffectWarning):
        model.train_batch([X], [Y], update=False)
    once = wrapped.network[1].weight.grad.numpy().copy()
    model.train_batch([X], [Y], update=False)
    np.testing.assert_allclose(wrapped.network[1].weight.grad.numpy(), 2 * once, rtol=1e-5)


def test_a_whole_fit_learns(capsys: pytest.CaptureFixture[str]) -> None:
    rows = paddle.io.TensorDataset([paddle.to_tensor(X), paddle.to_tensor(Y[:, None])])
    wrapped = RDropNetwork(network(0.1))
    model = paddle.Model(wrapped)
    optimizer = paddle.optimizer.Adam(0.05, parameters=model.parameters())
    model.prepare(optimizer, wrapped.loss(alpha=0.1), paddle.metric.Accuracy())
    before = model.evaluate(rows, batch_size=3, verbose=0)
    model.fit(rows, batch_size=3, epochs=20, verbose=0)
    after = model.evaluate(rows, batch_size=3, verbose=0)
    assert after["acc"] > before["acc"]
    capsys.readouterr()


def test_a_schedule_of_alpha_is_part_of_the_state() -> None:
    criterion, y = RDropLoss(schedule.linear_warmup(4.0, steps=4)), paddle.to_tensor(Y)
    assert float(criterion(logits(), y)) == float(criterion.task_loss)
    criterion.step()
    criterion.step()
    assert criterion.current_alpha == 2.0
    assert float(criterion(logits(), y)) == pytest.approx(float(rdrop_loss(logits(), y, alpha=2.0).loss))
    restored = RDropLoss(schedule.linear_warmup(4.0, steps=4))
    restored.set_state_dict(criterion.state_dict())
    assert restored.current_alpha == 2.0


def test_options_of_the_layer_are_looked_at_when_it_is_made() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"divergence": "kld"}, "divergence is 'kld'"),
        ({"reduction": "batchmean"}, "reduction is 'batchmean'"),
        ({"label_smoothing": 2.0}, "label_smoothing is 2.0"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            RDropLoss(**options)
    with pytest.raises(TypeError, match="smoothing"):
        RDropLoss(smoothing=0.1)


@compiled
@pytest.mark.parametrize("full_graph", [True, False])
def test_a_compiled_loss_is_the_same(full_graph: bool) -> None:
    def loss(z: Any, y: Any) -> Any:
        return rdrop_loss(z, y, alpha=2.0, label_smoothing=0.1).loss

    z, y = logits(3), paddle.to_tensor(np.where(Y == 1, -100, Y))
    expected = loss(z, y)
    expected.backward()
    gradient = z.grad.numpy().copy()
    z.clear_gradient()
    found = paddle.jit.to_static(loss, full_graph=full_graph)(z, y)
    found.backward()
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(z.grad.numpy(), gradient, rtol=1e-5, atol=1e-7)


@compiled
@pytest.mark.parametrize("full_graph", [True, False])
@pytest.mark.parametrize("how", [{}, {"fraction": 0.5, "one_sided": True}], ids=["full", "cheap"])
@pytest.mark.shows("PaddlePaddle", "compiled")
def test_a_compiled_step_is_the_same(full_graph: bool, how: dict[str, Any]) -> None:
    """What is drawn are the masks, or, without dropout, the rows: a program draws two things in either order."""
    model, criterion, x, y = network(0.0 if how else 0.5), RDropLoss(2.0), paddle.to_tensor(X), paddle.to_tensor(Y)

    def step(x: Any, y: Any) -> Any:
        return criterion(forward_passes(model, x, **how), y)

    paddle.seed(7)
    expected = step(x, y)
    wanted = gradient_of(model, expected)
    paddle.seed(7)
    found = paddle.jit.to_static(step, full_graph=full_graph)(x, y)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradient_of(model, found), wanted, rtol=1e-4, atol=1e-6)


@compiled
@pytest.mark.parametrize("full_graph", [True, False])
def test_statistics_move_once_in_a_compiled_step(full_graph: bool) -> None:
    model, plain, x = network(), network(), paddle.to_tensor(X)
    plain(x)

    def step(x: Any) -> Any:
        return forward_passes(model, x, passes=3, strategy="sequential")

    paddle.jit.to_static(step, full_graph=full_graph)(x)
    np.testing.assert_allclose(model[1]._mean.numpy(), plain[1]._mean.numpy(), rtol=1e-6)
    np.testing.assert_allclose(model[1]._variance.numpy(), plain[1]._variance.numpy(), rtol=1e-6)


@compiled
def test_a_static_program_trains() -> None:
    paddle.enable_static()
    try:
        make: Any = paddle.static.Program
        program, start = make(), make()
        with paddle.static.program_guard(program, start):
            x, y = paddle.static.data("x", [B, 8]), paddle.static.data("y", [B], "int64")
            out = rdrop_loss(forward_passes(network(0.1), x), y)
            paddle.optimizer.SGD(0.5).minimize(out.loss)
        executor = paddle.static.Executor()
        executor.run(start)
        steps = [executor.run(program, feed={"x": X, "y": Y}, fetch_list=list(out)) for _ in range(20)]
    finally:
        paddle.disable_static()
    assert steps[-1][0] < steps[0][0]
    assert all(divergence > 0 for _, _, divergence in steps)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.shows("PaddlePaddle", "mixed precision")
def test_half_precision_is_computed_in_single(dtype: str) -> None:
    half = logits().detach().astype(dtype)
    half.stop_gradient = False
    out = rdrop_loss(half, paddle.to_tensor(Y))
    out.loss.backward()
    assert out.loss.dtype == paddle.float32
    assert half.grad.dtype == half.dtype
    single = rdrop_loss(half.detach().astype("float32"), paddle.to_tensor(Y))
    assert float(out.loss) == float(single.loss)


def test_automatic_mixed_precision_is_off_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Level O2 would cast the float32 logits down again; a CPU casts nothing, so the level itself is looked at."""
    framework: Any = paddle.base.framework
    tracer = framework._dygraph_tracer()
    inside, rows = [], rdrop.paddle._rows

    def looked_at(*args: Any) -> Any:
        inside.append(str(tracer._amp_level))
        return rows(*args)

    monkeypatch.setattr(rdrop.paddle, "_rows", looked_at)
    monkeypatch.setattr(tracer, "_amp_dtype", "bfloat16")
    monkeypatch.setattr(tracer, "_amp_level", paddle.base.core.AmpLevel.O2)
    rdrop_loss(logits(), paddle.to_tensor(Y))
    assert inside == ["AmpLevel.O0"]
    assert str(tracer._amp_level) == "AmpLevel.O2"


@pytest.mark.shows("PaddlePaddle", "accumulation")
def test_micro_batches_with_a_normalizer_add_up_to_the_batch() -> None:
    whole, parts, y = logits(), logits(), paddle.to_tensor(np.where(Y == 1, -100, Y))
    rdrop_loss(whole, y, alpha=2.0).loss.backward()
    count = (y != -100).sum()
    for part in (slice(0, 2), slice(2, B)):
        rdrop_loss(parts[:, part], y[part], alpha=2.0, normalizer=count).loss.backward()
    np.testing.assert_allclose(parts.grad.numpy(), whole.grad.numpy(), rtol=1e-5, atol=1e-8)
    nothing = rdrop_loss(whole, paddle.full([B], -100, "int64"), normalizer=paddle.zeros([], "int64")).loss
    assert float(nothing) == 0.0


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32"])
def test_labels_of_every_integer_dtype(dtype: str) -> None:
    """As a uint8, the -100 of ignore_index is 156."""
    z = paddle.randn([2, 3, 200])
    ids = np.array([1, 100, 156 if dtype == "uint8" else 3])
    found = rdrop_loss(z, paddle.to_tensor(ids.astype(dtype)), reduction="none").task_loss
    np.testing.assert_allclose(found.numpy(), rdrop_loss(z, paddle.to_tensor(ids), reduction="none").task_loss.numpy())
    assert (found.numpy() > 0).all()


def test_probabilities_are_told() -> None:
    with pytest.warns(ProbabilitiesWarning, match="the logits look like probabilities"):
        rdrop_loss(F.softmax(logits()), paddle.to_tensor(Y))


@pytest.mark.shows("PaddlePaddle", "processes")
def test_over_two_processes_it_is_that_of_one(tmp_path: Path) -> None:
    """Under paddle.DataParallel on CPUs, with uneven parts, micro-batches and positions that do not count."""
    sockets = [socket.socket() for _ in range(paddle_on_two_ranks.RANKS)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ends = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    shared = {"PADDLE_TRAINERS_NUM": str(len(ends)), "PADDLE_TRAINER_ENDPOINTS": ",".join(ends)}
    shared |= {"PADDLE_DISTRI_BACKEND": "gloo", "PYTHONWARNINGS": "ignore"}
    program = [sys.executable, paddle_on_two_ranks.__file__, str(tmp_path)]
    ranks = []
    for rank, end in enumerate(ends):
        environment = {**os.environ, **shared, "PADDLE_TRAINER_ID": str(rank), "PADDLE_CURRENT_ENDPOINT": end}
        ranks.append(
            subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    for process in ranks:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    model: Any = paddle_on_two_ranks.network()
    x, noise, labels = paddle_on_two_ranks.batch()
    rdrop_loss(forward_passes(model, x, noise), labels, alpha=2.0).loss.backward()
    for rank in range(len(ends)):
        found = np.load(tmp_path / f"{rank}.npy")
        np.testing.assert_allclose(found, model.layers.weight.grad.numpy(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z, y: rdrop_loss(z[0], y), r"logits have shape \(6, 3\); expected \(M, B, ..., C\)"),
        (lambda z, y: rdrop_loss(z, y[:2]), r"labels have shape \(2,\)"),
        (lambda z, y: rdrop_loss(z, y + 1), r"labels\[1\] is 3; expected a class id in 0..2"),
        (lambda z, y: rdrop_loss(z, y, class_weight=paddle.ones([7])), "class_weight has shape"),
        (lambda z, y: rdrop_loss(z, y, mask=paddle.ones([B, 1], "bool")), "mask has shape"),
        (lambda z, y: rdrop_loss(z, y, alpha=-1.0), "alpha is -1.0"),
        (lambda z, y: forward_passes(network(), z[0], strategy=WRONG), "strategy is 'shared'"),
        (lambda z, y: forward_passes(network(), z[0], passes=0), "passes is 0"),
        (lambda z, y: forward_passes(network(), z[0], fraction=0.0), r"fraction is 0\.0; expected a share"),
        (lambda z, y: forward_passes(network(), z[0], one_sided=True, strategy="concat"), "needs a forward of its own"),
        (lambda z, y: forward_passes([network(), network()], z[0], one_sided=True), "one whole pass each"),
        (lambda z, y: RDropNetwork([network(), network()], fraction=0.5), "one whole pass each"),
        (lambda z, y: forward_passes(network(), z[0], passes=FRACTION), r"passes is 2\.0"),
    ],
)
def test_what_is_out_of_place_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(paddle.zeros([2, B, C]), paddle.to_tensor(Y))


def test_numbers_of_another_kind_are_refused() -> None:
    z, y = paddle.zeros([2, B, C]), paddle.to_tensor(Y)
    with pytest.raises(TypeError, match=r"logits have dtype paddle\.int64"):
        rdrop_loss(z.astype("int64"), y)
    with pytest.raises(TypeError, match=r"mask has dtype paddle\.float32; expected bool"):
        rdrop_loss(z, y, mask=paddle.ones([B]))
    with pytest.raises(TypeError, match="labels have dtype bool"):
        rdrop_loss(z, y > 0)


def test_it_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from rdrop.paddle import rdrop_loss; print(rdrop_loss.__name__)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "rdrop_loss\n", done.stderr
