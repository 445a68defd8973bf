"""What a comparison leaves behind: the schema of `summary.json` and of one finished run.

A `Summary` is everything that the table and the report show, with the per-seed values in it. `summary.json` is its
JSON form; `rdrop compare --schema` prints the JSON schema that these classes define.

Two summaries of the same recipe, seeds and arms are equal, bit for bit on one machine, in every field outside
`timing` and `environment`: nothing else depends on the clock or on the machine's name.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field


class Record(BaseModel):
    """A frozen record that refuses unknown fields, so that an older file is never read with half its meaning."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Interval(Record):
    """A mean over seeds with its 95% interval (Student's t over seeds)."""

    mean: float = Field(description="Mean over the seeds that finished.")
    low: float | None = Field(description="Lower end of the 95% interval; null with fewer than two seeds.")
    high: float | None = Field(description="Upper end of the 95% interval; null with fewer than two seeds.")


class Difference(Interval):
    """An arm minus `plain`, paired by seed."""

    p_value: float | None = Field(
        description="Two-sided paired t-test; null with fewer than two shared seeds or without any variation."
    )
    per_seed: dict[int, float] = Field(description="Seed to difference, for the seeds that both arms finished.")


class Metric(Record):
    """How one metric is named, read and written."""

    name: str = Field(description="Key in `Run.metrics`, for example `accuracy`.")
    label: str = Field(description="Heading of its column.")
    higher_is_better: bool = Field(description="Direction of improvement.")
    percent: bool = Field(description="True: a fraction in 0..1 that is shown times 100.")
    explanation: str = Field(description="One sentence for a reader who has not met it.")


class Curve(Record):
    """One quantity over the optimizer steps of a run."""

    steps: list[int] = Field(description="Optimizer step of each value.")
    values: list[float] = Field(description="The values, one for each step.")


class ReliabilityBin(Record):
    """One bin of the reliability diagram."""

    count: int = Field(description="Predictions whose confidence falls into the bin.")
    confidence: float | None = Field(description="Their mean confidence; null for an empty bin.")
    accuracy: float | None = Field(description="The fraction of them that is right; null for an empty bin.")


class Confusion(Record):
    """How often each class was taken for each other."""

    kind: Literal["confusion"] = "confusion"
    title: str = Field(description="Heading.")
    labels: list[str] = Field(description="Names of the classes (C).")
    counts: list[list[int]] = Field(description="C rows, one for each true class, of C counts by predicted class.")


class Picture(Record):
    """One image with what there is to say about it."""

    image: Base64Bytes = Field(description="A PNG or JPEG file, in base64.")
    caption: list[str] = Field(description="Lines below it, the first of which names it.")


class Gallery(Record):
    """Images side by side, such as those that were classified worst."""

    kind: Literal["gallery"] = "gallery"
    title: str = Field(description="Heading.")
    reading: str = Field(description="One sentence: what is shown and in which order.")
    pictures: list[Picture]


class Listing(Record):
    """A table of text, such as sentences with their translations."""

    kind: Literal["listing"] = "listing"
    title: str = Field(description="Heading.")
    reading: str = Field(description="One sentence: what is shown and in which order.")
    columns: list[str]
    rows: list[list[str]] = Field(description="One text for each column.")


Exhibit = Annotated[Confusion | Gallery | Listing, Field(discriminator="kind")]


class Run(Record):
    """One arm with one seed."""

    arm: str
    seed: int
    status: Literal["finished", "failed"]
    error: str | None = Field(default=None, description="For a failed run: what went wrong.")
    optimizer_steps: int = Field(default=0, description="Optimizer steps made.")
    metrics: dict[str, float] = Field(default={}, description="Metric name to its value on the test split.")
    curves: dict[str, Curve] = Field(
        default={},
        description="`train_loss`, `task_loss`, `divergence` and `agreement` of the passes (training, per optimizer "
        "step), and `eval_<metric>`.",
    )
    reliability: list[ReliabilityBin] = Field(
        default=[], description="Equal-width bins of confidence from 0 to 1, on the test split."
    )
    exhibits: list[Exhibit] = Field(
        default=[], description="What a number cannot show: confusions, worst images, examples. First seed only."
    )


def without_examples(run: Run) -> Run:
    """A run without what its exhibits show of the data, images and texts; confusions stay.

    Examples:
        >>> texts = Listing(title="Worst", reading="By loss.", columns=["text"], rows=[["a private letter"]])
        >>> counts = Confusion(title="Confusions", labels=["no", "yes"], counts=[[3, 1], [0, 4]])
        >>> run = Run(arm="plain", seed=0, status="finished", exhibits=[counts, texts])
        >>> [exhibit.title for exhibit in without_examples(run).exhibits]
        ['Confusions']
    """
    return run.model_copy(update={"exhibits": [item for item in run.exhibits if isinstance(item, Confusion)]})


class Arm(Record):
    """One arm over all its seeds."""

    name: str = Field(description="`plain`, `twice`, `rdrop` or `longer`.")
    description: str = Field(description="What this arm does, in one sentence.")
    passes: int = Field(description="Forward passes in a training step (M).")
    alpha: float = Field(description="Weight of the divergence, in units of this package.")
    strategy: str = Field(description="How the passes were run: `single`, `concat`, `shared` or `sequential`.")
    optimizer_steps: int = Field(description="Optimizer steps of one run.")
    step_compute: float = Field(
        description="Floating-point operations of one training step, counted, as a ratio to one step of `plain`."
    )
    total_compute: float = Field(description="The same for the whole run, as a ratio to a whole run of `plain`.")
    seeds: list[int] = Field(description="Seeds that finished.")
    failed: dict[int, str] = Field(default={}, description="Seed to error, for the seeds that failed.")
    metrics: dict[str, Interval] = Field(description="Metric name to its mean and interval.")
    differences: dict[str, Difference] = Field(description="The same against `plain`; empty for `plain` itself.")


class Timing(Record):
    """What depends on the clock, kept apart from what does not."""

    step_ms: dict[str, float] = Field(description="Arm to the median time of a training step, in milliseconds.")
    step_ratio: dict[str, Interval] = Field(
        description="Arm to the time of a step as a ratio to `plain` with the same seed."
    )
    run_seconds: dict[str, dict[int, float]] = Field(description="Arm to seed to the seconds that the run took.")
    jobs: int = Field(description="Runs that shared the machine while the times were taken.")


class Environment(Record):
    """Where and when the comparison ran."""

    created: str = Field(description="ISO 8601 time, UTC.")
    machine: str = Field(description="Processor or accelerator, cores, memory.")
    versions: dict[str, str] = Field(description="Package to version.")
    command: str = Field(description="The command that repeats the comparison.")


class Summary(Record):
    """A whole comparison."""

    schema_version: Literal[1] = 1
    title: str = Field(description="Title of the comparison.")
    task: str = Field(description="Task family, for example `image-classification`.")
    data: str = Field(description="What the runs were trained and tested on, in one sentence with the counts.")
    recipe: dict[str, object] = Field(description="The complete recipe, from which the comparison can be repeated.")
    metrics: list[Metric] = Field(description="The metrics in the order of the table; the first is the main one.")
    arms: list[Arm] = Field(description="The arms in the order of the table; `plain` first.")
    runs: list[Run] = Field(description="Every run, also those that failed, by arm and seed.")
    headline: str = Field(description="The answer in one or two sentences.")
    notes: list[str] = Field(default=[], description="What a careful reader must know: what was tuned, what failed.")
    timing: Timing
    environment: Environment
