"""A run as data: every field of a recipe, with its meaning and its unit.

The classes here are the one place where a field is typed, bounded and explained. The YAML loader, the help
of `rdrop compare --help-recipe`, the documentation and the record of a run are all made from them.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

ArmName = Literal["plain", "twice", "rdrop", "longer"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def fault(message: str, *keys: str) -> PydanticCustomError:
    """A broken rule about values that are each possible; `keys` are the dotted fields that it is about."""
    return PydanticCustomError("recipe", "{message}", {"message": message, "keys": keys})


def _distinct(values: list[int] | list[ArmName]) -> list[int] | list[ArmName]:
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

    name: Literal["digits"] = Field(
        default="digits", description="`digits`: the 1,797 images of 8x8 pixels that scikit-learn carries."
    )
    train_size: Annotated[int, Field(ge=20, le=1700)] = Field(
        default=300,
        description="Labelled training images, drawn stratified by class; all others are the test split.",
    )
    split_seed: Seed | None = Field(
        default=None,
        description="Seed of the split. null: each run's own seed, so that the intervals also cover which "
        "images happen to be labelled.",
    )


class Model(Section):
    """The network."""

    name: Literal["digits-cnn"] = Field(
        default="digits-cnn",
        description="`digits-cnn`: two 3x3 convolutions (32, 64), max-pooling, dropout, linear 128, dropout, linear.",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.3, description="Probability of dropping a unit, in every dropout layer."
    )


class Training(Section):
    """How a run is trained; the same for every arm."""

    epochs: Annotated[int, Field(ge=1)] = Field(
        default=60, description="Passes over the training split (the arm `longer` makes more of them)."
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(default=32, description="Examples in a step.")
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = Field(
        default=1,
        description="Micro-batches in an optimizer step; the gradient is that of the one big batch.",
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(default=1e-3, description="Peak learning rate of AdamW.")
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="Course of the learning rate after the warm-up."
    )
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Fraction of the steps in which the learning rate rises from 0 to its peak."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.01, description="Decoupled weight decay of AdamW.")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Share of the target that is spread evenly over the classes."
    )
    eval_every_epochs: Annotated[int, Field(ge=1)] = Field(
        default=5, description="Epochs between two points of the learning curve."
    )


class RDrop(Section):
    """The objective: what the arm `rdrop` adds to plain training."""

    alpha: Annotated[float, Field(ge=0)] = Field(
        default=1.0,
        description="Weight of the divergence beside the mean cross-entropy (see `rdrop.conventions`).",
    )
    schedule: Literal["constant", "warmup", "linear_decay", "cosine_decay", "learning_rate"] = Field(
        default="constant",
        description="Course of alpha: fixed; linear warm-up over the first tenth; linear or cosine decay to "
        "0; in proportion to the learning rate.",
    )
    passes: Annotated[int, Field(ge=2, le=16)] = Field(default=2, description="Forward passes in a step (M).")
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


class Compare(Section):
    """What is set against what."""

    arms: Annotated[list[ArmName], Field(min_length=1), AfterValidator(_distinct), AfterValidator(_with_plain)] = Field(
        default=["plain", "twice", "rdrop", "longer"],
        description="`plain`: one pass. `twice`: all passes, alpha 0. `rdrop`: all passes and the "
        "divergence. `longer`: plain, with as many more steps as make its compute equal to that of `rdrop`.",
    )
    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)] = Field(
        default=[0, 1, 2, 3, 4],
        description="Seeds of data split, initial weights, data order and dropout; the same for every arm.",
    )
    samples: Annotated[int, Field(ge=2)] = Field(
        default=16, description="Dropout-on predictions that the consistency gap averages."
    )


class Recipe(Section):
    """A complete comparison."""

    title: str = Field(default="Digits with 300 labels", description="Heading of the report.")
    data: Data = Field(default=Data(), description="What to train and test on.")
    model: Model = Field(default=Model(), description="The network.")
    training: Training = Field(default=Training(), description="How a run is trained; the same for every arm.")
    rdrop: RDrop = Field(default=RDrop(), description="What the arm `rdrop` adds to plain training.")
    compare: Compare = Field(default=Compare(), description="What is set against what.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.training.batch_size > self.data.train_size:
            raise fault(
                f"got {self.training.batch_size}, expected at most data.train_size, which is {self.data.train_size}",
                "training.batch_size",
                "data.train_size",
            )
        if "rdrop" in self.compare.arms and self.rdrop.alpha == 0 and self.model.dropout == 0:
            raise fault(
                "got 0, and 0 for model.dropout, with which the arm rdrop is the arm twice; set at least one "
                "of them above 0 or leave rdrop out of compare.arms",
                "rdrop.alpha",
                "model.dropout",
            )
        return self


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
    if recipe.model.dropout == 0:
        told.append("model.dropout is 0: the passes are identical and the arm rdrop cannot differ from twice.")
    if recipe.rdrop.alpha == 0:
        told.append("rdrop.alpha is 0: the arm rdrop has no divergence term and does the same as twice.")
    return told
