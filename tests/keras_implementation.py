"""`rdrop.keras` for the contract of numbers, on the backend that `KERAS_BACKEND` names; torch where none is named."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

os.environ.setdefault("KERAS_BACKEND", "torch")


def keras_answer(logits: Array, labels: Array | None, options: dict[str, Any]) -> tuple[Array, Array, Array, Array]:
    """Loss, task loss, divergence and gradient. Keras takes seconds to import, so it waits until it is asked."""
    import keras

    return {"torch": _on_torch, "jax": _on_jax, "tensorflow": _on_tensorflow}[keras.backend.backend()](
        logits, labels, options
    )


def _on_torch(logits: Array, labels: Array | None, options: dict[str, Any]) -> tuple[Array, Array, Array, Array]:
    import torch

    from rdrop.keras import rdrop_loss

    z = torch.tensor(logits, requires_grad=True)
    out = rdrop_loss(z, labels, **options)
    if out.loss.requires_grad:
        out.loss.sum().backward()
    loss, task_loss, divergence = (term.detach().numpy() for term in out)
    return loss, task_loss, divergence, np.zeros_like(logits) if z.grad is None else z.grad.numpy()


def _on_jax(logits: Array, labels: Array | None, options: dict[str, Any]) -> tuple[Array, Array, Array, Array]:
    import jax

    from rdrop.keras import rdrop_loss

    def summed(z: Any) -> Any:
        out = rdrop_loss(z, labels, **options)
        return out.loss.sum(), out

    with jax.enable_x64(True):  # compiled: one by one its operations take longer
        gradient, out = jax.jit(jax.grad(summed, has_aux=True))(logits)
        loss, task_loss, divergence = map(np.asarray, out)
        return loss, task_loss, divergence, np.asarray(gradient)


def _on_tensorflow(logits: Array, labels: Array | None, options: dict[str, Any]) -> tuple[Array, Array, Array, Array]:
    import tensorflow

    from rdrop.keras import rdrop_loss

    z = tensorflow.constant(logits)
    with tensorflow.GradientTape() as tape:
        tape.watch(z)
        out = rdrop_loss(z, labels, **options)
        total = tensorflow.reduce_sum(out.loss)
    gradient = tape.gradient(total, z, unconnected_gradients="zero")
    loss, task_loss, divergence = (term.numpy() for term in out)
    return loss, task_loss, divergence, gradient.numpy()
