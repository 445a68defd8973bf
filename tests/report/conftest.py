"""Synthetic comparisons that look like those of the toolkit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from rdrop.toolkit.headline import headline
from rdrop.toolkit.metrics import CLASSIFICATION_METRICS
from rdrop.toolkit.statistics import interval, paired_difference
from rdrop.toolkit.summary import Arm, Curve, Environment, ReliabilityBin, Run, Summary, Timing

METRICS = CLASSIFICATION_METRICS

# description, passes, alpha, strategy, factor on steps, operations of a step, shift of accuracy, of NLL, gap
ARMS: dict[str, tuple[str, int, float, str, int, float, float, float, float]] = {
    "plain": ("One pass through the model.", 1, 0.0, "single", 1, 1.0, 0.0, 0.0, 0.0051),
    "twice": ("Both passes, without the divergence.", 2, 0.0, "concat", 1, 1.98, 0.0005, 0.001, 0.0049),
    "rdrop": ("Both passes and the divergence.", 2, 1.0, "concat", 1, 1.99, 0.0047, -0.022, 0.0016),
    "longer": (
        "Plain, as many steps as the compute of rdrop.",
        1,
        0.0,
        "single",
        2,
        1.0,
        0.0023,
        0.004,
        0.0062,
    ),
}


def make_run(arm: str, seed: int, position: int) -> Run:
    """One finished run whose numbers follow the seed, so that arms are correlated within it."""
    _, passes, alpha, _, times, _, better, nll_shift, gap = ARMS.get(arm, ARMS["rdrop"])
    shared = np.random.default_rng(seed)
    own = np.random.default_rng([seed, position])
    accuracy = 0.962 + 0.006 * shared.normal() + better + 0.003 * own.normal()
    nll = 0.129 + 0.015 * shared.normal() + nll_shift + 0.006 * own.normal()
    kl = gap * (1 + 0.15 * own.normal())
    metrics = {
        "accuracy": accuracy,
        "nll": nll,
        "ece": 0.011 + 0.002 * own.normal(),
        "consistency_kl": kl,
        "agreement": 0.997 - kl / 4,
        "accuracy_averaged": accuracy + 0.0004 * own.normal(),
        "nll_averaged": nll + kl * 0.7,
    }
    last = 600 * times
    evaluated = np.arange(50, last + 1, 50)
    rise = 1 - np.exp(-evaluated / 90)
    wobble = 0.002 * own.normal(size=len(evaluated))
    steps = np.arange(10, last + 1, 10)
    loss = 2.3 * np.exp(-steps / 60) + 0.02 + 0.01 * own.random(len(steps))
    size = 0.05 if alpha else 0.14
    divergence = (size * np.exp(-steps / 300) + 0.004) * (0.6 + 0.8 * own.random(len(steps))) * (passes > 1)

    def curve(at: NDArray[np.int64], values: NDArray[np.float64]) -> Curve:
        return Curve(steps=at.tolist(), values=values.tolist())

    counts = np.array([0, 0, 0, 1, 9, 16, 24, 35, 90, 1322])
    centres = np.array([0.05, 0.15, 0.25, 0.37, 0.46, 0.55, 0.65, 0.75, 0.86, 0.992])
    right = np.clip(centres - 0.01 - 0.3 * (1 - centres) * own.random(10), 0, 1)
    return Run(
        arm=arm,
        seed=seed,
        status="finished",
        optimizer_steps=last,
        metrics={name: float(value) for name, value in metrics.items()},
        curves={
            "train_loss": curve(steps, loss + alpha * divergence),
            "task_loss": curve(steps, loss),
            "divergence": curve(steps, divergence),
            "eval_accuracy": curve(evaluated, 0.3 + (accuracy - 0.3) * rise + wobble),
            "eval_nll": curve(evaluated, nll + 1.8 * (1 - rise) + wobble),
        },
        reliability=[
            ReliabilityBin(count=int(n), confidence=float(c) if n else None, accuracy=float(a) if n else None)
            for n, c, a in zip(counts, centres, right, strict=True)
        ],
    )


def make_arm(name: str, runs: Sequence[Run], plain: Sequence[Run]) -> Arm:
    description, passes, alpha, strategy, times, operations, *_ = ARMS.get(name, ARMS["rdrop"])
    done = [run for run in runs if run.status == "finished"]
    per_metric = {m.name: {r.seed: r.metrics[m.name] for r in done} for m in METRICS}
    base = {m.name: {r.seed: r.metrics[m.name] for r in plain if r.status == "finished"} for m in METRICS}
    differences = {key: paired_difference(values, base[key]) for key, values in per_metric.items() if name != "plain"}
    return Arm(
        name=name,
        description=description,
        passes=passes,
        alpha=alpha,
        strategy=strategy,
        optimizer_steps=600 * times,
        step_compute=operations,
        total_compute=operations * times,
        seeds=[run.seed for run in done],
        failed={run.seed: run.error or "" for run in runs if run.status == "failed"},
        metrics={key: interval(list(values.values())) for key, values in per_metric.items() if values},
        differences={key: each for key, each in differences.items() if each is not None},
    )


def build_summary(
    seeds: Sequence[int] = tuple(range(10)),
    arms: Sequence[str] = tuple(ARMS),
    failed: Sequence[tuple[str, int]] = (),
    error: str = "FloatingPointError: the loss of step 212 is not finite",
) -> Summary:
    runs: dict[str, list[Run]] = {}
    for position, name in enumerate(arms):
        runs[name] = [
            Run(arm=name, seed=seed, status="failed", error=error, optimizer_steps=212)
            if (name, seed) in failed
            else make_run(name, seed, position)
            for seed in seeds
        ]
    made = [make_arm(name, runs[name], runs[arms[0]]) for name in arms]
    rdrop = made[list(arms).index("rdrop")]
    found = [(m, rdrop.differences[m.name]) for m in METRICS[:2] if m.name in rdrop.differences]
    answer = headline(found, [], rdrop.step_compute)
    ratios = {"plain": 1.0, "twice": 1.71, "rdrop": 1.78, "longer": 1.0}
    return Summary(
        title="Digits with 300 labels",
        task="image-classification",
        data="scikit-learn digits, 8x8 pixels: 300 training images, 1,497 test images.",
        recipe={
            "title": "Digits with 300 labels",
            "data": {"name": "digits", "train_size": 300, "split_seed": None},
            "model": {"name": "digits-cnn", "dropout": 0.3},
            "training": {"epochs": 60, "batch_size": 32, "learning_rate": 0.001},
            "rdrop": {"alpha": 1.0, "passes": 2, "strategy": "auto"},
            "compare": {"arms": list(arms), "seeds": list(seeds), "samples": 16},
        },
        metrics=list(METRICS),
        arms=made,
        runs=[run for each in runs.values() for run in each],
        headline=answer,
        notes=[
            "alpha was not tuned on these seeds.",
            "The test split also chose nothing: all runs end at the last step.",
        ],
        timing=Timing(
            step_ms={name: 4.1 * ratios.get(name, 1.8) for name in arms},
            step_ratio={
                name: interval(
                    [ratios.get(name, 1.8) * (1 + (name != "plain") * 0.01 * np.sin(seed)) for seed in seeds]
                )
                for name in arms
            },
            run_seconds={name: {seed: 2.5 * ratios.get(name, 1.8) for seed in seeds} for name in arms},
            jobs=2,
        ),
        environment=Environment(
            created="2026-01-31T12:00:00Z",
            machine="2 cores, x86_64, 8 GiB",
            versions={"rdrop": "0.1.0", "torch": "2.15.0", "transformers": "5.23.0"},
            command="rdrop compare --seeds 10 --out rdrop-runs/digits",
        ),
    )


def contrast_ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Contrast of two colours given as red, green and blue in 0..255 (WCAG 2.2)."""
    luminances = []
    for colour in (one, other):
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        luminances.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


@pytest.fixture
def contrast() -> Callable[[Sequence[float], Sequence[float]], float]:
    return contrast_ratio


@pytest.fixture(scope="session")
def make_summary() -> Callable[..., Summary]:
    return build_summary


@pytest.fixture(scope="session")
def summary() -> Summary:
    return build_summary()
