"""R-Drop as a training task of timm: the passes of a step in one forward, and any criterion of timm's."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.layers.split_batchnorm import SplitBatchNorm2d
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from timm.utils.model import unwrap_model
from torch import Tensor, nn

from rdrop.block_names import block
from rdrop.integrations.objective_config import RDropConfig
from rdrop.loss import rdrop_loss
from rdrop.options import check_alpha
from rdrop.passes import forward_passes
from rdrop.schedule import Schedule, constant
from rdrop.strategies import Request

try:
    from timm.task import ClassificationTask

    _ = ClassificationTask.update_ema
except (ImportError, AttributeError) as error:
    raise ImportError(
        f"rdrop.integrations.timm needs timm 1.0.27 or newer, whose tasks are told the number of each update; found "
        f"{timm.__version__}. Install it with: pip install --upgrade timm"
    ) from error

__all__ = ["RDropConfig", "RDropTask"]


class RDropTask(ClassificationTask):
    """`timm.task.ClassificationTask` with the R-Drop objective in training; evaluation and checkpoints are timm's own.

    A step makes `rdrop.passes` forward passes over the batch and gives

        loss = mean over passes of criterion(logits, target) + alpha * D(passes)

    (Liang et al. 2021, eq. 4, in the units of `rdrop.rdrop_loss`). D is a mean over the rows of the batch, as the
    criteria of timm are. Class ids `(B,)`, the soft targets `(B, C)` of Mixup and CutMix, and the splits of AugMix go
    to the criterion as they are. Without gradients it makes one pass.

    Under DistributedDataParallel all passes are made inside of the one forward that it expects, so every strategy can
    be used there.

    Args:
        model: A model of timm, or any other that gives logits `(B, C)`.
        *args: As for `timm.task.ClassificationTask`: the criterion first.
        rdrop: The objective. Where the criterion takes classes as independent of each other, its kind is `binary`.
        **kwargs: As for `timm.task.ClassificationTask`.

    Attributes:
        schedule: Alpha as a function of the update, counted from 0: `rdrop.schedule` has the usual ones. Constant
            until another is set.
        num_updates: Updates so far; None until `update_ema` tells it.

    Raises:
        ValueError: The configuration names what a task cannot know or do, or does not fit the criterion.
        ImportError: On import of this module, if timm is older than 1.0.27.

    Examples:
        >>> import torch, timm
        >>> model = timm.create_model("test_resnet", num_classes=3, drop_rate=0.3)
        >>> task = RDropTask(model, torch.nn.CrossEntropyLoss(), rdrop=RDropConfig(alpha=1.0))
        >>> result = task(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))
        >>> sorted(result), result["output"].shape
        (['divergence', 'loss', 'output', 'task_loss'], torch.Size([4, 3]))
        >>> result["loss"].backward()
    """

    def __init__(self, model: nn.Module, *args: Any, rdrop: RDropConfig, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self.rdrop = rdrop
        bare: nn.Module = unwrap_model(model)  # type: ignore[no-untyped-call]
        self._check(bare)
        self.schedule: Schedule = constant(rdrop.alpha)
        self.num_updates: int | None = None
        self._fixed = self.schedule
        self._first_weights: int | None = None
        self._branch_at = None if rdrop.branch_at is None else block(bare, rdrop.branch_at)

    def _check(self, model: nn.Module) -> None:
        """Refuse what would be another objective than the one that is asked for."""
        rdrop = self.rdrop
        if rdrop.schedule != "constant":
            raise ValueError(
                f"schedule is {rdrop.schedule!r}; expected 'constant', since a task does not know how long training "
                "is. Set the attribute of the task: task.schedule = rdrop.schedule.linear_warmup(alpha, steps)"
            )
        if rdrop.linear_head:
            raise ValueError("linear_head is True, which is for language models; leave it at None")
        independent = getattr(self, "multi_label", False) or isinstance(
            self.criterion, BinaryCrossEntropy | nn.BCEWithLogitsLoss
        )
        if independent and rdrop.kind == "categorical":
            raise ValueError(
                f"kind is 'categorical', but {type(self.criterion).__name__} takes the classes as independent of each "
                "other, so their probabilities are no softmax; expected RDropConfig(kind='binary')"
            )
        if rdrop.strategy in ("auto", "concat") and any(isinstance(m, SplitBatchNorm2d) for m in model.modules()):
            raise ValueError(
                f"strategy is {rdrop.strategy!r}, and the model has SplitBatchNorm2d layers, which divide a batch by "
                "its order: a doubled batch would be divided into other parts. Use strategy='sequential'"
            )

    @property
    def alpha(self) -> float:
        """Weight of the divergence in the present update."""
        return check_alpha(self.schedule(self.num_updates or 0))

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The passes over a batch, and the objective.

        Args:
            input: Images `(B, ...)`; also the dictionary of a NaFlex loader. It is not changed.
            target: What the criterion takes: class ids `(B,)` or soft targets `(B, C)`.

        Returns:
            `loss`, `task_loss` and `divergence`, scalars with gradients; `output`, the logits of the first pass
            `(B, C)`, which are what a plain task would give.

        Raises:
            TypeError: The model gives something else than one tensor.
            RuntimeError: Alpha or the number of passes depends on the update, and `update_ema` is not called.
        """
        rdrop = self.rdrop
        self._check_that_updates_are_told()
        several = torch.is_grad_enabled() and (self.num_updates or 0) % rdrop.every == 0
        passes = rdrop.passes if several else 1
        logits = self._make_passes(
            input,
            passes=passes,
            strategy=rdrop.strategy,
            fraction=rdrop.fraction,
            branch_at=self._branch_at,
            one_sided=rdrop.one_sided,
        )
        if not isinstance(logits, Tensor):
            raise TypeError(f"the model gave a {type(logits).__name__}; expected its logits (B, C) as one tensor")
        task_loss = torch.stack([self.criterion(each, target) for each in logits]).mean()
        tied = rdrop_loss(
            logits,
            None,
            kind=rdrop.kind,
            divergence=rdrop.divergence,
            stop_gradient=rdrop.stop_gradient,
            impl=rdrop.impl,
        ).divergence
        if passes > 1:
            tied = tied * Request(passes, rdrop.fraction).stands_for(logits.size(1))
        return {
            "loss": task_loss + self.alpha * tied,
            "output": logits[0],
            "task_loss": task_loss,
            "divergence": tied,
        }

    def _make_passes(self, *args: Any, **options: Any) -> Any:
        """What `forward_passes` gives for the model, wrapped or not."""
        module = self.trainable_module
        inside = isinstance(getattr(module, "module", None), _OneForward)
        return module(*args, **options) if inside else forward_passes(module, *args, **options)

    def prepare_distributed(self, device_ids: list[Any] | None = None, **ddp_kwargs: Any) -> RDropTask:
        """Wraps the model in DistributedDataParallel, all passes of a step inside of it.

        Args:
            device_ids: As for `timm.task.ClassificationTask`.
            **ddp_kwargs: As for `timm.task.ClassificationTask`.

        Returns:
            The task.
        """
        self.trainable_module = _OneForward(self.trainable_module)
        super().prepare_distributed(device_ids, **ddp_kwargs)
        return self

    def update_ema(self, step: int | None = None) -> None:
        """Called by timm's loop after each update, with the number of updates so far, whether or not there is an EMA.

        Args:
            step: Updates so far; None adds one.
        """
        self.num_updates = (self.num_updates or 0) + 1 if step is None else step
        super().update_ema(step)

    def _check_that_updates_are_told(self) -> None:
        """Refuse to stay at update 0 in a loop of one's own."""
        if self.num_updates is not None or (self.rdrop.every == 1 and self.schedule is self._fixed):
            return
        weights = sum(weight._version for weight in self.trainable_module.parameters())
        if self._first_weights not in (None, weights):
            raise RuntimeError(
                "the weights have been updated, but the task was not told: alpha, or `every`, depends on the number of "
                "the update. Call task.update_ema(step=...) with the number of updates so far after each, as timm's "
                "own training script does"
            )
        self._first_weights = weights

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:  # noqa: ARG002
        """The number of updates, for a checkpoint.

        Args:
            module: As for `timm.task.TrainingTask`.
            ema: Whether the checkpoint of the averaged weights asks for it; they have none.
        """
        return {} if ema or self.num_updates is None else {"num_updates": self.num_updates}

    def load_task_state(
        self,
        state: dict[str, Any] | None,
        strict: bool = True,  # noqa: ARG002
        module: nn.Module | None = None,  # noqa: ARG002
        ema: bool = False,
    ) -> None:
        """Goes on from a checkpoint.

        Args:
            state: What `get_task_state` gave, or None for a checkpoint of a plain task.
            strict: As for `timm.task.TrainingTask`.
            module: As for `timm.task.TrainingTask`.
            ema: As for `get_task_state`.
        """
        if state and not ema:
            self.num_updates = state["num_updates"]


class _OneForward(nn.Module):
    """A model that makes all its passes in one forward; by the name `module`, timm finds the model in it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model

    def forward(self, *args: Any, **options: Any) -> Any:
        """The passes, or without options a plain forward."""
        return forward_passes(self.module, *args, **options) if options else self.module(*args)
