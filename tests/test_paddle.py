"""The passes and the networks of PaddlePaddle; the numbers of the objective are held by the contract suite."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.nn import functional as F

from rdrop import NoEffectWarning
from rdrop.paddle import RDropLoss, RDropNetwork, divergence, forward_passes, rdrop_loss

B, C = 6, 3
WRONG: Any = "shared"
X = np.random.default_rng(0).normal(size=(B, 8)).astype("float32")
Y = np.array([0, 2, 1, 1, 0, 2])


def network(dropout: float = 0.5) -> nn.Sequential:
    paddle.seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1D(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, C))


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
def test_statistics_move_as_in_one_plain_forward(strategy: Any) -> None:
    model, plain, x = network(), network(), paddle.to_tensor(X)
    before = plain[1]._mean.numpy().copy()
    plain(x)
    forward_passes(model, x, passes=3, strategy=strategy)
    assert not np.allclose(plain[1]._mean.numpy(), before)
    for ours, theirs in ((model[1]._mean, plain[1]._mean), (model[1]._variance, plain[1]._variance)):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-6)


def test_two_different_networks_learn_from_each_other() -> None:
    pair = [network(), nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, C))]
    logits = forward_passes(pair, paddle.to_tensor(X))
    divergence(logits).backward()
    assert all(np.abs(each).sum() > 0 for model in pair for each in gradients(model)[::2])
    with pytest.raises(ValueError, match="passes is 2, but there are 3 networks"):
        forward_passes([*pair, network()], paddle.to_tensor(X))


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


def test_passes_that_cannot_differ_are_spoken_of_once() -> None:
    model = network(dropout=0.0)
    with pytest.warns(NoEffectWarning, match="R-Drop has no effect on Sequential"):
        forward_passes(model, paddle.to_tensor(X))
    forward_passes(model, paddle.to_tensor(X))


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
