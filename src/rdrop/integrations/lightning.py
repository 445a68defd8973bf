"""R-Drop inside the training of a LightningModule: a callback, and nothing of the module rewritten."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from rdrop.errors import NoEffectWarning
from rdrop.integrations.answers_of_passes import AnswersOfPasses, Question
from rdrop.integrations.logits_of_outputs import logits_of
from rdrop.integrations.objective_config import IGNORE_INDEX, RDropConfig
from rdrop.loss import rdrop_loss
from rdrop.schedule import Schedule, named
from rdrop.stochastic import starts_at_zero, stochastic_layers
from rdrop.strategies import Request

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    try:
        from lightning.pytorch import Callback
    except ModuleNotFoundError:
        from pytorch_lightning import Callback

__all__ = ["RDropCallback", "RDropConfig"]


class RDropCallback(Callback):
    """R-Drop for any LightningModule with automatic optimization; its class stays as it is.

    A training step minimises

        mean over passes of the loss that training_step returns + alpha * D(logits of the passes)

    (Liang et al. 2021, eq. 4, in the units of `rdrop.rdrop_loss`). `training_step` is called once for each pass, and
    what it asks its networks is answered for that pass: as a rule one network is called in it, once, and that call
    makes all passes in one forward (`rdrop.forward_passes`). What the step itself draws, such as a mixup, is the same
    for all passes. What it logs, and the metrics of torchmetrics that the module has, see the first pass. Validation,
    test and prediction, checkpoints and `configure_optimizers` are untouched.

    `task_loss`, `divergence` and `alpha` are logged in each step, as with `self.log` in `training_step`.

    Args:
        rdrop: The objective. None: `RDropConfig()`. Its `branch_at` names a module of the network that is called.
        network: The network whose answers are tied, by its name in the LightningModule; `self` is the forward of
            the LightningModule. None: the one that `training_step` calls, if it calls one.
        logits: Picks the logits `(B, ..., C)` from what the network returns. None: the tensor itself, the first item of
            a tuple, or the key `logits`.
        labels: Where a batch has the labels `(B, ...)`, of which -100 does not count, or a bool mask, True where a
            position counts: a key, an index, an attribute, or a function of the batch. None: every row counts; networks
            that answer at several positions of a row need it.
        normalizer: Replaces the number of positions that the divergence of a micro-batch is divided by: a number, or a
            function of the batch. For a `training_step` that divides its loss by a count of its own.

    Raises:
        ValueError: Before training: manual optimization, a compiled LightningModule, a `training_step` that takes an
            iterator, a `network` that is none, a schedule without a known end. In the first step: it is open which
            network or which positions are meant.
        TypeError: In the first step: what `labels` leads to cannot say which positions count.

    Warns:
        NoEffectWarning: In the first step, if the passes cannot differ.

    Examples:
        >>> import logging, torch
        >>> from lightning.pytorch import LightningModule, Trainer
        >>> logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        >>> class Classifier(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 3))
        ...     def training_step(self, batch, batch_idx):
        ...         x, y = batch
        ...         return torch.nn.functional.cross_entropy(self.model(x), y)
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> options = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        >>> options |= {"enable_model_summary": False, "accelerator": "cpu", "max_steps": 3}
        >>> trainer = Trainer(callbacks=[RDropCallback(RDropConfig(alpha=1.0))], **options)
        >>> data = torch.utils.data.TensorDataset(torch.ones(8, 4), torch.zeros(8, dtype=torch.long))
        >>> trainer.fit(Classifier(), torch.utils.data.DataLoader(data, batch_size=4))
        >>> sorted(trainer.callback_metrics)
        ['alpha', 'divergence', 'task_loss']
    """

    def __init__(
        self,
        rdrop: RDropConfig | None = None,
        *,
        network: str | None = None,
        logits: Callable[[Any], Tensor] | None = None,
        labels: str | int | Callable[[Any], Tensor] | None = None,
        normalizer: float | Callable[[Any], float | Tensor] | None = None,
    ) -> None:
        self.rdrop = rdrop or RDropConfig()
        self.network = network
        self._tie = _Tie(self.rdrop, network, logits or logits_of, labels, normalizer)
        self._steps: _Steps | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Refuses what cannot be trained.

        Args:
            trainer: The Trainer.
            pl_module: The LightningModule.
            stage: What begins; nothing but `fit` matters.
        """
        if stage != "fit":
            return
        name = type(pl_module).__name__
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{name} optimizes by hand (automatic_optimization is False): its loss does not pass by the Trainer. "
                "Leave the callback out, and call rdrop.forward_passes and rdrop.rdrop_loss in training_step"
            )
        if getattr(pl_module, "_compiler_ctx", None) is not None:
            raise ValueError(
                f"torch.compile has the whole {name}, with the training_step that is to be called for each pass; "
                "compile the network alone, such as module.model.compile()"
            )
        if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
            raise ValueError(
                f"training_step of {name} takes its batches from an iterator, and each pass would take another one; "
                "expected training_step(self, batch, batch_idx)"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on, a training step is that of all passes.

        Args:
            trainer: The Trainer.
            pl_module: The LightningModule.
        """
        if self.network not in (None, "self", *dict(pl_module.named_modules())):
            raise ValueError(
                f"network is {self.network!r}, which {type(pl_module).__name__} does not have; expected one of self, "
                + ", ".join(child for child, _ in pl_module.named_children())
            )
        self._steps = _Steps(self.rdrop, self._tie, trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """The LightningModule has its own `training_step` again.

        Args:
            trainer: The Trainer.
            pl_module: The LightningModule.
        """
        if self._steps is not None:
            self._steps.remove()
            self._steps = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """As at the end of training.

        Args:
            trainer: The Trainer.
            pl_module: The LightningModule.
            exception: What went wrong.
        """
        self.on_train_end(trainer, pl_module)


class _Tie:
    """The divergence of what a network answered in the passes of a step."""

    def __init__(
        self,
        rdrop: RDropConfig,
        network: str | None,
        logits: Callable[[Any], Tensor],
        labels: str | int | Callable[[Any], Tensor] | None,
        normalizer: float | Callable[[Any], float | Tensor] | None,
    ) -> None:
        self.rdrop, self.network = rdrop, network
        self.logits, self.labels, self.normalizer = logits, labels, normalizer
        self._compared = False

    def __call__(self, questions: Sequence[Question], batch: Any) -> Tensor:
        """In the mean over the calls of the network."""
        keep = self._counted(batch)
        normalizer = self.normalizer(batch) if callable(self.normalizer) else self.normalizer
        found = []
        for call in self._calls(questions):
            logits = torch.stack([self.logits(answer) for answer in call.answers])
            self._check(logits, keep, call.name)
            terms = rdrop_loss(
                logits,
                None,
                kind=self.rdrop.kind,
                mask=keep,
                normalizer=normalizer,
                divergence=self.rdrop.divergence,
                stop_gradient=self.rdrop.stop_gradient,
                impl=self.rdrop.impl,
            )
            found.append(terms.divergence * Request(len(logits), self.rdrop.fraction).stands_for(logits.size(1)))
            if not self._compared and len(questions) > 1:
                equal = all(torch.equal(logits[0], other) for other in logits[1:])
                self._compared = not (equal and any(starts_at_zero(question.network) for question in questions))
                if equal and self._compared:
                    _warn_of_equal_passes(questions)
        return torch.stack(found).mean()

    def _calls(self, questions: Sequence[Question]) -> list[Question]:
        """The calls of the network that is meant."""
        learning = [q for q in questions if q.network.training and any(True for _ in q.network.parameters())]
        asked = list(dict.fromkeys(question.name for question in learning))
        wanted = self.network or (asked[0] if len(asked) == 1 else None)
        found = [question for question in questions if question.name == wanted]
        if found:
            return found
        called = f"training_step calls {', '.join(asked) or 'no network of the LightningModule in training mode'}"
        if self.network is not None:
            raise ValueError(f"network is {self.network!r}, and {called}; name what it calls itself")
        raise ValueError(f"{called}; expected one. Say whose answers are the logits: RDropCallback(network=...)")

    def _counted(self, batch: Any) -> Tensor | None:
        """True at the positions that count; None for all."""
        if self.labels is None:
            return None
        labels: Any
        if callable(self.labels):
            labels = self.labels(batch)
        elif isinstance(self.labels, str) and not isinstance(batch, Mapping):
            labels = getattr(batch, self.labels)
        else:
            labels = batch[self.labels]
        if not isinstance(labels, Tensor) or labels.is_floating_point():
            got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(
                f"labels={self.labels!r} leads to {got}; expected class ids, -100 where none counts, or a bool mask"
            )
        return labels if labels.dtype == torch.bool else labels != IGNORE_INDEX

    def _check(self, logits: Tensor, keep: Tensor | None, name: str) -> None:
        """Refuse positions of which it is not known whether they count."""
        categorical = self.rdrop.kind == "categorical"
        one, positions = tuple(logits.shape[1:]), tuple(logits.shape[1:-1] if categorical else logits.shape[1:])
        if keep is None and categorical and len(positions) > 1:
            raise ValueError(
                f"{name} answers with logits {one}, which have several positions in a row of the batch; say where "
                "their labels are, such as RDropCallback(labels=1) for the second item of a batch"
            )
        if keep is not None and keep.shape != positions:
            raise ValueError(
                f"labels have shape {tuple(keep.shape)}, and {name} answers with logits {one}; expected labels "
                f"{positions}. Logits with the classes on axis 1 need "
                "RDropCallback(logits=lambda scores: scores.movedim(1, -1))"
            )


def _warn_of_equal_passes(questions: Sequence[Question]) -> None:
    """Say so if something is drawn in a step of several calls that does not reach the logits."""
    drawing = {q.name for q in questions if any(layer.active for layer in stochastic_layers(q.network))}
    if drawing:
        warnings.warn(
            f"R-Drop has no effect: the passes gave identical logits, although {', '.join(drawing)} draws random "
            "numbers. See in rdrop.stochastic_layers(module) whether its layers lie on the way to the logits.",
            NoEffectWarning,
            stacklevel=2,
        )


class _Steps:
    """The training steps of a LightningModule, in place of its own."""

    def __init__(self, rdrop: RDropConfig, tie: _Tie, trainer: Trainer, module: LightningModule) -> None:
        self.rdrop, self.tie, self.trainer, self.module = rdrop, tie, trainer, module
        self.alpha = _schedule(rdrop, trainer)
        self.metrics = [each for each in module.modules() if isinstance(each, Metric)]
        self.answers = AnswersOfPasses(_networks(module, self.metrics), rdrop)
        self.own = vars(module).get("training_step")
        self.step: Callable[..., Any] = module.training_step

        def training_step(*args: Any, **kwargs: Any) -> Any:
            return self(*args, **kwargs)

        # The Trainer looks at its arguments, and through one wrapper.
        training_step.__wrapped__ = getattr(self.step, "__wrapped__", self.step)  # type: ignore[attr-defined]
        vars(module)["training_step"] = training_step

    def remove(self) -> None:
        """The LightningModule as it was."""
        del vars(self.module)["training_step"]
        if self.own is not None:
            vars(self.module)["training_step"] = self.own

    def __call__(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """What `training_step` returns, with the objective as the loss."""
        step = self.trainer.global_step
        if self.rdrop.passes == 1 or step % self.rdrop.every:
            single = self.step(batch, *args, **kwargs)
            loss = _loss_of(single)
            if loss is not None:
                self.module.log("task_loss", loss.detach())
            return single

        def one(index: int) -> Any:
            with _nothing_logged(self.module, self.metrics) if index else nullcontext():
                return self.step(batch, *args, **kwargs)

        found, questions = self.answers.run(one)
        losses = [loss for each in found if (loss := _loss_of(each)) is not None]
        if len(losses) < len(found):  # the step is skipped, or the Trainer will tell what is wrong with it
            return next(each for each in found if _loss_of(each) is None)
        task_loss, divergence, alpha = torch.stack(losses).mean(0), self.tie(questions, batch), self.alpha(step)
        self.module.log_dict({"task_loss": task_loss.detach(), "divergence": divergence.detach(), "alpha": alpha})
        loss = task_loss + alpha * divergence
        return {**found[0], "loss": loss} if isinstance(found[0], Mapping) else loss


def _schedule(rdrop: RDropConfig, trainer: Trainer) -> Schedule:
    """Alpha by the optimizer step."""
    needs_end = rdrop.schedule not in ("constant", "learning_rate")
    steps = trainer.estimated_stepping_batches if needs_end else 1
    if not 0 < steps < math.inf:
        raise ValueError(
            f"schedule is {rdrop.schedule!r}, and it is not known how many steps the training has; give the Trainer "
            "max_steps"
        )
    return named(rdrop.schedule, rdrop.alpha, int(steps), trainer.optimizers[0])


def _networks(module: LightningModule, metrics: Sequence[Metric]) -> dict[str, nn.Module]:
    """What a step may ask: modules that learn or draw."""
    apart = {part for metric in metrics for part in metric.modules()}
    return {
        name or "self": each
        for name, each in module.named_modules()
        if each not in apart and (any(True for _ in each.parameters()) or stochastic_layers(each))
    }


def _loss_of(found: Any) -> Tensor | None:
    """The loss in what `training_step` returned."""
    loss = found.get("loss") if isinstance(found, Mapping) else found
    return loss if isinstance(loss, Tensor) else None


@contextmanager
def _nothing_logged(module: LightningModule, metrics: Sequence[Metric]) -> Iterator[None]:
    """Neither the log nor metrics count what happens; a metric repeats what it said last."""

    def of_metric(metric: Metric) -> dict[str, Callable[..., Any]]:
        return {"forward": lambda *_, **__: metric._forward_cache, "update": lambda *_, **__: None}

    instead: list[tuple[nn.Module, dict[str, Any]]] = [(metric, of_metric(metric)) for metric in metrics]
    instead.append((module, {"log": lambda *_, **__: None}))
    held = [(each, {name: vars(each).get(name) for name in found}) for each, found in instead]
    for each, found in instead:
        vars(each).update(found)
    try:
        yield
    finally:
        for each, before in held:
            for name, own in before.items():
                del vars(each)[name]
                vars(each).update({} if own is None else {name: own})
