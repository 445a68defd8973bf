"""The consistency gap against a plain program, and the promises about what it leaves alone."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from transformers import BartConfig, BartForConditionalGeneration

from rdrop import ConsistencyGap, NoEffectWarning, consistency_gap


def network(dropout: float = 0.5) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3)]
    return nn.Sequential(*layers).double()


def data(rows: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (rows,), generator=generator)


def test_every_field_equals_a_plain_program() -> None:
    model, (x, labels) = network(), data()
    torch.manual_seed(7)
    gap = consistency_gap(model, [(x, labels)], samples=5)

    model.eval()
    model[3].train()
    torch.manual_seed(7)
    with torch.no_grad():
        average = torch.stack([model(x).softmax(-1) for _ in range(5)]).mean(0)
        off = model.eval()(x).softmax(-1)
    rows = torch.arange(20)
    expected = ConsistencyGap(
        kl=float((average * (average.log() - off.log())).sum(-1).mean()),
        agreement=float((average.argmax(-1) == off.argmax(-1)).double().mean()),
        accuracy_off=float((off.argmax(-1) == labels).double().mean()),
        accuracy_averaged=float((average.argmax(-1) == labels).double().mean()),
        nll_off=float(-off[rows, labels].log().mean()),
        nll_averaged=float(-average[rows, labels].log().mean()),
        positions=20,
    )
    assert gap.positions == expected.positions
    for name in ("kl", "agreement", "accuracy_off", "accuracy_averaged", "nll_off", "nll_averaged"):
        assert getattr(gap, name) == pytest.approx(getattr(expected, name), rel=1e-12), name
    assert gap.kl > 1e-3  # the premise: there is something to measure


def test_batches_are_pooled_by_positions_and_labels_of_minus_100_do_not_count() -> None:
    model, (x, labels) = network(0.0), data(9)
    with pytest.warns(NoEffectWarning, match="every rate is 0"):
        whole = consistency_gap(model, [(x, labels)], samples=1)
    padded = torch.cat([labels[:2], torch.tensor([-100, -100])])
    parts = consistency_gap(model, [(x[2:], labels[2:]), (torch.cat([x[:2], x[:2]]), padded)], samples=1)
    assert parts.positions == 9
    assert parts.nll_off == pytest.approx(whole.nll_off, rel=1e-12)
    assert parts.accuracy_off == pytest.approx(whole.accuracy_off)
    assert whole.kl == pytest.approx(0, abs=1e-12)
    assert whole.agreement == 1


def test_without_labels_the_gap_remains_and_the_scores_are_nan() -> None:
    model, (x, labels) = network(), data()
    torch.manual_seed(0)
    labelled = consistency_gap(model, [(x, labels)], samples=2)
    torch.manual_seed(0)
    bare = consistency_gap(model, [(x, None)], samples=2)
    assert (bare.kl, bare.agreement, bare.positions) == (labelled.kl, labelled.agreement, labelled.positions)
    assert all(math.isnan(v) for v in (bare.accuracy_off, bare.accuracy_averaged, bare.nll_off, bare.nll_averaged))


def test_the_gap_of_a_linear_model_falls_with_the_rate() -> None:
    x, labels = data()
    torch.manual_seed(0)
    gaps = [consistency_gap(network(rate), [(x, labels)], samples=64).kl for rate in (0.6, 0.2)]
    assert gaps[0] > 2 * gaps[1]


def test_flags_statistics_and_gradients_are_left_alone() -> None:
    model, (x, labels) = network(), data()
    model[0].eval()
    flags, state = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    consistency_gap(model, [(x, labels)], samples=2)
    assert [m.training for m in model.modules()] == flags
    torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())


def test_a_training_step_in_the_same_autocast_region_still_has_gradients() -> None:
    model, (x, labels) = network().float(), data()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        consistency_gap(model, [(x.float(), labels)], samples=1)
        model(x.float()).float().sum().backward()
    assert model[0].weight.grad is not None


def test_a_seed_repeats_the_result_and_the_generator_advances() -> None:
    model, batch = network(), data()
    torch.manual_seed(3)
    first, second = (consistency_gap(model, [batch], samples=2) for _ in range(2))
    torch.manual_seed(3)
    assert consistency_gap(model, [batch], samples=2) == first
    assert first != second


def test_impossible_classes_add_nothing() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.drop(x)
            return out.index_fill(1, torch.tensor([0]), -math.inf)

    gap = consistency_gap(Masked(), [(torch.ones(3, 4), torch.tensor([1, 2, 3]))], samples=3)
    assert 0 <= gap.kl < 1
    assert math.isfinite(gap.nll_off)


def test_a_mapping_hands_labels_to_a_model_that_takes_them() -> None:
    torch.manual_seed(0)
    config = BartConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=20
    )
    ids = torch.randint(4, 20, (2, 5))
    labels = ids.clone()
    labels[0, 3:] = -100
    gap = consistency_gap(BartForConditionalGeneration(config), [{"input_ids": ids, "labels": labels}], samples=2)
    assert gap.positions == 8
    assert gap.kl > 0


def test_a_mapping_keeps_labels_from_a_model_that_does_not_take_them() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"other": x, "logits": self.body(x)}

    x, labels = data()
    assert consistency_gap(Named(), [{"x": x, "labels": labels}], samples=1).positions == 20


def test_mistakes_are_named() -> None:
    model, (x, labels) = network(), data()
    with pytest.raises(ValueError, match="samples is 0"):
        consistency_gap(model, [(x, labels)], samples=0)
    with pytest.raises(ValueError, match=r"labels are \(20, 1\), but the logits \(20, 3\)"):
        consistency_gap(model, [(x, labels[:, None])])
    with pytest.raises(ValueError, match="no position counts"):
        consistency_gap(model, [(x, torch.full_like(labels, -100))], samples=1)
    with pytest.raises(ValueError, match="no position counts"):
        consistency_gap(model, [])
    with pytest.raises(TypeError, match="a batch is a Tensor; expected a pair"):
        consistency_gap(model, [x])
    with pytest.raises(TypeError, match="pass logits=<function"):
        consistency_gap(model, [(x, labels)], logits=lambda _: None)  # type: ignore[arg-type, return-value]
    assert consistency_gap(model, [(x, labels)], samples=1, logits=lambda out: out[:, :3]).positions == 20
