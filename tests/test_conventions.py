"""Each row of the table of units is held to a plain program that was written from its formula."""

from __future__ import annotations

import pytest
import torch

from plain_programs import PROGRAMS
from rdrop import rdrop_loss
from rdrop.conventions import CONVENTIONS, from_ours, to_ours


def test_every_convention_has_a_program() -> None:
    assert set(PROGRAMS) == set(CONVENTIONS)


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 5.0])
@pytest.mark.parametrize(("batch", "classes"), [(1, 2), (7, 3), (16, 10)])
def test_loss_and_gradient_are_those_of_the_published_program(
    name: str, alpha: float, batch: int, classes: int
) -> None:
    generator = torch.Generator().manual_seed(batch)
    logits = torch.randn(2, batch, classes, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.randint(classes, (batch,), generator=generator)
    published = PROGRAMS[name](logits[0], logits[1], labels, alpha)
    (expected,) = torch.autograd.grad(published, logits)
    translated = to_ours(name, alpha, batch_size=batch, num_classes=classes)
    ours = translated.scale * rdrop_loss(logits, labels, alpha=translated.alpha).loss
    (gradient,) = torch.autograd.grad(ours, logits)
    torch.testing.assert_close(ours, published, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-13)
    assert from_ours(name, translated.alpha, batch_size=batch, num_classes=classes) == pytest.approx(alpha)


def test_what_a_convention_depends_on_must_be_given() -> None:
    with pytest.raises(ValueError, match="batch_size is None; convention 'official-vit' sums"):
        to_ours("official-vit", 0.6)
    with pytest.raises(ValueError, match="num_classes is 0; convention 'class-mean' averages"):
        from_ours("class-mean", 0.6, num_classes=0)
    with pytest.raises(ValueError, match="convention is 'papier'; expected one of 'paper'"):
        to_ours("papier", 1.0)
    with pytest.raises(ValueError, match="alpha is -1"):
        to_ours("paper", -1.0)
