"""Tasks of transformers whose loss is not a cross-entropy with `labels`: spans, transcripts, losses of the user's own.

Each class takes a batch apart into what the model gets and what its answers are held against, and gives the terms of
the objective for the answers of M passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES

from rdrop.integrations.logits_of_outputs import logits_of
from rdrop.integrations.objective_config import IGNORE_INDEX
from rdrop.loss import RDropOutput, rdrop_loss
from rdrop.structures import map_leaves

SPAN_LABELS = ("start_positions", "end_positions")
SPAN_LOGITS = ("start_logits", "end_logits")

Options = Mapping[str, Any]


class Target(Protocol):
    """What the answers to a batch are held against."""

    @property
    def batch(self) -> dict[str, Any]:
        """What the model gets."""

    @property
    def rows(self) -> int:
        """B."""

    def weight(self, count: object, share: float, ranks: float) -> float:
        """By what the terms of a micro-batch are multiplied in the sum over those of an optimizer step.

        Args:
            count: The Trainer's count of the labels in all of them, or None.
            share: Of this micro-batch in the step: one over their number.
            ranks: Processes whose gradients are averaged, where the count is that of all.
        """

    def objective(self, outputs: Any, options: Options, count: Tensor | float | None) -> RDropOutput:
        """The terms of a micro-batch; `options` are those of `rdrop_loss`."""


@dataclass
class Spans:
    """A first and a last position in each text: the mean of the two objectives, as in the models' own loss."""

    batch: dict[str, Any]
    positions: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> Spans | None:
        """The target of a batch with span labels; None for another."""
        if not all(name in inputs for name in SPAN_LABELS):
            return None
        batch = {name: value for name, value in inputs.items() if name not in SPAN_LABELS}
        start, end = (inputs[name] for name in SPAN_LABELS)
        return cls(batch, (start, end))

    @property
    def rows(self) -> int:
        """B."""
        return len(self.positions[0])

    def weight(self, count: object, share: float, ranks: float) -> float:  # noqa: ARG002
        """A mean over micro-batches."""
        return share

    def objective(
        self,
        outputs: Any,
        options: Options,
        count: Tensor | float | None,  # noqa: ARG002
    ) -> RDropOutput:
        """The mean over first and last positions; those beyond the text do not count."""
        found = []
        for name, positions in zip(SPAN_LOGITS, self.positions, strict=True):
            logits: Tensor = outputs[name]
            places = positions.flatten().clamp(min=0)
            places = places.masked_fill(places >= logits.size(-1), IGNORE_INDEX)
            found.append(rdrop_loss(logits, places, **options))
        return RDropOutput(*(torch.stack(terms).mean(0) for terms in zip(*found, strict=True)))


@dataclass
class Transcripts:
    """Characters without times (CTC): the model's loss, and the divergence in the mean over the frames of a recording.

    Both are averaged over recordings, or summed where the model's configuration says so (`ctc_loss_reduction`).
    """

    batch: dict[str, Any]
    labels: Tensor
    model: Any

    @classmethod
    def of(cls, inputs: Mapping[str, Any], model: nn.Module) -> Transcripts | None:
        """The target of a batch for a model with a CTC head; None for another.

        Raises:
            ValueError: The model does not tell how many frames it makes of a recording.
        """
        if type(model).__name__ not in MODEL_FOR_CTC_MAPPING_NAMES.values() or "labels" not in inputs:
            return None
        if not hasattr(model, "_get_feat_extract_output_lengths"):
            raise ValueError(
                f"RDropTrainer does not know how many frames {type(model).__name__} makes of a recording. Give the "
                "Trainer a compute_loss_func with your CTC loss; R-Drop then adds the divergence to it."
            )
        batch = dict(inputs)
        return cls(batch, batch.pop("labels"), model)

    @property
    def rows(self) -> int:
        """B."""
        return len(self.labels)

    def weight(self, count: object, share: float, ranks: float) -> float:  # noqa: ARG002
        """A mean over micro-batches, or their sum, as over recordings."""
        return 1.0 if self._is_summed else share

    def objective(
        self,
        outputs: Any,
        options: Options,
        count: Tensor | float | None,  # noqa: ARG002
    ) -> RDropOutput:
        """CTC as the model's configuration has it, and the divergence over frames."""
        logits: Tensor = outputs["logits"]
        frames = self._frames(logits)
        keep = torch.arange(logits.size(2), device=logits.device) < frames[:, None]
        by_frame = _tied(logits, {**options, "reduction": "none"}, keep).divergence
        by_recording = by_frame.sum(1) / frames
        tied = by_recording.sum() if self._is_summed else by_recording.mean()
        task = torch.stack([self._ctc(one, frames) for one in logits]).mean()
        return RDropOutput(task + options["alpha"] * tied, task, tied)

    @property
    def _is_summed(self) -> bool:
        """Whether the loss is a sum over recordings."""
        return bool(self.model.config.ctc_loss_reduction == "sum")

    def _frames(self, logits: Tensor) -> Tensor:
        """Frames of each recording, without the padding."""
        held = self.batch.get("attention_mask")
        if held is None:
            return torch.full((logits.size(1),), logits.size(2), device=logits.device)
        lengths: Tensor = self.model._get_feat_extract_output_lengths(held.sum(-1))
        return lengths.long().to(logits.device)

    def _ctc(self, logits: Tensor, frames: Tensor) -> Tensor:
        """The CTC loss of one pass `(B, T, V)`."""
        config = self.model.config
        held = (self.labels >= 0) & (self.labels != config.pad_token_id)
        with torch.backends.cudnn.flags(enabled=False):
            return F.ctc_loss(
                logits.log_softmax(-1, dtype=torch.float32).transpose(0, 1),
                self.labels[held],
                frames,
                held.sum(-1),
                blank=config.pad_token_id,
                reduction=config.ctc_loss_reduction,
                zero_infinity=config.ctc_zero_infinity,
            )


@dataclass
class OwnLoss:
    """A `compute_loss_func`: its mean over the passes, and the divergence of their logits."""

    batch: dict[str, Any]
    labels: Any
    function: Callable[..., Tensor]
    keep: Tensor | None

    @property
    def rows(self) -> int:
        """B."""
        return len(self.labels)

    def weight(self, count: object, share: float, ranks: float) -> float:  # noqa: ARG002
        """The function has scaled it; what is divided by the count of all processes is a share of their mean."""
        return 1.0 if count is None else ranks

    def objective(self, outputs: Any, options: Options, count: Tensor | float | None) -> RDropOutput:
        """The function's terms, as it scales them; the divergence in the mean over the labels that count."""
        logits = logits_of(outputs)
        losses = [
            self.function(_of_pass(outputs, index), self.labels, num_items_in_batch=count)
            for index in range(len(logits))
        ]
        keep = self.keep if self.keep is None or self.keep.shape == logits.shape[1 : 1 + self.keep.dim()] else None
        normalizer = count if keep is not None and keep.shape == logits.shape[1:-1] else None
        tied = _tied(logits, options, keep, normalizer)
        task = torch.stack(losses).mean()
        return RDropOutput(task + options["alpha"] * tied.divergence, task, tied.divergence)


def _tied(
    logits: Tensor, options: Options, keep: Tensor | None, normalizer: Tensor | float | None = None
) -> RDropOutput:
    """The divergence alone, which is that of unlabelled data."""
    own = {"mask": keep, "normalizer": normalizer, "class_weight": None, "label_smoothing": 0.0}
    return rdrop_loss(logits, None, **{**options, **own})


def _of_pass(outputs: Any, index: int) -> Any:
    """The outputs of one pass."""
    return map_leaves(lambda leaf: leaf[index] if isinstance(leaf, Tensor) and leaf.dim() else leaf, outputs)
