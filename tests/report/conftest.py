"""Made-up comparisons that look like those of the toolkit."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rdrop.report.page import render_report
from rdrop.report.templates import resource
from rdrop.toolkit.headline import headline
from rdrop.toolkit.statistics import interval, paired_difference
from rdrop.toolkit.summary import (
    Arm,
    Confusion,
    Curve,
    Environment,
    Exhibit,
    Gallery,
    Listing,
    Metric,
    Picture,
    ReliabilityBin,
    Run,
    Summary,
    Timing,
)

# description, passes, alpha, strategy, factor on steps, operations of a step
ARMS: dict[str, tuple[str, int, float, str, int, float]] = {
    "plain": ("One pass through the model.", 1, 0.0, "single", 1, 1.0),
    "twice": ("Both passes, without the divergence.", 2, 0.0, "concat", 1, 1.98),
    "rdrop": ("Both passes and the divergence.", 2, 1.0, "concat", 1, 1.99),
    "longer": ("Plain, as many steps as the compute of rdrop.", 1, 0.0, "single", 2, 1.0),
}
# Share of a task's gain that an arm has; that of any other is the one of rdrop.
SHARES = {"plain": 0.0, "twice": 0.1, "rdrop": 1.0, "longer": 0.3}


@dataclass(frozen=True)
class Score:
    """A metric: its value in plain training, how far seeds spread, what rdrop gains, where its curve starts."""

    metric: Metric
    level: float
    spread: float
    gain: float
    start: float | None = None


@dataclass(frozen=True)
class Task:
    title: str
    family: str
    data: str
    scores: list[Score]
    has_bins: bool = False
    curves: dict[str, tuple[float, float]] = field(default_factory=dict)


def higher(name: str, label: str, *, percent: bool = False) -> Metric:
    return Metric(name=name, label=label, higher_is_better=True, percent=percent, explanation=f"What {name} is.")


def lower(name: str, label: str, *, percent: bool = False) -> Metric:
    return Metric(name=name, label=label, higher_is_better=False, percent=percent, explanation=f"What {name} is.")


NLL = lower("nll", "NLL")
TASKS = {
    "digits": Task(
        "Digits with 300 labels",
        "image-classification",
        "scikit-learn digits, 8x8 pixels: 300 training images, 1,497 test images.",
        [
            Score(higher("accuracy", "Accuracy", percent=True), 0.962, 0.006, 0.0047, 0.3),
            Score(NLL, 0.129, 0.015, -0.022, 1.9),
            Score(lower("ece", "Calibration error", percent=True), 0.011, 0.002, -0.001),
            Score(lower("consistency_kl", "Consistency gap"), 0.0051, 0.0008, -0.0035),
            Score(higher("agreement", "Agreement", percent=True), 0.995, 0.001, 0.002),
            Score(higher("accuracy_averaged", "Accuracy, averaged", percent=True), 0.963, 0.006, 0.0045),
            Score(lower("nll_averaged", "NLL, averaged"), 0.131, 0.015, -0.023),
        ],
        has_bins=True,
    ),
    "translation": Task(
        "German to English, 10,000 pairs",
        "translation",
        "multi30k_de_en: 10,000 training, 1,014 validation and 1,000 test pairs.",
        [
            Score(higher("bleu", "BLEU"), 28.4, 0.5, 0.9, 0.2),
            Score(NLL, 2.31, 0.04, -0.06, 7.5),
            Score(higher("chrf", "chrF"), 51.2, 0.4, 0.7),
        ],
        curves={"eval_loss": (7.5, 2.4)},
    ),
    "language": Task(
        "Shakespeare by characters",
        "language-modelling",
        "tiny_shakespeare: 1,003,854 training and 55,770 test characters.",
        [
            Score(lower("perplexity", "Perplexity"), 38.7, 1.6, -2.4, 24_000.0),
            Score(NLL, 3.655, 0.04, -0.06, 10.1),
            Score(higher("token_accuracy", "Token accuracy", percent=True), 0.324, 0.004, 0.006),
            Score(lower("consistency_kl", "Consistency gap"), 0.041, 0.003, -0.02),
        ],
        has_bins=True,
    ),
    "similarity": Task(
        "Sentence similarity",
        "language-understanding",
        "stsb: 500 training and 1,500 test pairs.",
        [
            Score(higher("pearson", "Pearson correlation"), 0.861, 0.008, 0.006, 0.1),
            Score(lower("mse", "MSE"), 0.58, 0.03, -0.02, 2.3),
        ],
    ),
}


def run_scores(task: Task, arm: str, seed: int, position: int) -> dict[str, float]:
    """The metrics of a run; they follow the seed, so that arms are correlated within it."""
    values = {}
    for index, score in enumerate(task.scores):
        shared = np.random.default_rng([seed, index]).normal()
        own = np.random.default_rng([seed, index, position]).normal()
        share = SHARES.get(arm, 1.0)
        values[score.metric.name] = float(score.level + score.gain * share + score.spread * (shared + 0.3 * own))
    return values


def make_curve(steps: NDArray[np.int64], values: NDArray[np.float64]) -> Curve:
    return Curve(steps=steps.tolist(), values=values.tolist())


def make_run(task: Task, arm: str, seed: int, position: int) -> Run:
    _, passes, alpha, _, times, _ = ARMS.get(arm, ARMS["rdrop"])
    own = np.random.default_rng([seed, position])
    metrics = run_scores(task, arm, seed, position)
    last = 600 * times
    evaluated = np.arange(50, last + 1, 50)
    left = np.exp(-evaluated / 90)
    ends = {f"eval_{s.metric.name}": (s.start, metrics[s.metric.name]) for s in task.scores if s.start is not None}
    evaluations = {
        name: make_curve(evaluated, end + (start - end) * left + 0.002 * end * own.normal(size=len(evaluated)))
        for name, (start, end) in (ends | task.curves).items()
    }
    steps = np.arange(10, last + 1, 10)
    loss = 2.3 * np.exp(-steps / 60) + 0.02 + 0.01 * own.random(len(steps))
    size = 0.05 if alpha else 0.14
    divergence = (size * np.exp(-steps / 300) + 0.004) * (0.6 + 0.8 * own.random(len(steps)))
    counts = np.array([0, 0, 0, 1, 9, 16, 24, 35, 90, 1322])
    centres = np.array([0.05, 0.15, 0.25, 0.37, 0.46, 0.55, 0.65, 0.75, 0.86, 0.992])
    right = np.clip(centres - 0.01 - 0.3 * (1 - centres) * own.random(10), 0, 1)
    bins = [
        ReliabilityBin(count=int(n), confidence=float(c) if n else None, accuracy=float(a) if n else None)
        for n, c, a in zip(counts, centres, right, strict=True)
    ]
    return Run(
        arm=arm,
        seed=seed,
        status="finished",
        optimizer_steps=last,
        metrics=metrics,
        curves={
            "train_loss": make_curve(steps, loss + alpha * divergence),
            "task_loss": make_curve(steps, loss),
            **({"divergence": make_curve(steps, divergence)} if passes > 1 else {}),
            **evaluations,
        },
        reliability=bins if task.has_bins else [],
    )


def make_arm(name: str, runs: Sequence[Run], plain: Sequence[Run], metrics: Sequence[str]) -> Arm:
    description, passes, alpha, strategy, times, operations = ARMS.get(name, ARMS["rdrop"])
    done = [run for run in runs if run.status == "finished"]
    per_metric = {key: {r.seed: r.metrics[key] for r in done} for key in metrics}
    base = {key: {r.seed: r.metrics[key] for r in plain if r.status == "finished"} for key in metrics}
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
    task: str = "digits",
) -> Summary:
    made_up = TASKS[task]
    metrics = [score.metric for score in made_up.scores]
    runs: dict[str, list[Run]] = {}
    for position, name in enumerate(arms):
        runs[name] = [
            Run(arm=name, seed=seed, status="failed", error=error, optimizer_steps=212)
            if (name, seed) in failed
            else make_run(made_up, name, seed, position)
            for seed in seeds
        ]
    made = [make_arm(name, runs[name], runs[arms[0]], [metric.name for metric in metrics]) for name in arms]
    rdrop = made[list(arms).index("rdrop")]
    found = [(m, rdrop.differences[m.name]) for m in metrics[:2] if m.name in rdrop.differences]
    answer = headline(found, [], rdrop.step_compute)
    ratios = {"plain": 1.0, "twice": 1.71, "rdrop": 1.78, "longer": 1.0}
    return Summary(
        title=made_up.title,
        task=made_up.family,
        data=made_up.data,
        recipe={
            "title": made_up.title,
            "data": {"name": task, "train_size": 300, "split_seed": None},
            "training": {"epochs": 60, "batch_size": 32, "learning_rate": 0.001},
            "rdrop": {"alpha": 1.0, "passes": 2, "strategy": "auto"},
            "compare": {"arms": list(arms), "seeds": list(seeds), "samples": 16},
        },
        metrics=metrics,
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
            command=f"rdrop compare --seeds 10 --out rdrop-runs/{task}",
        ),
    )


def build_picture(
    seed: int, caption: Sequence[str] = ("photo.png",), size: tuple[int, int] = (48, 48), kind: str = "PNG"
) -> Picture:
    """A picture of coloured waves."""
    draw = np.random.default_rng(seed)
    x, y = np.linspace(0, 6, size[0]), np.linspace(0, 6, size[1])
    waves = [np.sin(np.add.outer(y * a, x * b) + c) for a, b, c in draw.uniform(0.5, 2, size=(3, 3))]
    file = io.BytesIO()
    Image.fromarray((127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)).save(file, kind)
    return Picture(image=base64.b64encode(file.getvalue()), caption=list(caption))


def build_confusion(
    seed: int,
    labels: Sequence[str],
    accuracy: float = 0.9,
    examples: int = 100,
    title: str = "Which class was taken for which",
) -> Confusion:
    """A matrix in which each class is mostly taken for itself and sometimes for two others."""
    draw = np.random.default_rng(seed)
    counts = []
    for index in range(len(labels)):
        shares = np.zeros(len(labels))
        shares[draw.choice(len(labels), size=2)] = (1 - accuracy) / 2
        shares[index] += accuracy
        counts.append(draw.multinomial(examples, shares / shares.sum()).tolist())
    return Confusion(title=title, labels=list(labels), counts=counts)


def with_exhibits(summary: Summary, exhibits: Callable[[str], list[Exhibit]], seed: int = 0) -> Summary:
    """The same summary with exhibits in the runs of one seed, made from the names of their arms."""
    runs = [
        run.model_copy(update={"exhibits": exhibits(run.arm)}) if run.seed == seed and run.status == "finished" else run
        for run in summary.runs
    ]
    return summary.model_copy(update={"runs": runs})


STAGES = ("sprout", "seedling", "rosette", "heading")
SENTENCES = [
    ("Zwei junge weiße Männer sind im Freien.", "Two young, White males are outside near many bushes."),
    ("Donaudampfschifffahrtsgesellschaft" * 6, "Danube steamship company, many times."),
    ("שני אנשים יושבים על ספסל <b>בפארק</b>.", "Two people are sitting on a bench in the park."),
    ("Ein langer Satz, der nicht endet. " * 60, "A long sentence that does not end. " * 60),
]


def plant_exhibits(arm: str) -> list[Exhibit]:
    """What an image task shows; hostile words included."""
    position = list(ARMS).index(arm) if arm in ARMS else 9
    seen = [
        [f"plot_{i:02}.jpg", f"{STAGES[i % 4]}, taken for {STAGES[i % 3]}", "<script>alert(1)</script> \u202eevil"]
        for i in range(5)
    ]
    pictures = [
        build_picture(10 * position + i, lines, size=(96, 64) if i % 2 else (24, 24), kind="JPEG" if i % 2 else "PNG")
        for i, lines in enumerate(seen)
    ]
    refused = Picture(image=base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), caption=["drawing.svg"])
    return [
        build_confusion(position, STAGES, accuracy=0.9 + 0.01 * position, examples=1200),
        build_confusion(position, [f"species number {i}" for i in range(30)], title="Which species"),
        Gallery(title="Classified worst", reading="The surest mistakes first.", pictures=[*pictures, refused]),
    ]


def translation_exhibits(arm: str) -> list[Exhibit]:
    """The same sentences with an output that differs between some of the arms."""
    words = "two men outside" if arm in ("plain", "twice") else "two young men are outside"
    return [
        Listing(
            title="Translations",
            reading="The first sentences of the test split.",
            columns=["Source", "Reference", "Output"],
            rows=[[source, reference, f"{words} {i}"] for i, (source, reference) in enumerate(SENTENCES)],
        )
    ]


def language_exhibits(arm: str) -> list[Exhibit]:
    """Other rows in each arm, so that there is nothing to put under each other."""
    return [
        Listing(
            title="Least expected",
            reading="Where the right token was given the least probability.",
            columns=["Context", "Token", "Expected instead", "Probability"],
            rows=[
                [f"{arm}:\n  What, ho! {'the king comes here ' * i}", f"tok{i}", "</td><td>" * i, f"0.0{i}"]
                for i in range(1, 5)
            ],
        )
    ]


def contrast_ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Contrast of two colours given as red, green and blue in 0..255 (WCAG 2.2)."""
    luminances = []
    for colour in (one, other):
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        luminances.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


@pytest.fixture(scope="session")
def themes() -> dict[str, dict[str, tuple[int, ...]]]:
    """The colour variables of light and dark mode, as red, green and blue."""
    light, dark = re.findall(r":root \{([^}]*--ink[^}]*)\}", resource("page.css"))
    return {
        name: {
            variable: tuple(bytes.fromhex(digits))
            for variable, digits in re.findall(r"(--[\w-]+): #([0-9a-f]{6});", block)
        }
        for name, block in (("light", light), ("dark", dark))
    }


@pytest.fixture
def contrast() -> Callable[[Sequence[float], Sequence[float]], float]:
    return contrast_ratio


@pytest.fixture(scope="session")
def make_summary() -> Callable[..., Summary]:
    return build_summary


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., Picture]:
    return build_picture


@pytest.fixture(scope="session")
def make_confusion() -> Callable[..., Confusion]:
    return build_confusion


@pytest.fixture(scope="session")
def summary() -> Summary:
    return build_summary()


@pytest.fixture(scope="session")
def families() -> dict[str, Summary]:
    """A comparison of each kind of task, with exhibits, failed runs and single seeds among them."""
    return {
        "plants": with_exhibits(build_summary(seeds=[0, 1, 2], failed=[("twice", 1)]), plant_exhibits),
        "translation": with_exhibits(build_summary(seeds=[0, 1, 2], task="translation"), translation_exhibits),
        "language": with_exhibits(build_summary(seeds=[0], task="language", failed=[("longer", 0)]), language_exhibits),
        "similarity": build_summary(seeds=[0, 1, 2, 3], task="similarity"),
    }


@pytest.fixture(scope="session")
def pages(summary: Summary, families: dict[str, Summary]) -> dict[str, str]:
    """The report of each of them, rendered once."""
    return {name: render_report(each) for name, each in {"digits": summary, **families}.items()}
