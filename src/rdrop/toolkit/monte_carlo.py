"""Monte Carlo dropout: one answer, or the mean and spread of many with dropout on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import set_seed

from rdrop.stochastic import randomness_off, randomness_on

Prediction = dict[str, Any]


def softmax(logits: Tensor) -> Tensor:
    """Probabilities over the last axis."""
    return torch.softmax(logits, dim=-1)


def sampled(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    samples: int,
    activation: Callable[[Tensor], Tensor] = softmax,
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the activated logits of a batch over dropout masks.

    Gal and Ghahramani 2016, section 3: the mean over masks approximates the predictive distribution; the spread
    says how much the masks disagree.

    Args:
        model: Answers a mapping with `logits` `(B, ..., C)`.
        batch: Its inputs, without labels.
        samples: Dropout-on predictions; 0 for one prediction with dropout off, whose spread is 0.
        activation: From logits to what is averaged.

    Returns:
        Mean and standard deviation, both `(B, ..., C)`, in float32.

    >>> model = nn.Sequential()
    >>> model.forward = lambda x: {"logits": x}
    >>> mean, spread = sampled(model, {"x": torch.zeros(1, 2)}, samples=0)
    >>> mean.tolist(), spread.tolist()
    ([[0.5, 0.5]], [[0.0, 0.0]])
    """
    with torch.no_grad():
        if samples == 0:
            with randomness_off(model):
                answer = activation(model(**batch)["logits"].float())
            return answer, torch.zeros_like(answer)
        with randomness_on(model):
            answers = torch.stack([activation(model(**batch)["logits"].float()) for _ in range(samples)])
    return answers.mean(0), answers.std(0, correction=0)


def class_predictions(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], names: Sequence[str], *, samples: int, seed: int
) -> Iterator[Prediction]:
    """The most probable class of each row.

    Args:
        model: Answers a mapping with `logits` `(B, C)`.
        batches: Inputs without labels.
        names: The C classes.
        samples: Dropout-on predictions that are averaged; 0 for dropout off.
        seed: Seed of the masks.

    Yields:
        `label`, `confidence` (its probability), `probabilities` by class, and with samples `spread`: the standard
        deviation of that probability over the masks.
    """
    set_seed(seed)
    for batch in batches:
        mean, spread = sampled(model, batch, samples)
        for probabilities, deviation in zip(mean, spread, strict=True):
            best = int(probabilities.argmax())
            answer: Prediction = {"label": names[best], "confidence": float(probabilities[best])}
            if samples:
                answer["spread"] = float(deviation[best])
            answer["probabilities"] = dict(zip(names, probabilities.tolist(), strict=True))
            yield answer
