from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, load_model
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F
from transformers import TrainingArguments

import hf_training
from pair_on_two_ranks import RANKS, ROWS, Named, pair, rows, trained, worker
from rdrop import NoEffectWarning
from rdrop.integrations.logits_of_outputs import logits_of
from rdrop.integrations.transformers import RDropConfig
from rdrop.toolkit.images.network_pair import NetworkPair, PairTrainer


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "learning_rate": 0.5,
        "optim": "sgd",
        "per_device_train_batch_size": ROWS,
        "per_device_eval_batch_size": 5,
        "remove_unused_columns": False,
    }
    return hf_training.arguments(folder, **(defaults | options))


def trainer_of(
    model: nn.Module, folder: Path, rdrop: RDropConfig | None = None, data: Any = None, **options: Any
) -> PairTrainer:
    data = rows() if data is None else data
    return PairTrainer(model, arguments(folder, **options), rdrop=rdrop or RDropConfig(), train_dataset=data)


def batch() -> tuple[Tensor, Tensor]:
    images, labels = (torch.stack([row[key] for row in rows()]) for key in ("pixel_values", "labels"))
    return images, labels


class Rows(nn.Module):
    """Answers with the rows of a table, in a tuple."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, row: Tensor, shift: Tensor | None = None) -> tuple[Tensor, str]:
        answers = self.table[row]
        return (answers if shift is None else answers + shift[:, None]), "not looked at"


def test_training_answers_with_both_and_evaluation_with_their_average() -> None:
    images, labels = batch()
    both = pair()
    first, second = both.first(images), both.second(images)["logits"]
    answers = both(pixel_values=images, labels=labels)
    assert answers.keys() == {"logits"}
    assert torch.equal(answers["logits"], torch.stack((first, second)))

    answers = both.eval()(pixel_values=images, labels=labels)
    average = (first.softmax(-1) + second.softmax(-1)) / 2
    torch.testing.assert_close(answers["logits"].softmax(-1), average)
    torch.testing.assert_close(answers["logits"].exp(), average)
    assert torch.equal(answers["first"], first)
    assert torch.equal(answers["second"], second)
    counted = labels != -100
    expected = -average[counted].log()[torch.arange(int(counted.sum())), labels[counted]].mean()
    torch.testing.assert_close(answers["loss"], expected)
    assert "loss" not in both(images)


def test_inputs_are_handed_on_by_position_or_by_name() -> None:
    table = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    both = NetworkPair(Rows(table), Rows(-table))
    chosen, shift = torch.tensor([1, 4]), torch.tensor([0.0, 2.0])
    shifted = torch.stack((table[chosen] + shift[:, None], -table[chosen] + shift[:, None]))
    assert torch.equal(both(shift=shift, row=chosen)["logits"], shifted)
    assert torch.equal(both(chosen, shift)["logits"], shifted)
    assert torch.equal(both(pixel_values=chosen)["logits"], both(chosen)["logits"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_average_is_exact_for_extreme_and_impossible_logits(dtype: torch.dtype) -> None:
    first = torch.tensor([[0.0, 300.0, -300.0], [1.0, 2.0, -torch.inf]], dtype=dtype)
    second = torch.tensor([[300.0, 0.0, -300.0], [2.0, 1.0, -torch.inf]], dtype=dtype)
    both = NetworkPair(Rows(first), Rows(second)).eval()
    with torch.no_grad():
        logits = both(torch.arange(2))["logits"]
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(logits.exp().double(), torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0]]).double())
    assert logits[0, 2].item() == pytest.approx(-600, rel=1e-3)
    assert logits[1, 2] == -torch.inf


JOBS: dict[str, tuple[float, float, dict[str, Any]]] = {
    "alpha 2": (2.0, 0.0, {}),
    "micro-batches": (2.0, 0.0, {"per_device_train_batch_size": ROWS // 4, "gradient_accumulation_steps": 4}),
    "label smoothing": (0.7, 0.2, {}),
    "adam": (2.0, 0.0, {"optim": "adamw_torch", "learning_rate": 1e-2}),
}


@pytest.mark.parametrize(("alpha", "smoothing", "options"), JOBS.values(), ids=list(JOBS))
def test_steps_are_those_of_two_optimizers_and_the_formulas(
    tmp_path: Path, alpha: float, smoothing: float, options: dict[str, Any]
) -> None:
    both, twin = pair(), pair()
    trainer_of(both, tmp_path, RDropConfig(alpha=alpha), label_smoothing_factor=smoothing, **options).train()

    images, labels = batch()
    counted = labels != -100
    images, labels = images[counted], labels[counted]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.0)
        if "optim" in options
        else torch.optim.SGD(network.parameters(), lr=0.5)
        for network in (twin.first, twin.second)
    ]
    for _ in range(3):
        first, second = (logits_of(network(images)) for network in (twin.first, twin.second))
        ce = [F.cross_entropy(z, labels, label_smoothing=smoothing) for z in (first, second)]
        p, q = first.log_softmax(-1), second.log_softmax(-1)
        kl = [(p.exp() * (p - q)).sum(-1).mean(), (q.exp() * (q - p)).sum(-1).mean()]
        for optimizer in optimizers:
            optimizer.zero_grad()
        ((ce[0] + ce[1]) / 2 + alpha * (kl[0] + kl[1]) / 2).backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
    for name, weight in twin.state_dict().items():
        torch.testing.assert_close(both.state_dict()[name], weight, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(weight, pair().state_dict()[name], atol=1e-3), name


def test_with_alpha_0_each_network_is_trained_on_its_own_with_half_of_its_gradient(tmp_path: Path) -> None:
    both = pair()
    trainer_of(both, tmp_path, RDropConfig(alpha=0.0)).train()
    images, labels = batch()
    for network, found in ((pair().first, both.first), (pair().second, both.second)):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.25)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(logits_of(network(images)), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        for name, weight in network.state_dict().items():
            torch.testing.assert_close(found.state_dict()[name], weight, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_the_divergence_reaches_both_networks(tmp_path: Path) -> None:
    images, labels = batch()
    gradients = []
    for alpha in (0.0, 3.0):
        both = pair()
        trainer = trainer_of(both, tmp_path, RDropConfig(alpha=alpha))
        trainer.compute_loss(both, {"pixel_values": images, "labels": labels}).backward()
        gradients.append([weight.grad for weight in both.parameters() if weight.grad is not None])
    twin = pair()
    p, q = (logits_of(network(images[labels != -100])).log_softmax(-1) for network in (twin.first, twin.second))
    divergence = ((p.exp() - q.exp()) * (p - q)).sum(-1).mean() / 2
    expected = torch.autograd.grad(divergence, list(twin.parameters()))
    for without, with_divergence, gradient in zip(*gradients, expected, strict=True):
        torch.testing.assert_close(with_divergence - without, 3 * gradient, rtol=1e-4, atol=1e-6)
        assert gradient.abs().max() > 0.01


class Counting(nn.Module):
    """A network with BatchNorm that counts its calls."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 5))
        self.calls: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(self.training)
        answers: Tensor = self.layers(x)
        return answers


def test_a_step_is_one_pass_of_each_network_which_moves_its_batch_norm_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    both = NetworkPair(Counting(8), Counting(16))
    images, _ = batch()
    means = [network.layers[0](images).mean(0).detach() for network in (both.first, both.second)]  # type: ignore[index,operator]
    trainer = trainer_of(both, tmp_path, max_steps=1)
    trainer.train()
    for network, mean in zip((both.first, both.second), means, strict=True):
        assert isinstance(network, Counting)
        assert network.calls == [True]
        norm = network.layers[1]
        assert isinstance(norm, nn.BatchNorm1d)
        assert norm.num_batches_tracked == 1
        torch.testing.assert_close(norm.running_mean, 0.1 * mean)
    data: Any = rows()
    trainer.evaluate(data)
    for network in (both.first, both.second):
        assert isinstance(network, Counting)
        assert network.calls == [True, False, False, False]


def test_evaluation_and_predictions_are_those_of_the_average_and_of_each(tmp_path: Path) -> None:
    both = pair()
    images, labels = torch.randn(11, 6), torch.arange(11) % 5
    data: Any = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    trainer = trainer_of(both, tmp_path)
    prediction = trainer.predict(data)
    with torch.no_grad():
        expected = both.eval()(images, labels=labels)
    assert isinstance(prediction.predictions, tuple)
    for found, key in zip(prediction.predictions, ("logits", "first", "second"), strict=True):
        np.testing.assert_allclose(found, expected[key], rtol=1e-5, atol=1e-6)
    assert prediction.metrics is not None
    assert prediction.metrics["test_loss"] == pytest.approx(expected["loss"].item(), rel=1e-5)
    smoothed = trainer_of(both, tmp_path, label_smoothing_factor=0.3).evaluate(data)["eval_loss"]
    assert smoothed == pytest.approx(F.cross_entropy(expected["logits"], labels, label_smoothing=0.3).item(), rel=1e-5)


def test_saved_weights_give_the_same_answers(tmp_path: Path) -> None:
    both = pair()
    trainer_of(both, tmp_path).save_model()
    saved = tmp_path / "model.safetensors"
    assert {name.partition(".")[0] for name in load_file(saved)} == {"first", "second"}
    torch.manual_seed(1)
    other = NetworkPair(nn.Linear(6, 5), Named())
    images, _ = batch()
    assert not torch.allclose(other(images)["logits"], both(images)["logits"])
    load_model(other, saved)
    assert torch.equal(other(images)["logits"], both(images)["logits"])


def test_training_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "optim": "adamw_torch"}
    whole, resumed = pair(), pair()
    trainer_of(whole, tmp_path, **options).train()
    trainer_of(resumed, tmp_path, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, weight in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight)


def equals(dropout: float) -> NetworkPair:
    """Two networks with the same weights."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 64), nn.Dropout(dropout), nn.Linear(64, 5))
    return NetworkPair(network, copy.deepcopy(network))


def test_only_two_equal_networks_without_dropout_are_warned_of_and_once(tmp_path: Path) -> None:
    trainer_of(equals(dropout=0.3), tmp_path).train()  # here a warning would be an error, as in all tests of pairs
    with pytest.warns(NoEffectWarning, match="its two networks gave identical outputs") as told:
        trainer_of(equals(dropout=0.0), tmp_path).train()
    assert [warning.category for warning in told] == [NoEffectWarning]


def test_two_ranks_with_micro_batches_make_the_steps_of_one_process(tmp_path: Path, free_port: int) -> None:
    store = str(tmp_path / "store")
    spawn(worker, args=(store, free_port), nprocs=RANKS)  # type: ignore[no-untyped-call]
    alone = trained(str(tmp_path), per_device_train_batch_size=ROWS)
    for rank in range(RANKS):
        for name, weight in load_file(f"{store}-{rank}").items():
            torch.testing.assert_close(weight, alone.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_networks_that_share_a_tensor_are_refused() -> None:
    layer = nn.Linear(6, 5)
    with pytest.raises(ValueError, match=r"share a tensor, weight of the first and 1\.weight of the second"):
        NetworkPair(layer, nn.Sequential(nn.Tanh(), layer))
    norm = nn.BatchNorm1d(6, affine=False)
    with pytest.raises(ValueError, match=r"0\.running_mean of the first and 0\.running_mean of the second"):
        NetworkPair(nn.Sequential(norm, nn.Linear(6, 5)), nn.Sequential(norm, nn.Linear(6, 5)))
    with torch.device("meta"):
        NetworkPair(nn.Linear(6, 5), nn.Linear(6, 5))


def test_networks_with_different_classes_are_refused() -> None:
    both = NetworkPair(nn.Linear(6, 5), nn.Linear(6, 4))
    for mode in (True, False):
        with pytest.raises(ValueError, match=r"shapes \(2, 5\) and \(2, 4\)"):
            both.train(mode)(torch.ones(2, 6))


@pytest.mark.parametrize(
    ("rdrop", "options", "message"),
    [
        (RDropConfig(passes=1), {}, "passes is 1; expected 2"),
        (RDropConfig(passes=3), {}, "passes is 3; expected 2"),
        (RDropConfig(strategy="concat"), {}, 'strategy is "concat"; expected "auto"'),
        (RDropConfig(kind="binary"), {}, 'kind is "binary"; expected "categorical"'),
        (RDropConfig(), {"remove_unused_columns": True}, r"TrainingArguments\(remove_unused_columns=False\)"),
    ],
)
def test_objectives_that_do_not_fit_a_pair_are_refused(
    tmp_path: Path, rdrop: RDropConfig, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer_of(pair(), tmp_path, rdrop, **options)


def test_a_model_that_is_no_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="got a Linear; expected a NetworkPair"):
        trainer_of(nn.Linear(6, 5), tmp_path)
