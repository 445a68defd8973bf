from __future__ import annotations

import torch
from torch import nn

from rdrop import consistency_gap
from rdrop.toolkit.metrics.consistency import CONSISTENCY_METRICS, consistency_metrics


def test_every_metric_has_the_measured_value() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))
    gap = consistency_gap(model, [(torch.randn(8, 4), torch.arange(8) % 3)], samples=4)
    scores = consistency_metrics(gap)
    assert list(scores) == [metric.name for metric in CONSISTENCY_METRICS]
    assert scores["consistency_kl"] == gap.kl > 0
    assert list(scores.values())[1:] == [gap.agreement, gap.accuracy_averaged, gap.nll_averaged]


def test_the_words_fit_every_kind_of_example() -> None:
    assert not any("image" in metric.explanation for metric in CONSISTENCY_METRICS)
