"""The objective under JAX's transformations; its numbers are held by the contract suite."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rdrop.jax import divergence, forward_passes, rdrop_loss

# In NumPy: JAX starts its threads with its first array, and other tests fork processes.
Z: Any = np.random.default_rng(1).normal(size=(2, 6, 5)).astype(np.float32)
Y = np.array([0, 4, -100, 2, 1, 3])


def loss(z: jax.Array, alpha: Any = 2.0) -> jax.Array:
    return rdrop_loss(z, Y, alpha=alpha, label_smoothing=0.1).loss


@pytest.mark.shows("JAX", "compiled", "schedule")
def test_compiled_it_gives_the_same_also_with_an_alpha_that_is_traced() -> None:
    np.testing.assert_allclose(jax.jit(loss)(Z, 3.0), loss(Z, 3.0), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(Z, 3.0), jax.grad(loss)(Z, 3.0), rtol=1e-5, atol=1e-7)


def test_over_a_batch_of_batches_it_is_each_of_them() -> None:
    many = jax.random.normal(jax.random.key(2), (3, *Z.shape))
    np.testing.assert_allclose(jax.vmap(loss)(many), jnp.stack([loss(z) for z in many]), rtol=1e-6)


def test_second_derivatives_and_forward_mode_agree_with_reverse_mode() -> None:
    direction = jax.random.normal(jax.random.key(3), Z.shape)
    forward = jax.jvp(loss, (Z,), (direction,))[1]
    np.testing.assert_allclose(forward, (jax.grad(loss)(Z) * direction).sum(), rtol=1e-5)
    curvature = jax.jvp(jax.grad(loss), (Z,), (direction,))[1]
    step = 1e-2
    numeric = (jax.grad(loss)(Z + step * direction) - jax.grad(loss)(Z - step * direction)) / (2 * step)
    np.testing.assert_allclose(curvature, numeric, atol=2e-3)


@pytest.mark.shows("JAX", "steps")
def test_a_training_in_a_scan_is_that_of_a_loop() -> None:
    def step(z: jax.Array, alpha: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(z, alpha)
        return z - 0.5 * gradient, value

    alphas = jnp.linspace(0.0, 2.0, 4)
    last, values = jax.lax.scan(step, Z, alphas)
    z, expected = Z, []
    for alpha in alphas:
        z, value = step(z, alpha)
        expected.append(value)
    np.testing.assert_allclose(last, z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values, jnp.stack(expected), rtol=1e-6)
    assert values[0] > 0


@pytest.mark.shows("JAX", "processes")
def test_over_two_devices_it_is_that_of_one() -> None:
    program = Path(__file__).with_name("jax_on_two_devices.py")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.shows("JAX", "mixed precision")
def test_half_precision_is_computed_in_single(dtype: Any) -> None:
    half = Z.astype(dtype)
    out = rdrop_loss(half, Y)
    assert out.loss.dtype == jnp.float32
    np.testing.assert_allclose(out.loss, rdrop_loss(half.astype(jnp.float32), Y).loss, rtol=1e-6)
    assert jax.grad(loss)(half).dtype == dtype


def test_impossible_classes_leave_gradients_finite_under_jit() -> None:
    padded = jnp.concatenate([Z, jnp.full((2, 6, 3), -jnp.inf)], -1)
    for kind in ("symmetric_kl", "kl", "js", "mse"):
        options: Any = {"divergence": kind, "label_smoothing": 0.1}
        gradient = jax.jit(jax.grad(lambda z, options=options: rdrop_loss(z, Y, **options).loss))(padded)
        expected = jax.grad(lambda z, options=options: rdrop_loss(z, Y, **options).loss)(Z)
        np.testing.assert_allclose(gradient[..., :5], expected, rtol=1e-5, atol=1e-7)
        assert not gradient[..., 5:].any()


def test_every_pass_has_a_key_of_its_own_and_shares_what_needs_none() -> None:
    calls = []

    def apply(key: jax.Array, x: jax.Array, weight: jax.Array) -> dict[str, jax.Array]:
        calls.append(1)
        trunk = x @ weight
        return {"logits": trunk * jax.random.bernoulli(key, 0.5, trunk.shape), "trunk": trunk}

    x, weight = jnp.ones((4, 3)), jnp.ones((3, 3))
    key = jax.random.key(0)
    out = forward_passes(apply, key, x, weight, passes=3)
    assert out["logits"].shape == (3, 4, 3)
    assert len(calls) == 1
    for index, each in enumerate(jax.random.split(key, 3)):
        np.testing.assert_array_equal(out["logits"][index], apply(each, x, weight)["logits"])
    assert not (out["logits"][0] == out["logits"][1]).all()
    program = str(jax.make_jaxpr(lambda key: forward_passes(apply, key, x, weight, passes=3)["logits"])(key))
    assert program.count("dot_general") == 1
    assert "f32[4,3] = dot_general" in program  # of one batch, and not of three


class Normed(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.norm = nnx.Linear(3, 8, rngs=rngs), nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout, self.last = nnx.Dropout(0.5), nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs) -> jax.Array:
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x))), rngs=rngs))


@pytest.mark.shows("JAX", "BatchNorm")
def test_a_network_with_running_statistics_takes_the_repeated_batch() -> None:
    """In a compiled step with gradients, statistics move as in one plain call, as both halves are alike there."""
    x, labels = jnp.asarray(Z[0, :, :3]), jnp.asarray(Y)

    @nnx.jit
    @nnx.value_and_grad
    def of_passes(network: Normed, key: jax.Array) -> jax.Array:
        found = forward_passes(lambda key, x: network(x, nnx.Rngs(dropout=key)), key, x, passes=3, strategy="concat")
        assert found.shape == (3, 6, 5)
        return rdrop_loss(found, labels).loss

    network, plain, key = Normed(), Normed(), jax.random.key(0)
    plain(x, nnx.Rngs(0))
    value, gradient = of_passes(network, key)
    for name in ("mean", "var"):
        np.testing.assert_allclose(getattr(network.norm, name)[...], getattr(plain.norm, name)[...], rtol=1e-5)
    assert network.norm.mean[...].any()
    assert gradient.last.kernel[...].any()
    found = Normed()(jnp.concatenate([x] * 3), nnx.Rngs(dropout=key)).reshape(3, 6, 5)
    np.testing.assert_allclose(value, rdrop_loss(found, labels).loss, rtol=1e-6)
    assert not (found[0] == found[1]).all()
    with pytest.raises(Exception, match="trace level") as caught:
        forward_passes(lambda key: network(x, nnx.Rngs(dropout=key)), key)
    assert 'Use strategy="concat"' in "".join(caught.value.__notes__)


def test_what_is_no_part_of_the_batch_stays_as_it_is() -> None:
    def apply(key: jax.Array, batch: dict[str, jax.Array], scale: jax.Array, flag: bool) -> tuple[jax.Array, ...]:
        assert flag is True
        assert batch["x"].shape == (8, 3)
        return batch["x"] * scale + batch["shift"][:, None], scale

    batch = {"shift": jnp.arange(4.0), "x": jnp.ones((4, 3))}
    found, scale = forward_passes(apply, jax.random.key(0), batch, jnp.ones(3), flag=True, strategy="concat")
    assert found.shape == (2, 4, 3)
    np.testing.assert_array_equal(found[1], found[0])
    assert scale.shape == (3,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rdrop_loss(jnp.ones((2, 5)), Y), r"logits have shape \(2, 5\); expected \(M, B, ..., C\)"),
        (lambda: rdrop_loss(Z, Y[:3]), r"labels have shape \(3,\)"),
        (lambda: rdrop_loss(Z, Y + 3), r"labels\[1\] is 7; expected a class id in 0..4"),
        (lambda: rdrop_loss(Z, Y, mask=jnp.ones(5, bool)), "mask has shape"),
        (lambda: rdrop_loss(Z, Y, class_weight=jnp.ones(3)), "class_weight has shape"),
        (lambda: rdrop_loss(Z, Y, alpha=-1.0), "alpha is -1.0"),
        (lambda: rdrop_loss(Z, Y, reduction="sum", normalizer=3), "normalizer is given and reduction is 'sum'"),
        (lambda: divergence(Z, divergence="l2"), "divergence is 'l2'"),  # type: ignore[arg-type]
        (lambda: forward_passes(lambda key: key, jax.random.key(0), passes=0), "passes is 0"),
        (lambda: forward_passes(lambda key: key, jax.random.key(0), strategy="vmap"), "strategy is 'vmap'"),  # type: ignore[arg-type]
        (lambda: forward_passes(lambda key: key, jax.random.key(0), strategy="concat"), "no array with a batch axis"),
        (
            lambda: forward_passes(lambda key, x: x.mean(0), jax.random.key(0), Z[0], strategy="concat"),
            r"nothing with 12 rows, but \(5,\); expected the batch on the first axis",
        ),
    ],
)
def test_what_is_out_of_place_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_numbers_of_another_kind_are_refused() -> None:
    with pytest.raises(TypeError, match="logits have dtype int32"):
        rdrop_loss(jnp.ones((2, 3, 4), int), None)
    with pytest.raises(TypeError, match="mask has dtype float32; expected bool"):
        rdrop_loss(Z, Y, mask=jnp.ones(6))
    with pytest.raises(TypeError, match="labels have dtype bool"):
        rdrop_loss(Z, Y > 0)


def test_it_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from rdrop.jax import rdrop_loss; print(rdrop_loss.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "rdrop_loss\n", done.stderr


@pytest.mark.parametrize("ignore_index", [0, 1, 3, -100])
def test_unsigned_labels_are_ignored_where_they_are_asked_to_be(ignore_index: int) -> None:
    ids = jnp.maximum(Y, 0)
    found = rdrop_loss(Z, ids.astype(jnp.uint8), ignore_index=ignore_index)
    np.testing.assert_allclose(found, rdrop_loss(Z, ids, ignore_index=ignore_index), rtol=1e-6)
