"""The objective's laws, its traps, its precision and its refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from rdrop import RDropLoss, divergence, rdrop_loss, schedule
from rdrop.errors import ProbabilitiesWarning
from rdrop.kernels import IMPLEMENTATIONS
from rdrop.options import Divergence

IMPLS: Any = [name for name in IMPLEMENTATIONS if name in ("reference", "fused")]  # the others have no float64
DIVERGENCES: list[Divergence] = ["symmetric_kl", "kl", "js", "mse"]


def batch(
    seed: int = 0, passes: int = 2, n: int = 6, classes: int = 5, dtype: Any = torch.float64
) -> tuple[Tensor, Tensor]:
    """Logits `(M, n, C)` that want a gradient, and class ids `(n,)`."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(passes, n, classes, generator=generator, dtype=dtype)
    return logits.requires_grad_(), torch.randint(classes, (n,), generator=generator)


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    """Gradient of a scalar."""
    return torch.autograd.grad(loss, logits)[0]


# Laws


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    passes=st.integers(1, 4),
    n=st.integers(1, 5),
    classes=st.integers(1, 9),
    name=st.sampled_from(DIVERGENCES),
    impl=st.sampled_from(IMPLS),
)
def test_laws_of_the_divergence(seed: int, passes: int, n: int, classes: int, name: Divergence, impl: Any) -> None:
    """Never negative; 0 with gradient 0 for equal passes; blind to a shift of a row and to the order of classes."""
    logits, _ = batch(seed, passes, n, classes)
    value = divergence(logits, divergence=name, reduction="none", impl=impl)
    assert value.shape == (n,)
    assert value.min() >= -1e-14
    equal = logits[:1].detach().repeat(passes, 1, 1).requires_grad_()
    none = divergence(equal, divergence=name, impl=impl)
    torch.testing.assert_close(none, torch.zeros_like(none), atol=1e-14, rtol=0)
    if passes > 1:
        torch.testing.assert_close(gradient(none, equal), torch.zeros_like(equal), atol=1e-14, rtol=0)
    shifted = logits + torch.randn(passes, n, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(divergence(shifted, divergence=name, reduction="none", impl=impl), value)
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(divergence(logits[..., order], divergence=name, reduction="none", impl=impl), value)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", ["symmetric_kl", "js", "mse"])
def test_symmetric_in_value_and_gradient(impl: Any, name: Divergence) -> None:
    logits, _ = batch(passes=3)
    turned = logits.detach().flip(0).requires_grad_()
    here, there = (divergence(z, divergence=name, impl=impl) for z in (logits, turned))
    torch.testing.assert_close(here, there)
    torch.testing.assert_close(gradient(here, logits), gradient(there, turned).flip(0))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("passes", [1, 2, 4])
def test_alpha_0_is_the_mean_cross_entropy(impl: Any, passes: int) -> None:
    logits, labels = batch(passes=passes)
    out = rdrop_loss(logits, labels, alpha=0.0, impl=impl)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.repeat(passes))
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(gradient(out.loss, logits), gradient(expected, logits))


@pytest.mark.parametrize("impl", IMPLS)
def test_options_of_the_task_loss_are_torchs(impl: Any) -> None:
    """Per position, class weights and label smoothing are those of `torch.nn.functional.cross_entropy`."""
    logits, labels = batch(passes=1)
    weight = torch.rand(5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for class_weight, smoothing in ((weight, 0.0), (None, 0.2), (weight, 0.2)):
        options: Any = {"label_smoothing": smoothing, "reduction": "none"}
        out = rdrop_loss(logits, labels, class_weight=class_weight, impl=impl, **options)
        expected = F.cross_entropy(logits[0], labels, weight=class_weight, **options)
        torch.testing.assert_close(out.task_loss, expected)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_mask_equals_removal(impl: Any, name: Divergence) -> None:
    logits, labels = batch()
    mask = torch.tensor([True, False, True, True, False, True])
    masked = rdrop_loss(logits, labels, mask=mask, divergence=name, impl=impl)
    removed = rdrop_loss(logits[:, mask], labels[mask], divergence=name, impl=impl)
    for got, expected in zip(masked, removed, strict=True):
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradient(masked.loss, logits), gradient(removed.loss, logits))


@pytest.mark.parametrize("impl", IMPLS)
def test_all_three_terms_have_gradients(impl: Any) -> None:
    logits, labels = batch()
    total, task, distance = (gradient(rdrop_loss(logits, labels, alpha=0.7, impl=impl)[i], logits) for i in range(3))
    assert task.abs().min() > 0
    torch.testing.assert_close(total, task + 0.7 * distance)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("passes", [2, 3])
def test_gradcheck(impl: Any, name: Divergence, passes: int) -> None:
    logits, labels = batch(passes=passes, n=3, classes=4)
    mask = torch.tensor([True, True, False])

    def terms(z: Tensor) -> tuple[Tensor, ...]:
        return rdrop_loss(z, labels, divergence=name, label_smoothing=0.1, mask=mask, reduction="none", impl=impl)

    assert torch.autograd.gradcheck(terms, logits)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kind", ["binary", "regression"])
def test_gradcheck_of_the_other_kinds(impl: Any, kind: Any) -> None:
    logits, _ = batch(passes=3, n=2, classes=3)
    labels = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: rdrop_loss(z, labels, kind=kind, impl=impl)[:], logits)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_normalizer_makes_micro_batches_add_up_to_the_big_batch(impl: Any) -> None:
    """Uneven micro-batches, or ranks: with the count of all of them, the gradients add up exactly."""
    logits, labels = batch(n=12)
    labels[[1, 2, 3, 8]] = -100
    whole = gradient(rdrop_loss(logits, labels, impl=impl).loss, logits)
    count = (labels != -100).sum()
    total = torch.zeros_like(whole)
    for part in (slice(0, 4), slice(4, 5), slice(5, 12)):
        for normalizer in (count, int(count)):
            out = rdrop_loss(logits[:, part], labels[part], normalizer=normalizer, impl=impl)
            total += gradient(out.loss, logits) / 2
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("impl", IMPLS)
def test_positions_may_have_any_number_of_axes_and_any_strides(impl: Any) -> None:
    """Channels-first segmentation logits, a shifted view and an expanded batch give what their copies give."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 5, 4, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.randint(5, (3, 4, 6), generator=generator)
    for logits, y in (
        (image.movedim(2, -1), labels),
        (image.movedim(2, -1)[:, :, :-1, 1:], labels[:, :-1, 1:]),
        (image.movedim(2, -1)[:, :1].expand(2, 3, 4, 6, 5), labels),
    ):
        here = rdrop_loss(logits, y, impl=impl)
        flat = rdrop_loss(logits.reshape(2, -1, 5), y.reshape(-1), impl=impl)
        torch.testing.assert_close(here.loss, flat.loss)
        torch.testing.assert_close(gradient(here.loss, image), gradient(flat.loss, image))


@pytest.mark.parametrize("impl", IMPLS)
def test_ids_of_any_integer_dtype_and_other_ignored_values(impl: Any) -> None:
    """Segmentation labels are often bytes with 255 for "do not count"; -100 must not wrap around to 156."""
    logits, labels = batch(classes=200)
    labels[:3] = torch.tensor([156, 199, 0])
    expected = rdrop_loss(logits, labels, impl=impl)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        torch.testing.assert_close(tuple(rdrop_loss(logits, labels.to(dtype), impl=impl)), tuple(expected))
    labels[1] = 255
    counted = torch.arange(6) != 1
    without = rdrop_loss(logits[:, counted], labels[counted], impl=impl)
    found = rdrop_loss(logits, labels.to(torch.uint8), ignore_index=255, impl=impl)
    torch.testing.assert_close(tuple(found), tuple(without))


# Precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize(("scale", "offset", "apart"), [(1, 0, 1), (8, 0, 1), (2, 300, 1), (2, 0, 1e-2), (30, 0, 1)])
def test_fused_errs_no_more_than_the_reference(
    dtype: torch.dtype, name: Divergence, scale: float, offset: float, apart: float
) -> None:
    """Truth in float64 on the rounded inputs; the reference in the tested dtype sets the margin."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1, 40, 257, generator=generator)
    logits = ((base + apart * torch.randn(2, 40, 257, generator=generator)) * scale + offset).to(dtype)
    labels = torch.randint(257, (40,), generator=generator)
    results = {}
    for impl, z in (("truth", logits.double()), ("reference", logits), ("fused", logits)):
        z = z.detach().requires_grad_()
        named: Any = "reference" if impl == "truth" else impl
        out = rdrop_loss(z, labels, divergence=name, reduction="none", impl=named)
        found = gradient(out.loss.mean(), z)
        results[impl] = [x.detach().double() for x in (out.loss, out.divergence, found)]
    for what, truth, reference, fused in zip(("loss", "divergence", "gradient"), *results.values(), strict=True):
        allowed = 1.5 * (reference - truth).abs().max() + 4 * torch.finfo(torch.float32).eps * truth.abs().max()
        worst = (fused - truth).abs().max()
        assert worst <= allowed, f"{what}: fused {worst:.3e}, reference {(reference - truth).abs().max():.3e}"


@pytest.mark.parametrize("impl", IMPLS)
def test_sums_run_in_float32_or_better(impl: Any) -> None:
    logits, labels = batch(dtype=torch.bfloat16)
    assert rdrop_loss(logits, labels, impl=impl).loss.dtype == torch.float32
    assert gradient(rdrop_loss(logits, labels, impl=impl).loss, logits).dtype == torch.bfloat16
    logits, labels = batch(dtype=torch.float64)
    assert rdrop_loss(logits, labels, impl=impl).loss.dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert rdrop_loss(logits.float(), labels, impl=impl).loss.dtype == torch.float32


@pytest.mark.parametrize("impl", IMPLS)
def test_nothing_is_read_on_the_host(impl: Any) -> None:
    """On the meta device there are no values: a program that looks at one fails."""
    logits = torch.empty(2, 6, 5, device="meta", requires_grad=True)
    labels, mask = torch.empty(6, device="meta", dtype=torch.long), torch.empty(6, device="meta", dtype=torch.bool)
    for divergence_ in DIVERGENCES:
        out = rdrop_loss(
            logits, labels, mask=mask, divergence=divergence_, label_smoothing=0.1, normalizer=mask.sum(), impl=impl
        )
        out.loss.backward()  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="meta"):
        out.loss.item()


def test_compiles_into_one_graph() -> None:
    logits, labels = batch(dtype=torch.float32)
    compiled = torch.compile(rdrop_loss, fullgraph=True, backend="aot_eager")
    out = compiled(logits, labels, alpha=0.5, label_smoothing=0.1)
    torch.testing.assert_close(out.loss, rdrop_loss(logits, labels, alpha=0.5, label_smoothing=0.1).loss)
    expected = gradient(rdrop_loss(logits, labels, alpha=0.5, label_smoothing=0.1).loss, logits)
    torch.testing.assert_close(gradient(out.loss, logits), expected)


def test_gradients_with_respect_to_labels_and_weights_are_autograds() -> None:
    logits, _ = batch()
    soft = torch.full((6, 5), 0.2, dtype=torch.float64, requires_grad=True)
    rdrop_loss(logits, soft).loss.backward()  # type: ignore[no-untyped-call]
    assert soft.grad is not None
    assert soft.grad.abs().min() > 0
    with pytest.raises(ValueError, match="labels require a gradient, and impl='fused' has one for the logits alone"):
        rdrop_loss(logits, soft, impl="fused")


def test_rows_work_under_vmap() -> None:
    """Where nothing is summed, no value is looked at."""
    logits, labels = torch.randn(3, 2, 4), torch.randn(3, 4)

    def rows(z: Tensor, y: Tensor) -> Tensor:
        return rdrop_loss(z, y, kind="regression", reduction="none", impl="reference").loss

    one_by_one = torch.stack([rows(z, y) for z, y in zip(logits, labels, strict=True)])
    torch.testing.assert_close(torch.func.vmap(rows)(logits, labels), one_by_one)


def test_works_under_torch_func_grad() -> None:
    logits, labels = batch()
    for impl in IMPLS:
        found = torch.func.grad(lambda z: rdrop_loss(z, labels, impl=impl).loss)(logits.detach())  # noqa: B023
        torch.testing.assert_close(found, gradient(rdrop_loss(logits, labels).loss, logits))


# The traps of public R-Drop code


@pytest.mark.parametrize("impl", IMPLS)
def test_trap_01_the_divergence_takes_logits_and_is_a_divergence(impl: Any) -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.1, 0.6, 0.3])
    expected = 0.5 * ((p * (p / q).log()).sum() + (q * (q / p).log()).sum())
    logits = torch.stack((p.log() + 3, q.log() - 1)).unsqueeze(1)
    torch.testing.assert_close(divergence(logits, impl=impl), expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_trap_02_the_number_of_classes_does_not_scale_the_divergence(impl: Any) -> None:
    logits, _ = batch()
    wide = F.pad(logits, (0, 95), value=-1e4)
    torch.testing.assert_close(divergence(wide, impl=impl), divergence(logits, impl=impl))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("copies", [2, 8])
def test_trap_03_the_size_of_the_batch_does_not_scale_the_divergence(impl: Any, copies: int) -> None:
    logits, labels = batch()
    once = rdrop_loss(logits, labels, impl=impl)
    more = rdrop_loss(logits.repeat(1, copies, 1), labels.repeat(copies), impl=impl)
    torch.testing.assert_close(tuple(more), tuple(once))


@pytest.mark.parametrize("impl", IMPLS)
def test_trap_04_and_05_no_factor_and_no_pass_is_lost(impl: Any) -> None:
    logits, labels = batch()
    out = rdrop_loss(logits, labels, alpha=3.0, impl=impl)
    first, second = (F.cross_entropy(z, labels) for z in logits)
    log_p, log_q = logits.log_softmax(-1)
    forward = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    backward = F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")
    torch.testing.assert_close(out.task_loss, (first + second) / 2)
    torch.testing.assert_close(out.divergence, (forward + backward) / 2)
    torch.testing.assert_close(out.loss, (first + second) / 2 + 3 * (forward + backward) / 2)


@pytest.mark.parametrize("impl", IMPLS)
def test_trap_06_and_07_true_means_that_a_position_counts(impl: Any) -> None:
    logits, labels = batch()
    only = torch.zeros(6, dtype=torch.bool)
    only[2] = True
    out = rdrop_loss(logits, labels, mask=only, impl=impl)
    torch.testing.assert_close(tuple(out), tuple(rdrop_loss(logits[:, 2:3], labels[2:3], impl=impl)))
    found = gradient(out.loss, logits).abs().sum((0, 2))
    assert found[2] > 0
    assert found[~only].max() == 0
    with pytest.raises(TypeError, match=r"mask has dtype torch\.float32; expected bool"):
        rdrop_loss(logits, labels, mask=only.float(), impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_trap_08_both_terms_are_means_over_the_same_positions(impl: Any) -> None:
    logits, labels = batch()
    labels[[0, 4]] = -100
    mask = torch.tensor([1, 1, 0, 1, 1, 1])
    both = torch.tensor([False, True, False, True, False, True])
    out = rdrop_loss(logits, labels, mask=mask, impl=impl)
    torch.testing.assert_close(tuple(out), tuple(rdrop_loss(logits[:, both], labels[both], impl=impl)))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_trap_14_impossible_classes_give_no_nan(impl: Any, name: Divergence) -> None:
    logits, _ = batch()
    cut = logits.detach().index_fill(-1, torch.tensor([1, 3]), -math.inf).requires_grad_()
    labels = torch.tensor([0, 2, 4, 0, 2, 4])
    out = rdrop_loss(cut, labels, divergence=name, label_smoothing=0.1, impl=impl)
    kept = logits.detach()[..., [0, 2, 4]].requires_grad_()
    expected = rdrop_loss(kept, labels // 2, divergence=name, label_smoothing=0.1, impl=impl)
    torch.testing.assert_close(tuple(out), tuple(expected))
    found = gradient(out.loss, cut)
    torch.testing.assert_close(found[..., [0, 2, 4]], gradient(expected.loss, kept))
    assert found[..., [1, 3]].abs().max() == 0


@pytest.mark.parametrize("impl", IMPLS)
def test_trap_15_gradients_flow_into_every_pass(impl: Any) -> None:
    logits, _ = batch(passes=3)
    found = gradient(divergence(logits, impl=impl), logits)
    assert found.abs().amax((1, 2)).min() > 0


@pytest.mark.parametrize("kind", ["regression", "binary"])
def test_trap_16_shapes_never_broadcast(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"labels have shape \(6,\); logits \(2, 6, 1\)"):
        rdrop_loss(torch.randn(2, 6, 1), torch.randn(6), kind=kind)
    with pytest.raises(ValueError, match=r"mask has shape \(6, 1\); expected one entry for each position, \(6,\)"):
        rdrop_loss(torch.randn(2, 6), torch.randn(6), kind=kind, mask=torch.ones(6, 1, dtype=torch.bool))


def test_trap_18_the_callers_tensors_are_not_changed() -> None:
    logits, labels = batch()
    labels[0] = -100
    mask = torch.ones(6, dtype=torch.bool)
    before = [x.clone() for x in (logits, labels, mask)]
    for impl in IMPLS:
        for name in DIVERGENCES:
            rdrop_loss(logits, labels, mask=mask, divergence=name, impl=impl).loss.backward()  # type: ignore[no-untyped-call]
    for now, then in zip((logits, labels, mask), before, strict=True):
        assert torch.equal(now, then)


def test_trap_19_probabilities_are_noticed() -> None:
    logits, labels = batch()
    with pytest.warns(ProbabilitiesWarning, match="look like probabilities"):
        rdrop_loss(logits.softmax(-1), labels)


def test_trap_20_alpha_is_any_number_and_never_lost() -> None:
    logits, labels = batch()
    out = rdrop_loss(logits, labels, alpha=0.37)
    torch.testing.assert_close(out.loss - out.task_loss, 0.37 * out.divergence)
    learned = torch.tensor(0.37, dtype=torch.float64, requires_grad=True)
    tensor = rdrop_loss(logits, labels, alpha=learned)
    torch.testing.assert_close(tensor.loss, out.loss)
    torch.testing.assert_close(gradient(tensor.loss, learned), out.divergence)
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"alpha is .*; expected a finite number of at least 0"):
            rdrop_loss(logits, labels, alpha=wrong)


@pytest.mark.parametrize("impl", IMPLS)
def test_trap_21_half_precision_loses_no_mass(impl: Any) -> None:
    """30,000 small terms: summed in bfloat16 the divergence would be off by several per cent."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 30_000, generator=generator).bfloat16()
    truth = divergence(logits.double(), impl="reference")
    torch.testing.assert_close(divergence(logits, impl=impl).double(), truth, rtol=1e-5, atol=0)


@pytest.mark.parametrize("impl", IMPLS)
def test_trap_22_adaptive_softmax_needs_the_whole_distribution(impl: Any) -> None:
    """The log-probabilities of all classes are logits; the divergences of head and tails do not add up to it."""
    torch.manual_seed(0)
    head = torch.nn.AdaptiveLogSoftmaxWithLoss(8, 12, cutoffs=[4, 8], div_value=2.0).double()
    hidden, labels = torch.randn(2, 5, 8, dtype=torch.float64), torch.randint(12, (5,))
    log_p = torch.stack([head.log_prob(h) for h in hidden])
    out = rdrop_loss(log_p, labels, impl=impl)
    torch.testing.assert_close(out.task_loss, sum(head(h, labels).loss for h in hidden) / 2)
    p, q = log_p.exp()
    whole = 0.5 * ((p - q) * (log_p[0] - log_p[1])).sum(-1).mean()
    torch.testing.assert_close(out.divergence, whole)
    parts = [torch.stack([head.head(h) for h in hidden])]
    parts += [torch.stack([tail(h) for h in hidden]) for tail in head.tail]
    assert not torch.isclose(sum(divergence(z, impl=impl) for z in parts), whole, rtol=0.05)  # type: ignore[arg-type]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kind", ["categorical", "binary", "regression"])
def test_trap_23_nothing_to_count_is_a_zero_with_a_graph(impl: Any, kind: Any) -> None:
    logits = torch.full((2, 3, 4), math.nan, requires_grad=True)
    labels = torch.full((3,) if kind == "categorical" else (3, 4), -100)
    for normalizer in (None, torch.tensor(0)):
        out = rdrop_loss(logits, labels, kind=kind, normalizer=normalizer, impl=impl)
        assert [term.item() for term in out] == [0, 0, 0]
        assert gradient(out.loss, logits).abs().max() == 0


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logits": torch.zeros(6, 5)}, r"logits have shape \(6, 5\); expected \(M, B, \.\.\., C\)"),
        ({"logits": torch.zeros(2, 6, 0)}, "expected at least one class"),
        ({"labels": torch.zeros(5, dtype=torch.long)}, r"labels have shape \(5,\).*need labels of shape \(6,\)"),
        ({"labels": torch.zeros(6)}, "class ids have an integer dtype"),
        ({"labels": torch.tensor([0, 1, 2, 3, 4, 5])}, r"labels\[5\] is 5; expected a class id in 0\.\.4"),
        ({"labels": torch.tensor([0, -1, 2, 3, 4, 4])}, r"labels\[1\] is -1; expected a class id in 0\.\.4"),
        ({"class_weight": torch.ones(4)}, r"class_weight has shape \(4,\); expected \(5,\)"),
        ({"mask": torch.ones(2, 6, dtype=torch.bool)}, r"mask has shape \(2, 6\)"),
        ({"kind": "Categorical"}, "kind is 'Categorical'; expected one of 'categorical', 'binary', 'regression'"),
        ({"divergence": "kld"}, "divergence is 'kld'; expected one of 'symmetric_kl', 'kl', 'js', 'mse'"),
        ({"stop_gradient": "second"}, "stop_gradient is 'second'; expected one of 'first', 'rest'"),
        ({"reduction": "batchmean"}, "reduction is 'batchmean'; expected one of 'mean', 'sum', 'none'"),
        ({"impl": "cuda"}, "impl is 'cuda'; expected one of 'auto', 'reference', 'fused'"),
        ({"label_smoothing": 1.5}, "label_smoothing is 1.5; expected a number in 0..1"),
        ({"normalizer": -2}, "normalizer is -2; expected a count of at least 0"),
        ({"normalizer": 2, "reduction": "sum"}, "normalizer is given and reduction is 'sum'"),
        ({"mask": torch.ones(6, dtype=torch.bool, device="meta")}, "mask are on meta and logits on cpu"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    good = {"logits": torch.randn(2, 6, 5), "labels": torch.zeros(6, dtype=torch.long)}
    with pytest.raises(ValueError, match=message):
        rdrop_loss(**(good | arguments))


def test_regression_has_no_classes() -> None:
    values = torch.randn(2, 6)
    with pytest.raises(ValueError, match="regression has no classes to smooth over"):
        rdrop_loss(values, values[0], kind="regression", label_smoothing=0.1)
    with pytest.raises(ValueError, match="divergence is 'js'; regression compares values"):
        rdrop_loss(values, values[0], kind="regression", divergence="js")
    with pytest.raises(TypeError, match=r"logits have dtype torch\.int64"):
        rdrop_loss(torch.ones(2, 6, dtype=torch.long), values[0], kind="regression")


# The module


def test_module_is_the_function_with_a_scheduled_alpha() -> None:
    logits, labels = batch()
    weight = torch.rand(5, dtype=torch.float64)
    criterion = RDropLoss(schedule.linear_decay(4.0, 4), class_weight=weight, label_smoothing=0.1, impl="fused")
    for alpha in (4.0, 3.0):
        assert criterion.current_alpha == alpha
        expected = rdrop_loss(logits, labels, alpha=alpha, class_weight=weight, label_smoothing=0.1)
        torch.testing.assert_close(tuple(criterion(logits, labels)), tuple(expected))
        criterion.step()
    again = RDropLoss(schedule.linear_decay(4.0, 4), class_weight=torch.zeros(5, dtype=torch.float64))
    again.load_state_dict(criterion.state_dict())
    assert again.current_alpha == 2.0
    assert again.class_weight is not None
    assert again.class_weight.equal(weight)
    assert "alpha=2.0" in repr(again)


def test_module_refuses_impossible_options_when_it_is_built() -> None:
    with pytest.raises(ValueError, match="impl is 'fast'"):
        RDropLoss(impl="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reduction is 'avg'"):
        RDropLoss(reduction="avg")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="alpha is -1"):
        RDropLoss(-1.0)


@pytest.mark.parametrize("ignore_index", [0, 1, 3, -100])
def test_unsigned_labels_are_ignored_where_they_are_asked_to_be(ignore_index: int) -> None:
    logits, labels = torch.randn(2, 6, 5), torch.tensor([0, 1, 2, 3, 4, 1])
    found = rdrop_loss(logits, labels.to(torch.uint8), ignore_index=ignore_index)
    torch.testing.assert_close(found, rdrop_loss(logits, labels, ignore_index=ignore_index))
