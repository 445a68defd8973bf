from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rdrop.toolkit.monte_carlo import class_predictions, sampled


class Doubtful(nn.Module):
    """Three logits of four numbers, behind dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dropout, self.linear = nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.linear(self.dropout(x))}


BATCH = {"x": torch.arange(8.0).view(2, 4)}
NAMES = ["sprout", "seedling", "rosette"]


def test_without_samples_it_is_the_prediction_with_dropout_off() -> None:
    model = Doubtful()
    mean, spread = sampled(model.train(), BATCH, samples=0)
    expected = torch.softmax(model.eval()(**BATCH)["logits"], -1)
    assert torch.equal(mean, expected)
    assert not spread.any()


def test_mean_and_spread_are_those_of_single_predictions() -> None:
    model = Doubtful()
    torch.manual_seed(1)
    mean, spread = sampled(model, BATCH, samples=5)
    torch.manual_seed(1)
    model.train()
    with torch.no_grad():
        single = torch.stack([torch.softmax(model(**BATCH)["logits"], -1) for _ in range(5)])
    assert torch.allclose(mean, single.mean(0))
    assert torch.allclose(spread, single.var(0, correction=0).sqrt())
    assert spread.min() > 0.01


def test_another_activation_is_averaged_instead() -> None:
    mean, _ = sampled(Doubtful(), BATCH, samples=0, activation=torch.sigmoid)
    assert not torch.allclose(mean.sum(-1), torch.ones(2))


@pytest.mark.parametrize("samples", [0, 3])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(samples: int, training: bool) -> None:
    model = Doubtful().train(training)
    sampled(model, BATCH, samples)
    assert model.training == model.dropout.training == training
    assert all(weight.grad is None for weight in model.parameters())


def test_each_row_gets_its_most_probable_class() -> None:
    answers = list(class_predictions(Doubtful(), [BATCH, BATCH], NAMES, samples=0, seed=0))
    expected, _ = sampled(Doubtful(), BATCH, samples=0)
    assert len(answers) == 4
    assert answers[:2] == answers[2:]
    for answer, row in zip(answers, expected, strict=False):
        assert answer["label"] == NAMES[int(row.argmax())]
        assert answer["confidence"] == pytest.approx(float(row.max()))
        assert list(answer["probabilities"].values()) == pytest.approx(row.tolist())
        assert list(answer) == ["label", "confidence", "probabilities"]


def test_with_samples_the_spread_is_that_of_the_confidence_and_the_seed_decides() -> None:
    first, again, other = (
        list(class_predictions(Doubtful(), [BATCH], NAMES, samples=4, seed=seed)) for seed in (0, 0, 1)
    )
    assert first == again != other
    model = Doubtful()  # before the seed, which its weights would use up
    torch.manual_seed(0)
    mean, spread = sampled(model, BATCH, samples=4)
    assert [answer["spread"] for answer in first] == spread.gather(1, mean.argmax(1, keepdim=True))[:, 0].tolist()
    assert sum(first[0]["probabilities"].values()) == pytest.approx(1)
