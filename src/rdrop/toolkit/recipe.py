"""A run as data: the fields that every recipe has, with their meaning and their unit.

A task family adds its own fields by subclassing `Recipe`, `Data`, `Model` and `Training` (see `rdrop.toolkit.tasks`).
These classes are the one place where a field is typed, bounded and explained. The YAML loader, the help of
`rdrop compare --help-recipe`, the documentation and the record of a run are all made from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from rdrop.schedule import Course
from rdrop.toolkit.arm_names import EXPECTED, WHOLE, ArmName, economy

SplitName = Literal["validation", "test"]
Tracker = Literal["tensorboard", "mlflow", "wandb", "trackio"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Layers = Annotated[int, Field(ge=1, le=1000)]


def fault(message: str, *keys: str) -> PydanticCustomError:
    """A broken rule about values that are each possible; `keys` are the dotted fields that it is about."""
    return PydanticCustomError("recipe", "{message}", {"message": message, "keys": keys})


_T = TypeVar("_T")


def distinct(values: list[_T]) -> list[_T]:
    """A list in which no entry may be repeated."""
    twice = [value for index, value in enumerate(values) if value in values[:index]]
    if twice:
        raise fault(f"{', '.join(map(str, twice))} is listed twice; expected every entry once")
    return values


def _with_plain(arms: list[ArmName]) -> list[ArmName]:
    if "plain" not in arms:
        raise fault(f"got {', '.join(arms)}, without plain; add it, since every difference is taken to the arm plain")
    return arms


class Section(BaseModel):
    """A part of a recipe: frozen, strict about types, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Data(Section):
    """What to train and test on."""

    split_seed: Seed | None = Field(
        default=None,
        description="Seed of what is drawn: the labelled examples and what is held out. null: each run's own seed, "
        "so that the intervals also cover the draw.",
    )


class Model(Section):
    """The network."""

    dropout: Rate | None = Field(
        default=None,
        description="Probability of dropping a unit, in every dropout layer; null leaves the network's own rates.",
    )


class Training(Section):
    """How a run is trained; the same for every arm."""

    epochs: Annotated[int, Field(ge=1)] = Field(
        default=3, description="Passes over the training split (the arm `longer` makes more of them)."
    )
    steps: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Optimizer steps, in place of `epochs`; needed where the data are streamed."
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(default=32, description="Examples in a step.")
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = Field(
        default=1,
        description="Micro-batches in an optimizer step; the gradient is that of the one big batch.",
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(default=1e-3, description="Peak learning rate of AdamW.")
    lr_scheduler: Literal["constant", "linear", "cosine", "inverse_sqrt"] = Field(
        default="constant", description="Course of the learning rate after the warm-up."
    )
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Fraction of the steps in which the learning rate rises from 0 to its peak."
    )
    warmup_steps: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Steps in which it does so, in place of a fraction of them."
    )
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.999, description="Decay of AdamW's mean of squared gradients, from step to step."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.01, description="Decoupled weight decay of AdamW.")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Share of the target that is spread evenly over the classes."
    )
    max_grad_norm: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="Gradients longer than this are scaled down to it; 0: never."
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Arithmetic of the passes; the two short ones are automatic mixed precision."
    )
    eval_every_epochs: Annotated[int, Field(ge=1)] = Field(
        default=1, description="Epochs between two points of the learning curve."
    )
    eval_every_steps: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Optimizer steps between two points of the learning curve, in place of epochs."
    )
    eval_batch_size: Annotated[int, Field(ge=1)] = Field(
        default=64, description="Examples at a time in evaluation; it changes nothing but time and memory."
    )
    workers: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Processes that prepare batches beside the one that trains."
    )
    save_every_steps: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Optimizer steps between two checkpoints of `rdrop train`; null: a tenth of the run.",
    )
    device: Literal["auto", "cpu"] = Field(default="auto", description="`auto`: an accelerator where there is one.")
    report_to: Annotated[list[Tracker], AfterValidator(distinct)] = Field(
        default=[], description="Trackers that receive the logged quantities of each run."
    )


class RDrop(Section):
    """The objective: what the arm `rdrop` adds to plain training."""

    alpha: Annotated[float, Field(ge=0)] = Field(
        default=1.0,
        description="Weight of the divergence beside the mean cross-entropy (see `rdrop.conventions`).",
    )
    schedule: Course = Field(
        default="constant",
        description="Course of alpha: fixed; linear warm-up over the first tenth; linear or cosine decay to "
        "0; in proportion to the learning rate.",
    )
    passes: Annotated[int, Field(ge=2, le=16)] = Field(default=2, description="Forward passes in a step (M).")
    every: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=1,
        description="Make them in each k-th optimizer step alone, and one pass in the others; with k times the alpha "
        "the divergence weighs as much as before.",
    )
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="Share of the examples, drawn anew in each step, that make the further passes; the divergence of "
        "those stands for all.",
    )
    branch_at: str | int | None = Field(
        default=None,
        description="Where the passes part: the name of a module, or the place of a block (-1: the last). Below it "
        "they have the same masks and are computed once. null: at the first dropout.",
    )
    one_sided: bool = Field(
        default=False,
        description="Further passes without gradients; those of the first count for all.",
    )
    budget: Annotated[float, Field(gt=1, le=16)] | None = Field(
        default=None,
        description="What a step may cost on average, as a ratio to a plain one: where R-Drop is dearer, a cheaper "
        "form of it is chosen (`fraction` or `every`). null: no limit.",
    )
    strategy: Literal["auto", "concat", "sequential", "shared"] = Field(
        default="auto", description="How the passes are run (see `rdrop.forward_passes`)."
    )
    divergence: Literal["symmetric_kl", "kl", "js", "mse"] = Field(
        default="symmetric_kl",
        description="Which divergence ties the passes together (see `rdrop.divergence`).",
    )
    stop_gradient: Literal["first", "rest"] | None = Field(
        default=None,
        description="Passes that are held constant inside the divergence; null: none, as in the paper.",
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        found = conflict(self)
        if found is not None:
            raise fault(*found)
        return self


def conflict(rdrop: RDrop) -> tuple[str, str, str] | None:
    """What cannot be had together in an objective, and the two fields; None if all of it can."""

    def both(one: str, value: object, other: str, why: str) -> tuple[str, str, str]:
        told = f"got {value}, and {getattr(rdrop, other)} for rdrop.{other}; expected one of them, since {why}"
        return told, f"rdrop.{one}", f"rdrop.{other}"

    if rdrop.budget is not None:
        for field, whole in WHOLE.items():
            if getattr(rdrop, field) != whole:
                return both("budget", f"{rdrop.budget:g}", field, "a budget chooses the form itself")
    if rdrop.fraction < 1 and rdrop.branch_at is not None:
        return both("fraction", f"{rdrop.fraction:g}", "branch_at", "passes over other examples share no trunk")
    if rdrop.one_sided and rdrop.stop_gradient is not None:
        return both("one_sided", "true", "stop_gradient", "the further passes have no gradient to stop")
    if rdrop.fraction < 1 and rdrop.strategy == "shared":
        return both("fraction", f"{rdrop.fraction:g}", "strategy", "passes over other examples share nothing")
    if rdrop.branch_at is not None and rdrop.strategy in ("concat", "sequential"):
        return both("branch_at", rdrop.branch_at, "strategy", "only shared (or auto) has the same masks below a module")
    if rdrop.one_sided and rdrop.strategy == "concat":
        return both("one_sided", "true", "strategy", "a pass without gradients needs a forward of its own")
    return None


class Chosen(Section):
    """What was chosen for one arm alone."""

    alpha: Annotated[float, Field(ge=0)] | None = Field(default=None, description="In place of `rdrop.alpha`.")
    dropout: Rate | None = Field(default=None, description="In place of `model.dropout`.")


class Compare(Section):
    """What is set against what."""

    arms: Annotated[list[ArmName], Field(min_length=1), AfterValidator(distinct), AfterValidator(_with_plain)] = Field(
        default=["plain", "twice", "rdrop", "longer"],
        description="`plain`: one pass. `twice`: all passes, alpha 0. `rdrop`: all passes and the "
        "divergence. `longer`: plain, with as many more steps as make its compute equal to that of `rdrop`. "
        "`longer-1.25`: with 1.25 times the steps. Cheaper forms of `rdrop`: `every-2`, `fraction-0.25`, `last-1` (the "
        "passes part at the last block), `one-sided`.",
        json_schema_extra={"expected": f"a list, each entry {EXPECTED}"},
    )
    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(distinct)] = Field(
        default=[0, 1, 2, 3, 4],
        description="Seeds of data split, initial weights, data order and dropout; the same for every arm.",
    )
    samples: Annotated[int, Field(ge=2)] = Field(
        default=16, description="Dropout-on predictions that the consistency gap averages."
    )
    split: SplitName = Field(
        default="test",
        description="Split that the runs are judged on: `validation` while settings are chosen, `test` once, at the "
        "end. Without a test split it is always `validation`.",
    )
    chosen: dict[ArmName, Chosen] = Field(
        default={},
        description="Settings of single arms, such as `{plain: {dropout: 0.1}, rdrop: {alpha: 2.0, dropout: 0.3}}`, "
        "where each arm has its own best.",
        json_schema_extra={"expected": "a mapping from arms to their alpha, dropout or both"},
    )


class Recipe(Section):
    """A complete comparison."""

    FAMILY: ClassVar[str] = ""
    """The kind of task that the report names."""
    DEFAULTS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Section to key to value, where a family's default is not that of the section's class."""

    task: str = Field(default="", description="The task family.")
    title: str = Field(default="", description="Heading of the report.")
    data: Data = Field(default=Data(), description="What to train and test on.")
    model: Model = Field(default=Model(), description="The network.")
    training: Training = Field(default=Training(), description="How a run is trained; the same for every arm.")
    rdrop: RDrop = Field(default=RDrop(), description="What the arm `rdrop` adds to plain training.")
    compare: Compare = Field(default=Compare(), description="What is set against what.")

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, given: Any) -> Any:
        """Puts the defaults of the family under what is given."""
        if not isinstance(given, dict):
            return given
        merged = dict(given)
        for section, values in cls.DEFAULTS.items():
            held = merged.get(section, {})
            if isinstance(held, dict):
                merged[section] = {**values, **held}
        return merged

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if "rdrop" in self.compare.arms:
            chosen = self.compare.chosen.get("rdrop", Chosen())
            alpha = self.rdrop.alpha if chosen.alpha is None else chosen.alpha
            dropout = self.model.dropout if chosen.dropout is None else chosen.dropout
            if alpha == 0 and dropout == 0 and self.without_dropout_twice_is_plain():
                raise fault(
                    "got 0, and 0 for model.dropout, with which the arm rdrop is the arm twice; set at least one "
                    "of them above 0 or leave rdrop out of compare.arms",
                    "rdrop.alpha",
                    "model.dropout",
                )
        for arm in self.compare.arms:
            found = conflict(self.rdrop.model_copy(update=economy(arm) or {}))
            if found is not None:
                raise fault(f"{arm}: {found[0]}", "compare.arms", *found[1:])
        unknown = [arm for arm in self.compare.chosen if arm not in self.compare.arms]
        if unknown:
            raise fault(f"got settings of {', '.join(unknown)}, expected arms of compare.arms", "compare.chosen")
        return self

    def without_dropout_twice_is_plain(self) -> bool:
        """Whether the passes differ by dropout alone."""
        return True


def cautions(recipe: Recipe) -> list[str]:
    """What is allowed and probably not meant, one sentence each.

    Args:
        recipe: A valid recipe.

    Returns:
        Sentences for the user, none for a sensible recipe.

    >>> cautions(Recipe(model=Model(dropout=0.0)))
    ['model.dropout is 0: the passes are identical and the arm rdrop cannot differ from twice.']
    """
    if "rdrop" not in recipe.compare.arms:
        return []
    told = []
    if recipe.model.dropout == 0 and recipe.without_dropout_twice_is_plain():
        told.append("model.dropout is 0: the passes are identical and the arm rdrop cannot differ from twice.")
    if recipe.rdrop.alpha == 0:
        told.append("rdrop.alpha is 0: the arm rdrop has no divergence term and does the same as twice.")
    return told
