"""The memory of gradients: kept for the next one, shared by no two."""

from __future__ import annotations

import gc
import mmap
import threading

import pytest
import torch
from torch import Tensor

from rdrop import rdrop_loss
from rdrop.kernels import memory


@pytest.fixture(autouse=True)
def every_size_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the smallest gradient took memory fresh from the system."""
    monkeypatch.setattr(memory, "MAPPED", 0)
    memory.release()


def gradient(logits: Tensor, impl: str = "fused") -> Tensor:
    """That of a loss."""
    z = logits.detach().requires_grad_()
    loss = rdrop_loss(z, torch.zeros(logits.shape[1], dtype=torch.int64), impl=impl).loss  # type: ignore[arg-type]
    return torch.autograd.grad(loss, z)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_has_the_shape_and_dtype_of_the_logits(dtype: torch.dtype) -> None:
    logits = torch.randn(33, 4, 2).permute(2, 1, 0).to(dtype)
    found = memory.like(logits)
    assert (found.shape, found.dtype) == (logits.shape, dtype)
    assert found.is_contiguous()
    assert found.fill_(1).sum() == logits.numel()


def test_it_is_used_again_once_nobody_holds_it() -> None:
    logits = torch.randn(2, 30, 500)
    first = gradient(logits)
    place, values = first.data_ptr(), first.clone()
    second = gradient(logits)
    assert second.data_ptr() != place
    view = first[0, 3]
    del first
    third = gradient(2 * logits)  # a view still holds the first
    assert view.equal(values[0, 3])
    del view
    assert gradient(logits[:, :20]).data_ptr() == place
    del second, third


def test_smaller_gradients_fit_and_larger_ones_get_their_own() -> None:
    places = []
    for rows in (30, 10, 30, 60, 30):
        found = gradient(torch.randn(2, rows, 500))
        places.append(found.data_ptr())
        del found
    assert len(set(places[:3])) == 1
    assert places[3] == places[4]
    assert len(memory._kept) == 1
    memory.release()
    assert memory._kept == []


def test_the_largest_is_kept() -> None:
    large, small = torch.randn(2, 30, 500), torch.randn(2, 10, 500)
    both = [gradient(large), gradient(small)]
    place = both[0].data_ptr()
    del both[0]
    del both[0]
    assert gradient(large).data_ptr() == place


def test_gradients_that_stay_stay_right() -> None:
    """Accumulation over micro-batches, and a second loss before the first one's gradient is used."""
    torch.manual_seed(0)
    weight = torch.randn(8, 500, requires_grad=True)
    inputs = torch.randn(3, 2, 30, 8)
    labels = torch.zeros(30, dtype=torch.int64)
    for impl in ("fused", "reference"):
        losses = [rdrop_loss(x @ weight, labels, impl=impl).loss for x in inputs]
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        if impl == "fused":
            assert weight.grad is not None
            found, weight.grad = weight.grad, None
    assert weight.grad is not None
    torch.testing.assert_close(found, weight.grad)


def test_threads_do_not_get_the_same_memory() -> None:
    wrong = []

    def work(value: float) -> None:
        for _ in range(200):
            mine = memory.like(torch.empty(2, 30, 50)).fill_(value)
            if not (mine == value).all():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert not wrong


def test_where_the_system_takes_no_advice_all_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", -1, raising=False)
    assert gradient(torch.randn(2, 3, 5)).shape == (2, 3, 5)
