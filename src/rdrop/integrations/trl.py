"""R-Drop inside TRL's trainer for supervised fine-tuning."""

from __future__ import annotations

from typing import Any

from trl.trainer.sft_trainer import SFTTrainer

from rdrop.integrations.objective_config import RDropConfig
from rdrop.integrations.transformers import RDropTrainer

__all__ = ["RDropConfig", "RDropSFTTrainer"]


class RDropSFTTrainer(RDropTrainer, SFTTrainer):
    """`trl.SFTTrainer` with the R-Drop objective in training; data, packing, adapters and evaluation are TRL's own.

    The training loss is the mean over the tokens that are predicted. TRL's own `loss_type` and its token metrics of
    training steps have no place in it; those of evaluations are as before.

    Args:
        *args: As for `trl.SFTTrainer`.
        rdrop: The objective.
        **kwargs: As for `trl.SFTTrainer`.

    Raises:
        ValueError: The loss type is another than the likelihood.
    """

    def __init__(self, *args: Any, rdrop: RDropConfig, **kwargs: Any) -> None:
        super().__init__(*args, rdrop=rdrop, **kwargs)
        loss_type = getattr(self.args, "loss_type", "nll")
        if loss_type != "nll":
            raise ValueError(
                f"loss_type is {loss_type!r}, which R-Drop would replace by the likelihood; expected 'nll'. "
                "For a task loss of your own, use RDropTrainer with a compute_loss_func."
            )
