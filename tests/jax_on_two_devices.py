"""The objective of a batch that lies on two devices; a program of its own, as JAX counts its devices when it starts."""

from __future__ import annotations

import os
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rdrop.jax import rdrop_loss

SPEC: Any = PartitionSpec  # untyped


def main() -> None:
    """Compares a sharded step with a whole one."""
    assert len(jax.devices()) == 2
    mesh = jax.make_mesh((2,), ("batch",))
    logits = jax.random.normal(jax.random.key(0), (2, 8, 5))
    labels = jnp.array([0, 1, -100, 3, 4, -100, 1, 0])

    def loss(z: jax.Array, y: jax.Array) -> jax.Array:
        return rdrop_loss(z, y, alpha=2.0).loss

    step = jax.jit(jax.value_and_grad(loss))
    value, gradient = step(logits, labels)
    split = NamedSharding(mesh, SPEC(None, "batch"))
    there = step(jax.device_put(logits, split), jax.device_put(labels, NamedSharding(mesh, SPEC("batch"))))
    assert len(there[1].sharding.device_set) == 2
    np.testing.assert_allclose(there[0], value, rtol=1e-6)
    np.testing.assert_allclose(there[1], gradient, rtol=1e-5, atol=1e-7)


if __name__ == "__main__":
    main()
