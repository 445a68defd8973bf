"""What a host is told about the objective: one dataclass, which a command line can fill in too."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TypeVar

from rdrop.kernels import Impl
from rdrop.options import Divergence, Kind, StopGradient, check_alpha, check_choice
from rdrop.passes import Strategy
from rdrop.schedule import Course

IGNORE_INDEX = -100  # a label that does not count, in every trainer
_T = TypeVar("_T")


def _with_help(cls: type[_T]) -> type[_T]:
    """Give every field of a dataclass the text that its docstring has on it, where command-line parsers look for it."""
    _, _, text = inspect.cleandoc(cls.__doc__ or "").partition("Args:\n")
    told = dict(re.findall(r"^    (\w+): (.*(?:\n {6,}.*)*)", text, flags=re.MULTILINE))
    for field in fields(cls):  # type: ignore[arg-type]
        words = " ".join(told[field.name].split())
        field.metadata = MappingProxyType({"help": words.replace("`", "").replace("%", "%%")})
    return cls


@_with_help
@dataclass(frozen=True)
class RDropConfig:
    """The objective of a trainer, in the style of `transformers.TrainingArguments`.

    Plain training and R-Drop differ by the field `passes` alone: with 1 there is no pair of answers to tie
    together, so the loss is the mean task loss of one pass. Label smoothing is not repeated here: the
    trainer's own is used.

    `transformers.HfArgumentParser` reads it from a command line, alone or beside `TrainingArguments`.

    Args:
        alpha: Weight of the divergence beside the mean task loss, at least 0.
        schedule: Course of alpha over the training: `constant`; `warmup`, linear over the first tenth of the steps;
            `linear_decay` or `cosine_decay` to 0; `learning_rate`, in proportion to the learning rate.
        passes: Forward passes in a step (M), at least 1.
        every: Make them in each `every`-th optimizer step alone, and a single pass in the others, at least 1. A
            divergence that counts in one step of k weighs as much as before with k times the alpha: its gradient is the
            same in the mean over steps, and its variance k times as large.
        fraction: Share of the rows of a micro-batch that make the passes after the first, 0 < fraction <= 1. Their
            divergence is scaled up to stand for all rows.
        branch_at: Where the passes part, see `rdrop.forward_passes`: the name of a module, or -1 for the last block in
            `rdrop.blocks`, -2 for the one before.
        one_sided: The passes after the first have no gradients, see `rdrop.forward_passes`.
        strategy: How the passes are run, see `rdrop.forward_passes`.
        kind: What the logits mean, see `rdrop.rdrop_loss`.
        divergence: What ties the passes together, see `rdrop.divergence`.
        stop_gradient: Passes that are held constant inside the divergence.
        impl: Implementation of the loss, see `rdrop.rdrop_loss`.
        linear_head: Whether the loss of a language model is computed on its hidden states, with
            `rdrop.linear_rdrop_loss`, so that the logits of a batch never exist as a whole. None: where they would take
            128 MiB or more, and the model's head is understood. True: always, and an error where it is not understood.

    Raises:
        ValueError: A value is out of range.

    Examples:
        >>> RDropConfig(alpha=5.0).passes
        2
        >>> from transformers import HfArgumentParser
        >>> (config,) = HfArgumentParser([RDropConfig]).parse_args_into_dataclasses(["--alpha", "3", "--one_sided"])
        >>> config.alpha, config.one_sided
        (3.0, True)
    """

    alpha: float = 1.0
    schedule: Course = "constant"
    passes: int = 2
    every: int = 1
    fraction: float = 1.0
    branch_at: str | None = None
    one_sided: bool = False
    strategy: Strategy = "auto"
    kind: Kind = "categorical"
    divergence: Divergence = "symmetric_kl"
    stop_gradient: StopGradient | None = None
    impl: Impl = "auto"
    linear_head: bool | None = None

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        for name, choices in (("schedule", Course), ("strategy", Strategy), ("kind", Kind), ("divergence", Divergence)):
            check_choice(name, getattr(self, name), choices)
        if self.passes < 1:
            raise ValueError(f"passes is {self.passes}; expected at least 1")
        if self.every < 1:
            raise ValueError(f"every is {self.every}; expected at least 1, which is R-Drop in each step")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction is {self.fraction}; expected a share of the rows, 0 < fraction <= 1")
