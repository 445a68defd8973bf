"""What every implementation of the objective must obey, whatever computes it."""

from __future__ import annotations

import numpy as np
import pytest

import oracle
from cases import CASES, Case
from implementations import IMPLEMENTATIONS, Implementation

ON_CASES = [
    pytest.param(implementation, case, id=f"{name}-{case.name}")
    for name, implementation in IMPLEMENTATIONS.items()
    for case in CASES
    if case.options.get("kind", "categorical") in implementation.kinds
]


@pytest.fixture(params=list(IMPLEMENTATIONS.values()), ids=list(IMPLEMENTATIONS))
def implementation(request: pytest.FixtureRequest) -> Implementation:
    """One implementation after the other."""
    found: Implementation = request.param
    return found


@pytest.mark.parametrize(("implementation", "case"), ON_CASES)
@pytest.mark.shows(("torch", "Keras", "JAX", "PaddlePaddle"), "contract", "label smoothing", "masks")
def test_values_are_the_oracles(implementation: Implementation, case: Case) -> None:
    logits = case.logits.astype(implementation.dtype)
    answer = implementation.run(logits, case.labels, case.options)
    expected = oracle.objective(logits, case.labels, **case.options)
    for got, want, name in zip(answer, expected, ("loss", "task_loss", "divergence"), strict=False):
        implementation.close(got, want, rtol=1e-11, atol=1e-13, message=f"{case.name}: {name}")


@pytest.mark.parametrize(("implementation", "case"), ON_CASES)
@pytest.mark.shows(("torch", "Keras", "JAX", "PaddlePaddle"), "contract")
def test_gradient_is_that_of_the_oracle(implementation: Implementation, case: Case) -> None:
    answer = implementation.run(case.logits, case.labels, case.options)
    numeric = oracle.gradient(lambda z: oracle.objective(z, case.labels, **case.options)[0].sum(), case.logits)
    implementation.close(answer.gradient, numeric, rtol=1e-4, atol=1e-7, message=case.name)


@pytest.mark.parametrize(("implementation", "case"), ON_CASES)
def test_gradient_is_that_of_the_reference(implementation: Implementation, case: Case) -> None:
    logits = case.logits.astype(implementation.dtype).astype(np.float64)
    answer = implementation.run(logits, case.labels, case.options)
    reference = IMPLEMENTATIONS["torch-reference"].run(logits, case.labels, case.options)
    implementation.close(answer.gradient, reference.gradient, rtol=1e-10, atol=1e-13, message=case.name)


@pytest.mark.parametrize("stop", ["first", "rest"])
@pytest.mark.parametrize("divergence", ["symmetric_kl", "kl", "js", "mse"])
@pytest.mark.parametrize("passes", [2, 3])
def test_stopped_passes_get_no_gradient_from_the_divergence(
    implementation: Implementation, stop: str, divergence: str, passes: int
) -> None:
    """The value stays, the stopped passes get nothing, and the others get what they got before."""
    logits = np.random.default_rng(passes).normal(size=(passes, 4, 5))
    options = {"divergence": divergence, "alpha": 2.0}
    stopped = implementation.run(logits, None, options | {"stop_gradient": stop})
    free = implementation.run(logits, None, options)
    implementation.close(stopped.loss, free.loss, rtol=1e-12)
    silent, moving = (slice(0, 1), slice(1, None)) if stop == "first" else (slice(1, None), slice(0, 1))
    assert np.abs(stopped.gradient[silent]).max() == 0
    implementation.close(stopped.gradient[moving], free.gradient[moving], rtol=1e-10, atol=1e-14)
    assert np.abs(stopped.gradient[moving]).max() > 0


def test_a_class_that_only_some_passes_allow_makes_the_divergence_infinite(implementation: Implementation) -> None:
    logits = np.zeros((3, 1, 4))
    logits[0, 0, 2] = -np.inf
    assert implementation.run(logits, None, {}).divergence == np.inf
    assert np.isfinite(implementation.run(logits, None, {"divergence": "js"}).divergence)


def test_padding_the_vocabulary_changes_nothing(implementation: Implementation) -> None:
    """Impossible classes at the end: same loss, same gradient, also with label smoothing."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 6, 5)), rng.integers(5, size=6)
    padded = np.concatenate((logits, np.full((2, 6, 3), -np.inf)), axis=-1)
    options = {"label_smoothing": 0.1}
    plain, wide = implementation.run(logits, labels, options), implementation.run(padded, labels, options)
    implementation.close(np.array(wide[:3]), np.array(plain[:3]), rtol=1e-12)
    implementation.close(wide.gradient[..., :5], plain.gradient, rtol=1e-12, atol=1e-15)
    assert np.abs(wide.gradient[..., 5:]).max() == 0


def test_garbage_at_positions_that_do_not_count_stays_there(implementation: Implementation) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 4, 5)), np.array([1, -100, 2, -100])
    clean = implementation.run(logits, labels, {})
    for garbage in (np.nan, np.inf, -np.inf):
        dirty = logits.copy()
        dirty[:, 1], dirty[0, 3] = garbage, garbage
        answer = implementation.run(dirty, labels, {})
        implementation.close(np.array(answer[:3]), np.array(clean[:3]), rtol=1e-12)
        implementation.close(answer.gradient, clean.gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shape", [(2, 0, 5), (2, 3, 0, 5), (3, 1, 1)])
def test_empty_and_tiny_batches_are_batches(implementation: Implementation, shape: tuple[int, ...]) -> None:
    answer = implementation.run(np.zeros(shape), np.zeros(shape[1:-1], dtype=np.int64), {})
    assert np.isfinite(answer.loss)
    assert answer.gradient.shape == shape
