"""R-Drop inside the training of CrossEncoders with sentence-transformers: a loss around any loss of theirs."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import CrossEncoder
from torch import Tensor, nn

from rdrop.integrations.objective_config import RDropConfig
from rdrop.loss import rdrop_loss
from rdrop.passes import forward_passes
from rdrop.strategies import Request
from rdrop.structures import map_leaves

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
        passes = _Passes(model, self.rdrop)
        count = self.rdrop.passes
        task = torch.stack([passes.run(index, self.loss, inputs, labels, **kwargs) for index in range(count)])
        scores = [answer["scores"] for answer in passes.answers]
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
        return {"task_loss": task.mean(), "weighted_divergence": self.rdrop.alpha * stands_for * tied}


class _Passes:
    """The answers of a model to what one call of a loss asks it, for all passes at once.

    The loss is called once for each pass. In the first call every question is put to the model, with all passes; in the
    others the answers are there already. Random numbers between the questions are the same in each call.
    """

    def __init__(self, model: Any, rdrop: RDropConfig) -> None:
        self.model, self.rdrop = model, rdrop
        self.answers: list[Any] = []
        self._generators = [torch.default_generator]
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            self._generators += torch.cuda.default_generators
        self._states = [self._state()]
        self._pass = self._question = 0
        self._asking = False
        self._forward = model.forward

    def run(self, index: int, loss: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of one pass."""
        self._pass, self._question = index, 0
        self._go_back_to(self._states[0])
        own = self.model.__dict__.get("forward")
        self.model.__dict__["forward"] = self._answer
        try:
            found = loss(*args, **kwargs)
        finally:
            del self.model.__dict__["forward"]
            if own is not None:
                self.model.__dict__["forward"] = own
        return torch.stack(list(found.values())).sum() if isinstance(found, dict) else found

    def _answer(self, *args: Any, **kwargs: Any) -> Any:
        """In place of the model's forward."""
        if self._asking:
            return self._forward(*args, **kwargs)
        if self._pass == 0:
            self._asking = True
            try:
                options: dict[str, Any] = {"fraction": self.rdrop.fraction, "one_sided": self.rdrop.one_sided}
                answer = forward_passes(
                    self.model,
                    *args,
                    passes=self.rdrop.passes,
                    strategy=self.rdrop.strategy,
                    branch_at=self.rdrop.branch_at,
                    **options,
                    **kwargs,
                )
            finally:
                self._asking = False
            self.answers.append(answer)
            self._states.append(self._state())
        answer = self.answers[self._question]
        self._question += 1
        self._go_back_to(self._states[self._question])
        return map_leaves(lambda leaf: leaf[self._pass] if isinstance(leaf, Tensor) and leaf.dim() else leaf, answer)

    def _state(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators]

    def _go_back_to(self, state: list[Tensor]) -> None:
        for generator, each in zip(self._generators, state, strict=True):
            generator.set_state(each)
