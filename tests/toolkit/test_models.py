from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from rdrop.toolkit.models import DigitsCNN


def test_the_loss_is_there_with_labels_only_and_is_the_mean_cross_entropy() -> None:
    torch.manual_seed(0)
    model = DigitsCNN(dropout=0.25, classes=10).eval()
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([1, 2, 3, 4])
    plain, labelled = model(images), model(images, labels)
    assert plain.keys() == {"logits"}
    assert torch.equal(plain["logits"], labelled["logits"])
    torch.testing.assert_close(labelled["loss"], cross_entropy(plain["logits"], labels))


def test_every_dropout_layer_has_the_rate() -> None:
    model = DigitsCNN(dropout=0.25, classes=10)
    assert [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)] == [0.25, 0.25]
