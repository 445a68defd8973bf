"""The kernel for CPUs: sizes, strides, formats, threads, what it refuses, and how exact it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from exactness import assert_as_exact_as_the_formulas, terms_and_gradient, views
from rdrop import RDropLoss, rdrop_loss
from rdrop.kernels import available, choose, native
from rdrop.kernels.inputs import Inputs
from rdrop.options import Objective

SOURCE = Path(native.__file__).parent / "_native.cpp"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))

pytestmark = pytest.mark.skipif(
    native.refusal() is not None and COMPILER is None, reason="no C++ compiler was there when rdrop was installed"
)


@pytest.fixture(params=native.INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set of this processor, in turn."""
    monkeypatch.setattr(native, "INSTRUCTION_SET", request.param)
    return str(request.param)


def test_it_was_built() -> None:
    """Where there is a compiler, there is the kernel."""
    assert native.refusal() is None
    assert native.INSTRUCTION_SET in available()["native"]


@pytest.mark.parametrize("classes", [*range(2, 36), 63, 64, 65, 1023, 1025, 2047, 5000])
def test_any_number_of_classes(instruction_set: str, classes: int) -> None:
    torch.manual_seed(classes)
    logits, labels = 3 * torch.randn(2, 5, classes), torch.randint(classes, (5,))
    assert_as_exact_as_the_formulas("native", logits, labels)
    assert_as_exact_as_the_formulas("native", logits, labels, label_smoothing=0.1, class_weight=torch.rand(classes))


def test_one_class_is_certain(instruction_set: str) -> None:
    labels = torch.zeros(5).long()
    for found in terms_and_gradient("native", torch.randn(3, 5, 1), labels, label_smoothing=0.1):
        assert found.abs().max() < 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("divergence", ["symmetric_kl", "kl", "js", "mse"])
@pytest.mark.parametrize("passes", [1, 2, 3, 16])
def test_every_divergence_and_number_of_passes(
    instruction_set: str, dtype: torch.dtype, divergence: Any, passes: int
) -> None:
    torch.manual_seed(passes)
    logits = (2 * torch.randn(passes, 6, 203)).to(dtype)
    labels = torch.randint(203, (6,))
    labels[2] = -100
    options = {"divergence": divergence, "alpha": 0.7}
    assert_as_exact_as_the_formulas("native", logits, labels, **options)
    assert_as_exact_as_the_formulas("native", logits, torch.rand(6, 203).softmax(-1), label_smoothing=0.2, **options)
    if passes > 1:
        assert_as_exact_as_the_formulas("native", logits, None, mask=torch.arange(6) < 4, **options)


@pytest.mark.parametrize("divergence", ["symmetric_kl", "mse"])
@pytest.mark.parametrize("distance", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("passes", [2, 3])
def test_passes_that_nearly_agree(divergence: Any, distance: float, passes: int) -> None:
    """A divergence far below one keeps its digits, also where a pass has an offset, which the softmax does not see."""
    torch.manual_seed(0)
    logits = 5 * torch.randn(1, 64, 1000) + distance * torch.randn(passes, 64, 1000)
    assert_as_exact_as_the_formulas("native", logits, None, divergence=divergence)
    logits[1] += 8
    assert_as_exact_as_the_formulas("native", logits, None, divergence=divergence)


def test_large_logits_and_long_rows() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0, 299_999])
    assert_as_exact_as_the_formulas("native", torch.randn(2, 2, 300_000), labels)
    assert_as_exact_as_the_formulas("native", 1e4 + 30 * torch.randn(2, 2, 3000), labels % 3000)


@pytest.mark.parametrize("divergence", ["symmetric_kl", "kl", "js", "mse"])
def test_what_is_no_number_is_not_hidden(instruction_set: str, divergence: Any) -> None:
    for value in (float("nan"), float("inf")):
        for at in (0, 17, 69):
            logits = torch.randn(2, 3, 70)
            logits[1, 1, at] = value
            out = rdrop_loss(logits, torch.zeros(3).long(), impl="native", divergence=divergence, reduction="none")
            assert out.task_loss.isnan().tolist() == [False, True, False]
            assert out.divergence.isnan().tolist() == [False, True, False]
    out = rdrop_loss(torch.full((2, 1, 5), -torch.inf), torch.tensor([0]), impl="native")
    assert out.loss.isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", views())
def test_any_strides(name: str, dtype: torch.dtype) -> None:
    logits = views(dtype)[name]
    labels = torch.randint(33, (4, 3)).T
    labels[0, 1] = -100
    found = terms_and_gradient("native", logits, labels, alpha=0.5)
    for got, want in zip(found, terms_and_gradient("native", logits.contiguous(), labels, alpha=0.5), strict=True):
        assert got.equal(want)
    five = torch.randn(2, 3, 2, 2, 2, 33)[:, ::2, :, ::2].transpose(2, 4)
    assert_as_exact_as_the_formulas("native", five, torch.randint(33, five.shape[1:-1]))


def test_rows_do_not_depend_on_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "PARALLEL", 0)
    logits, labels = torch.randn(2, 301, 77), torch.randint(77, (301,))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = terms_and_gradient("native", logits, labels)
        torch.set_num_threads(7)
        many = terms_and_gradient("native", logits, labels)
    finally:
        torch.set_num_threads(before)
    assert all(a.equal(b) for a, b in zip(one, many, strict=True))


def test_each_term_can_be_asked_for_alone() -> None:
    logits = torch.randn(2, 4, 9, requires_grad=True)
    labels = torch.tensor([0, 8, -100, 3])
    for term in range(3):
        for factor in (1.0, -3.0, 0.0):
            got, want = (
                torch.autograd.grad(factor * rdrop_loss(logits, labels, alpha=0.3, impl=impl)[term], logits)[0]
                for impl in ("native", "reference")
            )
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)


def test_backward_may_be_called_twice() -> None:
    logits = torch.randn(2, 4, 9, requires_grad=True)
    loss = rdrop_loss(logits, torch.tensor([0, 8, 1, 3]), impl="native").loss
    (once,) = torch.autograd.grad(loss, logits, retain_graph=True)
    assert torch.autograd.grad(loss, logits)[0].equal(once)


def test_second_derivatives_are_autograds() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    second = []
    for impl in ("native", "reference"):
        loss = rdrop_loss(logits, torch.tensor([0, 3, -100]), impl=impl).loss
        (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
        second.append(torch.autograd.grad(gradient.square().sum(), logits)[0])
    torch.testing.assert_close(*second)


def test_more_than_two_to_the_31_logits() -> None:
    """Offsets have 64 bits. Logits that were never written to take no memory, the gradient does, in bfloat16."""
    classes = 40_000
    rows = 2**31 // classes // 2 + 5
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 8 * 2**30:
        pytest.skip("less than 8 GiB of memory are free")
    logits = torch.zeros(2, rows, classes, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.full((rows,), -100)
    labels[0], labels[-1] = 1, classes - 1
    loss = rdrop_loss(logits, labels, impl="native").loss
    assert loss.item() == pytest.approx(torch.tensor(float(classes)).log().item())
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[1, -1, -1].item() == pytest.approx(-0.25, rel=1e-2)
    assert gradient[1, -1, -2].item() == pytest.approx(0.25 / classes, rel=1e-2)
    assert gradient[1, -2].count_nonzero() == 0


def test_a_label_that_is_no_class_is_named_with_its_position() -> None:
    for label in (5, -1):
        with pytest.raises(ValueError, match=rf"label of position 2 is {label}; expected a class id in 0\.\.4"):
            native.measure(Inputs(torch.zeros(2, 3, 5), torch.tensor([0, 1, label]), None, None, Objective()))


@pytest.mark.parametrize(
    ("logits", "options", "reason"),
    [
        (
            torch.zeros(2, 3, 4).double(),
            {},
            "the logits are torch.float64, and it has torch.float32 and torch.bfloat16",
        ),
        (torch.zeros(2, 3, 4, device="meta"), {}, "the logits are on meta, and it runs on the CPU"),
        (torch.zeros(17, 3, 4), {}, "there are 17 passes, and it has room for 16"),
        (torch.zeros(2, 3), {"kind": "regression"}, "it has the categorical kind alone, and this is regression"),
    ],
)
def test_what_it_cannot_do_is_said(logits: Tensor, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"impl='native' cannot be used: {reason}. Use impl='auto' or 'fused'"):
        rdrop_loss(logits, None, impl="native", **options)


def test_without_the_extension_all_else_works() -> None:
    """As after an installation without a compiler, in an interpreter of its own."""
    program = """
import sys
sys.modules["rdrop.kernels._native"] = None
import torch, rdrop
from rdrop.kernels import available
print(available()["native"])
print(rdrop.rdrop_loss(torch.zeros(2, 3, 4), torch.tensor([0, 1, 2])).loss.item())
rdrop.RDropLoss(impl="native")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "was not built when rdrop was installed" in done.stdout.splitlines()[0]
    assert float(done.stdout.splitlines()[1]) == pytest.approx(1.386294)
    assert done.stderr.splitlines()[-1].startswith("ValueError: impl='native' cannot be used: its extension was not")


def test_it_can_be_asked_for_in_the_module() -> None:
    assert RDropLoss(impl="native").impl == "native"
    assert choose("native", torch.zeros(2, 3, 4), objective=Objective()) == ("native", "asked for by name")


def test_memory_errors_and_undefined_behaviour_are_looked_for(tmp_path: Path) -> None:
    """The kernel, compiled with AddressSanitizer and UBSan, on arrays with guards around them."""
    if COMPILER is None:
        pytest.skip("there is no C++ compiler")
    script = Path(__file__).parent.parent / "native_under_sanitizers.py"
    done = subprocess.run(
        [sys.executable, str(script), COMPILER, str(SOURCE), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "calls without an error" in done.stdout
