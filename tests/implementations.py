"""Every way to compute the objective, as functions on NumPy arrays, for the contract suites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt
import paddle
import torch

import rdrop
import rdrop.jax
import rdrop.paddle
from keras_implementation import keras_answer
from rdrop.kernels import native

Array = npt.NDArray[Any]


class Answer(NamedTuple):
    """The three numbers and the gradient of the (summed) loss with respect to the logits."""

    loss: Array
    task_loss: Array
    divergence: Array
    gradient: Array


Runner = Callable[[Array, Array | None, dict[str, Any]], Answer]


class Implementation(NamedTuple):
    """A way to compute the objective: on which numbers, for which kinds, and how exactly."""

    run: Runner
    dtype: Any = np.float64
    kinds: tuple[str, ...] = ("categorical", "binary", "regression")
    rtol: float = 0.0
    atol: float = 0.0

    def close(self, got: Array, want: Array, rtol: float, atol: float = 0.0, message: str = "") -> None:
        """Asserts that numbers agree to these bounds, or to what the implementation's numbers allow."""
        bounds = max(rtol, self.rtol), max(atol, self.atol)
        np.testing.assert_allclose(got, want, *bounds, err_msg=message)


def torch_runner(impl: Any, dtype: Any = np.float64, *, inplace: bool = False) -> Runner:
    """The torch implementation of this name, on logits of this dtype."""

    def run(logits: Array, labels: Array | None, options: dict[str, Any]) -> Answer:
        z = torch.tensor(logits.astype(dtype), requires_grad=True)
        tensors: dict[str, Any] = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        ids = None if labels is None else torch.tensor(labels)
        out = rdrop.rdrop_loss(z, ids, impl=impl, inplace=inplace, **tensors)
        if out.loss.requires_grad:
            out.loss.sum().backward()  # type: ignore[no-untyped-call]
        gradient = torch.zeros_like(z) if z.grad is None else z.grad
        loss, task_loss, divergence = (term.detach().numpy() for term in out)
        return Answer(loss, task_loss, divergence, gradient.numpy())

    return run


def native_runner(instruction_set: str) -> Runner:
    """The kernel for CPUs with one of its instruction sets."""
    run = torch_runner("native", np.float32)

    def with_set(logits: Array, labels: Array | None, options: dict[str, Any]) -> Answer:
        before, native.INSTRUCTION_SET = native.INSTRUCTION_SET, instruction_set
        try:
            return run(logits, labels, options)
        finally:
            native.INSTRUCTION_SET = before

    return with_set


def triton_runner(logits: Array, labels: Array | None, options: dict[str, Any]) -> Answer:
    """The kernel in Triton; without a GPU in Triton's interpreter, whose NumPy tells of infinities."""
    with np.errstate(all="ignore"):
        return torch_runner("triton", np.float32)(logits, labels, options)


def jax_runner(logits: Array, labels: Array | None, options: dict[str, Any]) -> Answer:
    """`rdrop.jax`, in its widest numbers."""

    def terms(z: Any) -> Any:
        return rdrop.jax.rdrop_loss(z, labels, **options)

    with jax.enable_x64(True):
        z = jax.numpy.asarray(logits)
        gradient = jax.grad(lambda z: terms(z).loss.sum())(z)
        loss, task_loss, divergence = map(np.asarray, terms(z))
        return Answer(loss, task_loss, divergence, np.asarray(gradient))


def paddle_runner(logits: Array, labels: Array | None, options: dict[str, Any]) -> Answer:
    """`rdrop.paddle`."""
    z = paddle.to_tensor(logits, stop_gradient=False)
    tensors: dict[str, Any] = {k: paddle.to_tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    out = rdrop.paddle.rdrop_loss(z, None if labels is None else paddle.to_tensor(labels), **tensors)
    if not out.loss.stop_gradient:
        out.loss.sum().backward()
    gradient = np.zeros_like(logits) if z.grad is None else z.grad.numpy()
    loss, task_loss, divergence = (term.numpy() for term in out)
    return Answer(loss, task_loss, divergence, gradient)


def keras_runner(logits: Array, labels: Array | None, options: dict[str, Any]) -> Answer:
    """`rdrop.keras` on its torch backend; its other backends have processes of their own in its tests."""
    return Answer(*keras_answer(logits, labels, options))


IMPLEMENTATIONS = {
    **{f"torch-{name}": Implementation(torch_runner(name)) for name in ("reference", "fused", "auto")},
    **{
        f"native-{name}": Implementation(native_runner(name), np.float32, ("categorical",), rtol=3e-6, atol=3e-7)
        for name in native.INSTRUCTION_SETS
    },
    "torch-in-place": Implementation(torch_runner("auto", inplace=True)),
    "jax": Implementation(jax_runner),
    "keras": Implementation(keras_runner),
    "paddle": Implementation(paddle_runner),
    "triton": Implementation(triton_runner, np.float32, rtol=3e-6, atol=3e-7),
}
