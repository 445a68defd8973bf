"""R-Drop inside the training of CrossEncoders with sentence-transformers: a loss around any loss of theirs."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import CrossEncoder
from torch import Tensor, nn

from rdrop.integrations.answers_of_passes import AnswersOfPasses
from rdrop.integrations.objective_config import RDropConfig
from rdrop.loss import rdrop_loss
from rdrop.strategies import Request

__all__ = ["RDropConfig", "RDropLoss"]


class RDropLoss(nn.Module):
    """Any loss of a CrossEncoder, in the mean over passes, and the divergence of the scores of these passes.

        mean over passes of the loss + alpha * D(scores of the passes)

    (Liang et al. 2021, eq. 4, in the units of `rdrop.rdrop_loss`). The passes are those of `rdrop.forward_passes`, one
    doubled batch as a rule, so it works under DistributedDataParallel. Whatever else the loss draws, such as negatives,
    is the same for all passes. In evaluation the loss is as before. The log has both parts.

    Args:
        loss: A loss of `sentence_transformers.cross_encoder.losses`, with its model.
        rdrop: The objective. With one label the scores are tied as probabilities of a yes (`kind="binary"`), unless the
            kind is `regression`; with several as probabilities of classes.

    Raises:
        ValueError: The configuration asks for what depends on the step: a schedule, or `every`.
        TypeError: The loss has no CrossEncoder.
    """

    def __init__(self, loss: nn.Module, rdrop: RDropConfig) -> None:
        super().__init__()
        if not isinstance(getattr(loss, "model", None), CrossEncoder):
            raise TypeError(
                f"loss is {type(loss).__name__}, which has no CrossEncoder as its model; expected one of "
                "sentence_transformers.cross_encoder.losses"
            )
        if rdrop.schedule != "constant" or rdrop.every != 1:
            raise ValueError(
                f"schedule is {rdrop.schedule!r} and every is {rdrop.every}; a loss knows no steps: expected "
                "'constant' and 1"
            )
        self.loss = loss
        self.rdrop = rdrop
        self._passes: tuple[Any, AnswersOfPasses] | None = None

    def forward(self, inputs: Any, labels: Any, **kwargs: Any) -> Any:
        """The two parts of the objective in training, whose sum is minimised; the loss itself in evaluation.

        Args:
            inputs: As the loss takes them: columns of texts.
            labels: As the loss takes them.
            **kwargs: As the loss takes them.
        """
        model: Any = self.loss.model
        if not model.training:
            return self.loss(inputs, labels, **kwargs)
        if self._passes is None or self._passes[0] is not model:  # the trainer wraps it for several processes
            self._passes = model, AnswersOfPasses({"model": model}, self.rdrop)
        losses, questions = self._passes[1].run(lambda _: _sum(self.loss(inputs, labels, **kwargs)))
        scores = [torch.stack([each["scores"] for each in question.answers]) for question in questions]
        several = scores[0].dim() > 2 and scores[0].size(-1) > 1
        joined = torch.cat([each.flatten(1) if not several else each for each in scores], dim=1)
        kind = self.rdrop.kind if several or self.rdrop.kind == "regression" else "binary"
        stands_for = Request(self.rdrop.passes, self.rdrop.fraction).stands_for(scores[0].size(1))
        tied = rdrop_loss(
            joined,
            None,
            kind=kind,
            divergence=self.rdrop.divergence,
            stop_gradient=self.rdrop.stop_gradient,
            impl=self.rdrop.impl,
        ).divergence
        return {"task_loss": torch.stack(losses).mean(), "weighted_divergence": self.rdrop.alpha * stands_for * tied}


def _sum(found: Any) -> Tensor:
    """A loss, of which some give several parts."""
    return torch.stack(list(found.values())).sum() if isinstance(found, dict) else found
