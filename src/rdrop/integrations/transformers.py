"""R-Drop inside `transformers.Trainer`: one overridden loss, and nothing else of the training loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Trainer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from rdrop.block_names import block
from rdrop.integrations.language_head import LanguageHead, find_language_head, output_embeddings
from rdrop.integrations.logits_of_outputs import logits_of
from rdrop.integrations.objective_config import IGNORE_INDEX, RDropConfig
from rdrop.integrations.targets import OwnLoss, Spans, Target, Transcripts
from rdrop.kernels.linear import logits_of as logits_of_head
from rdrop.linear_loss import linear_rdrop_loss
from rdrop.loss import RDropLoss, RDropOutput, rdrop_loss
from rdrop.passes import explain_passes, forward_passes
from rdrop.schedule import Schedule, named
from rdrop.strategies import Request

__all__ = ["RDropConfig", "RDropSeq2SeqTrainer", "RDropTrainer"]

logger = logging.get_logger(__name__)

LARGE_LOGITS = 1 << 27  # bytes of logits of all passes from which on they are made in chunks


class RDropTrainer(Trainer):
    """`transformers.Trainer` with the R-Drop objective in training; evaluation and prediction are untouched.

    A training step makes `rdrop.passes` forward passes over the batch and minimises

        mean over passes of the task loss + alpha * D(passes)

    (Liang et al. 2021, eq. 4, in the units of `rdrop.rdrop_loss`). The means are over the labels other than
    -100 of the whole optimizer step, so a step of 4 micro-batches of 8 has the gradient of one batch of 32,
    however the padding is spread. Beside `loss` the log carries `task_loss`, `divergence` and `alpha`,
    averaged over the same steps, and `agreement`: the fraction of positions for which all passes of the last of these
    steps name the same class.

    It takes class ids, class probabilities or values as `labels`, `start_positions` with `end_positions`, and models
    with a CTC head. With a `compute_loss_func` the task loss is that function's, called with the outputs of each pass,
    and the divergence is that of the logits. A mixture of experts keeps its balancing loss.

    To give it to another subclass of the Trainer, inherit from both, ours first:
    `class RDropSFTTrainer(RDropTrainer, SFTTrainer)`.

    Args:
        *args: As for `transformers.Trainer`.
        rdrop: The objective.
        **kwargs: As for `transformers.Trainer`.

    Raises:
        ValueError: With several GPUs in one process.

    Examples:
        >>> import torch, tempfile
        >>> from transformers import PrinterCallback, TrainingArguments
        >>> class Net(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layers = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 3))
        ...     def forward(self, x, labels=None):
        ...         return {"logits": self.layers(x)}
        >>> rows = [{"x": torch.randn(4), "labels": i % 3} for i in range(12)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     args = TrainingArguments(folder, max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True)
        ...     trainer = RDropTrainer(Net(), args, train_dataset=rows, rdrop=RDropConfig(alpha=1.0))
        ...     trainer.remove_callback(PrinterCallback)
        ...     trainer.train().global_step
        2
    """

    def __init__(self, *args: Any, rdrop: RDropConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"RDropTrainer got {self.args.n_gpu} GPUs in one process (torch.nn.DataParallel), which "
                "splits the passes of an example over devices. Start one process for each GPU, with "
                "`torchrun` or `accelerate launch`, or show this one a single GPU with CUDA_VISIBLE_DEVICES."
            )
        self.rdrop = rdrop
        self._schedule: tuple[int, Schedule] | None = None  # for so many steps
        self.rdrop_loss = RDropLoss(
            self.alpha_at,
            kind=rdrop.kind,
            ignore_index=IGNORE_INDEX,
            label_smoothing=self.args.label_smoothing_factor,
            divergence=rdrop.divergence,
            stop_gradient=rdrop.stop_gradient,
            impl=rdrop.impl,
        )
        self._shifts_labels = (
            getattr(self, "_loss_shifts_labels", False)  # newer releases look at the model's loss itself
            or type(self._bare_model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        )
        self._decoder_needs_labels = hasattr(self._bare_model, "prepare_decoder_input_ids_from_labels")
        # The Trainer counts the labels of all micro-batches of a step, and leaves the loss undivided, for
        # losses that use that count. Ours does, whatever the model's forward takes; evaluation goes by the
        # model again.
        self._head: LanguageHead | str | None = None  # why not, or not looked for yet
        self._branch_at: str | None = None
        self._cost_is_told = False
        self._forward_takes_count = self.model_accepts_loss_kwargs
        self.model_accepts_loss_kwargs = True
        self._parts = _Parts()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of an optimizer step and the count of their labels, as in `transformers.Trainer`.

        Where the loss shifts the labels, the first one of a sequence is never predicted. Releases of
        transformers differ in whether they count it; marked as ignored, it is left out by all of them.

        Args:
            epoch_iterator: Gives the micro-batches.
            num_batches: How many to take.
            device: Where the count is wanted.

        Returns:
            The micro-batches, and the number of labels that count in all of them.
        """
        if self._shifts_labels:
            epoch_iterator = map(_without_first_labels, epoch_iterator)
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, count

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective in training; in evaluation the model's own loss of one pass.

        Args:
            model: The model, maybe wrapped for several devices.
            inputs: The batch, with `labels`; it is not changed.
            return_outputs: Return the outputs too; in training they carry a leading pass axis.
            num_items_in_batch: Labels that count in all micro-batches of this step, as the Trainer counted
                them.

        Returns:
            The scalar loss, or the loss and the outputs.
        """
        if not model.training:
            if not self._forward_takes_count:
                num_items_in_batch = None
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

        self.rdrop_loss.current_step = self.state.global_step
        share = 1 / getattr(self, "current_gradient_accumulation_steps", 1)  # unset until training starts
        target = self._target(inputs)
        if target is not None:
            return self._loss_of_target(model, target, num_items_in_batch, share, return_outputs=return_outputs)
        batch, labels, shift = self._split_labels(inputs)
        if shift:
            labels = nn.functional.pad(labels[..., 1:], (0, 1), value=IGNORE_INDEX)
        head = None if return_outputs else self._language_head(batch, labels)
        with nullcontext() if head is None else head.left_out():
            outputs = self.answers(model, batch)
        logits = logits_of(outputs)  # or what the head makes them of
        objective = partial(self._objective, head, logits, labels)
        count: Tensor | float | None = num_items_in_batch
        if count is None:
            # A mean over this micro-batch, which the Trainer divides by the number of micro-batches.
            result, weight = objective(), share
            loss = result.loss
        else:
            if self.rdrop.kind == "categorical" and labels.is_floating_point():
                count = count / labels.shape[-1]  # the Trainer counted every class of a distribution
            # A sum over this process divided by the count of all, which then average their gradients.
            result, weight = objective(normalizer=count), self._ranks
            loss = result.loss * weight
        # A mean over the micro-batch, like every regularizer: it knows no count of labels.
        loss = loss + (1.0 if count is None else share) * self._balance_of_experts(outputs)
        self._note(result, weight, share)
        if self.passes_of_step > 1 and self.rdrop.kind == "categorical" and self._logs_before_next_pair():
            self._parts.compare(_choices(head, logits.detach()), labels, self._rows_for_one_pair(len(labels)))
        return (loss, outputs) if return_outputs else loss

    def _loss_of_target(
        self, model: nn.Module, target: Target, count: Tensor | int | None, share: float, *, return_outputs: bool
    ) -> Any:
        """The objective where it is not that of `labels` alone."""
        outputs = self.answers(model, target.batch)
        stands_for = self._rows_for_one_pair(target.rows)
        options = self.rdrop_loss.options | {"alpha": self.rdrop_loss.current_alpha * stands_for}
        result = target.objective(outputs, options, count)
        result = result._replace(divergence=result.divergence * stands_for)
        weight = target.weight(count, share, self._ranks)
        self._note(result, weight, share)
        # Without a count of labels the Trainer divides by the number of micro-batches, except a loss of the user's own.
        divides = count is None and self.compute_loss_func is None
        loss = result.loss * (weight / share if divides else weight)
        return (loss, outputs) if return_outputs else loss

    def _balance_of_experts(self, outputs: Any) -> Tensor | float:
        """What a mixture of experts adds to its own loss, where its configuration asks for it."""
        found = outputs.get("aux_loss") if isinstance(outputs, Mapping) else None
        if not isinstance(found, Tensor):
            return 0.0
        return float(getattr(self._bare_model, "router_aux_loss_coef", 0.0)) * found

    def _target(self, inputs: Mapping[str, Any]) -> Target | None:
        """What the answers to a batch are held against, where it is not `labels` by a cross-entropy."""
        if self.compute_loss_func is not None:
            batch, labels, shift = self._split_labels(inputs)
            held = nn.functional.pad(labels[..., 1:], (0, 1), value=IGNORE_INDEX) if shift else labels
            ids = not held.is_floating_point() and self.rdrop.kind == "categorical"
            return OwnLoss(batch, labels, self.compute_loss_func, held != IGNORE_INDEX if ids else None)
        return Spans.of(inputs) or Transcripts.of(inputs, self._bare_model)

    @property
    def _bare_model(self) -> Any:
        """The model without wrappers for devices, compilers and adapters."""
        model: Any = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    @property
    def _ranks(self) -> float:
        """By how much a loss is multiplied that was divided by the count of all processes."""
        if not self.args.average_tokens_across_devices:
            return 1.0
        return float(self.accelerator.num_processes // self.get_tp_size())

    def _note(self, result: RDropOutput, weight: float, share: float) -> None:
        """Keep the parts of a micro-batch for the log."""
        alpha = self.rdrop_loss.current_alpha if self.passes_of_step > 1 or self.rdrop.passes == 1 else None
        self._parts.add(result.task_loss, result.divergence, alpha, weight, share)

    def answers(self, model: nn.Module, batch: dict[str, Any]) -> Any:
        """Runs the passes of a training step; the one method to override if they are not those of one model.

        Args:
            model: The model, in training mode, maybe wrapped for several devices.
            batch: The batch without its labels; it is not changed.

        Returns:
            Outputs whose logits have the pass axis first, `(M, B, ..., C)`.
        """
        rdrop = self.rdrop
        if rdrop.branch_at is not None and self._branch_at is None:
            self._branch_at = block(model, rdrop.branch_at)
        passes = self.passes_of_step
        options: dict[str, Any] = {
            "passes": passes,
            "fraction": rdrop.fraction,
            "branch_at": self._branch_at,
            "one_sided": rdrop.one_sided,
        }
        if passes > 1 and rdrop.strategy == "auto" and not self._cost_is_told:
            plan = explain_passes(model, **options, **batch)
            cost = 1 + (plan.cost[plan.strategy] - 1) / rdrop.every
            logger.info(f"  R-Drop: {plan.strategy}, {cost:.2f} times the operations of plain training. {plan.reason}.")
            self._cost_is_told = True
        return forward_passes(model, strategy=rdrop.strategy, **options, **batch)

    @property
    def passes_of_step(self) -> int:
        """Forward passes of the current optimizer step."""
        return self.rdrop.passes if self.state.global_step % self.rdrop.every == 0 else 1

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds `task_loss`, `divergence`, `alpha` and `agreement` to the training log.

        Args:
            logs: What the Trainer is about to log.
            *args: As for `transformers.Trainer.log`.
            **kwargs: As for `transformers.Trainer.log`.
        """
        parts = self._parts
        if "loss" in logs and parts.steps > 0:
            sums = torch.stack([parts.task_loss, parts.divergence, parts.agreeing, parts.compared])
            task_loss, divergence, agreeing, compared = self.accelerator.reduce(sums, reduction="mean").tolist()
            logs = {
                **logs,
                "task_loss": task_loss / parts.steps,
            }
            if parts.tied:
                logs |= {"divergence": divergence / parts.tied, "alpha": parts.alpha / parts.tied}
            if compared:
                logs["agreement"] = agreeing / compared
            self._parts = _Parts()
        super().log(logs, *args, **kwargs)

    def _split_labels(self, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor, bool]:
        """The batch without its labels, the labels, and whether logits and labels are still to be shifted."""
        batch = dict(inputs)
        labels = batch.pop("labels", None)
        shifted = batch.pop("shift_labels", None)
        if labels is None and shifted is None:
            raise ValueError(
                f"RDropTrainer got a training batch without labels, only {', '.join(batch) or 'nothing'}. "
                "Let the data set or the collator provide the key `labels`."
            )
        if self._decoder_needs_labels and "decoder_input_ids" not in batch:
            # Encoder-decoder models make the decoder's input from the labels, which forward no longer sees.
            batch["decoder_input_ids"] = self._bare_model.prepare_decoder_input_ids_from_labels(labels=labels)
        return (batch, labels, self._shifts_labels) if shifted is None else (batch, shifted, False)

    def _language_head(self, batch: dict[str, Any], labels: Tensor) -> LanguageHead | None:
        """The head that makes a model's logits, if the loss is to be computed on what it gets."""
        wanted, model = self.rdrop.linear_head, self.accelerator.unwrap_model(self.model)
        if wanted is False or (wanted is None and not self._has_large_logits(model, labels)):
            return None
        if self._head is None:
            if self.rdrop.kind != "categorical":
                self._head = f"the objective is {self.rdrop.kind}"
            elif type(self).answers is not RDropTrainer.answers:
                self._head = f"{type(self).__name__} makes passes of its own"
            else:
                self._head = find_language_head(model, batch)
        if isinstance(self._head, LanguageHead):
            return self._head
        if wanted:
            raise ValueError(
                f"linear_head is True, but the loss cannot be computed on hidden states: {self._head}. Leave it at None"
            )
        return None

    def _has_large_logits(self, model: Any, labels: Tensor) -> bool:
        """Whether the logits of all passes at these labels take much memory."""
        layer = output_embeddings(model)[1]
        if type(layer) is not nn.Linear or labels.is_floating_point():
            return False
        logits = self.passes_of_step * labels.numel() * layer.out_features
        return logits * layer.weight.element_size() >= LARGE_LOGITS

    def _objective(self, head: LanguageHead | None, answers: Tensor, labels: Tensor, **options: Any) -> RDropOutput:
        """The terms of a micro-batch, of its logits or of what the head makes them of."""
        stands_for = self._rows_for_one_pair(len(labels))
        options |= self.rdrop_loss.options | {"alpha": self.rdrop_loss.current_alpha * stands_for}
        if head is None:
            found = rdrop_loss(answers, labels, **options)
        else:
            with self.accelerator.autocast():
                found = linear_rdrop_loss(answers, head.layer.weight, labels, **head.options, **options)
        return found._replace(divergence=found.divergence * stands_for)

    def _rows_for_one_pair(self, rows: int) -> float:
        """For how many rows of a micro-batch one stands that made more than one pass."""
        return Request(self.rdrop.passes, self.rdrop.fraction).stands_for(rows) if self.passes_of_step > 1 else 1.0

    def _logs_before_next_pair(self) -> bool:
        """Whether the log is written before passes are compared the next time."""
        step, interval = self.state.global_step, max(1, int(self.state.logging_steps or 1))
        return (step + self.rdrop.every) // interval > step // interval

    def alpha_at(self, step: int) -> float:
        """Alpha in an optimizer step, counted from 0; the one method to override for a course of your own."""
        steps = max(1, self.state.max_steps)  # known, like the optimizer, when training starts
        if self._schedule is None or self._schedule[0] != steps:
            self._schedule = steps, named(self.rdrop.schedule, self.rdrop.alpha, steps, self.optimizer)
        return self._schedule[1](step)


@dataclass
class _Parts:
    """The parts of the loss, summed over a logging interval without waiting for the device."""

    task_loss: Tensor = field(default_factory=lambda: torch.zeros(()))
    divergence: Tensor = field(default_factory=lambda: torch.zeros(()))
    agreeing: Tensor = field(default_factory=lambda: torch.zeros(()))
    compared: Tensor = field(default_factory=lambda: torch.zeros(()))
    alpha: float = 0.0
    steps: float = 0.0
    tied: float = 0.0

    def compare(self, choices: Tensor, labels: Tensor, stands_for: float) -> None:
        """Adds the positions of choices `(M, B, ...)` that count, and those on which all passes agree.

        Rows that made one pass agree with themselves; each row that differs stands for some of them.
        """
        counts = (labels != IGNORE_INDEX) if labels.shape == choices.shape[1:] else torch.ones_like(choices[0]).bool()
        differ = (choices[1:] != choices[:1]).any(0) & counts
        self.agreeing = self.agreeing + counts.sum() - stands_for * differ.sum()
        self.compared = self.compared + counts.sum()

    def add(self, task_loss: Tensor, divergence: Tensor, alpha: float | None, weight: float, share: float) -> None:
        """Adds a micro-batch: `weight` of its terms, its `share` of an optimizer step; no alpha: a plain one."""
        self.task_loss = self.task_loss + weight * task_loss.detach()
        self.steps += share
        if alpha is not None:
            self.divergence = self.divergence + weight * divergence.detach()
            self.alpha += share * alpha
            self.tied += share


def _choices(head: LanguageHead | None, answers: Tensor) -> Tensor:
    """The most probable classes `(M, B, ...)`; of hidden states, one row of the batch at a time."""
    if head is None:
        return answers.argmax(-1)
    dtype = head.layer.weight.dtype
    with torch.no_grad():
        rows = [
            logits_of_head(row.to(dtype), head.layer.weight, **head.options).argmax(-1) for row in answers.unbind(1)
        ]
    return torch.stack(rows, 1)


def _without_first_labels(batch: Any) -> Any:
    """The batch with the first label of every sequence ignored; labels that are shifted already are left."""
    if "labels" not in batch or "shift_labels" in batch:
        return batch
    labels = batch["labels"].clone()
    labels[..., 0] = IGNORE_INDEX
    return {**batch, "labels": labels}


class RDropSeq2SeqTrainer(RDropTrainer, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer` with the R-Drop objective in training; what is generated is generated once.

    Args:
        *args: As for `transformers.Seq2SeqTrainer`.
        rdrop: The objective.
        **kwargs: As for `transformers.Seq2SeqTrainer`.
    """
