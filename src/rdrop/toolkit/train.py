"""One run: a recipe, an arm and a seed, trained and tested."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    EvalPrediction,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import PredictionOutput

from rdrop import schedule
from rdrop.diagnostics import consistency_gap
from rdrop.integrations.transformers import RDropConfig, RDropTrainer
from rdrop.passes import Strategy, explain_passes, forward_passes
from rdrop.toolkit import digits
from rdrop.toolkit.arms import Objective, nominal_steps, objective
from rdrop.toolkit.metrics import classification_metrics, reliability
from rdrop.toolkit.models import DigitsCNN
from rdrop.toolkit.recipe import ArmName, Recipe
from rdrop.toolkit.runs import RunRecord
from rdrop.toolkit.summary import Curve, ReliabilityBin, Run

EVAL_BATCH = 512
UNTIMED_STEPS = 10  # the first steps of a process are slower than those that follow

CURVES = {
    "loss": "train_loss",
    "task_loss": "task_loss",
    "divergence": "divergence",
    "eval_accuracy": "eval_accuracy",
    "eval_nll": "eval_nll",
}


def train_run(recipe: Recipe, arm: ArmName, seed: int, advance: Callable[[int], None]) -> RunRecord:
    """Trains and tests one arm with one seed.

    Everything but the times is decided by the arguments: the seed draws the split (unless the recipe fixes
    it), the initial weights, the order of the data and the dropout masks. All but the masks are the same in
    every arm.

    Args:
        recipe: What to do.
        arm: The arm.
        seed: The seed.
        advance: Called now and then with the progress made since the last call, in nominal steps: together
            `nominal_steps(recipe)`, also where the arm makes more of them.

    Returns:
        The run. One that raises, or whose loss is no longer finite, is returned as failed with its error.
    """
    start = time.perf_counter()
    split = digits.load(recipe.data, seed)
    model = build_model(recipe, seed)
    goal = objective(arm, recipe)
    batch = split.train[: recipe.training.batch_size]
    compute, strategy = step_compute(model, batch, goal, recipe)
    steps = nominal_steps(recipe)
    if goal.equal_compute:
        steps = round(steps * step_compute(model, batch, objective("rdrop", recipe), recipe)[0])
    watch = _Watch(advance, nominal=nominal_steps(recipe), steps=steps)
    trainer = _trainer(recipe, goal, seed, model, split, steps, watch)
    error: str | None = None
    metrics: dict[str, float] = {}
    bins: list[ReliabilityBin] = []
    try:
        trainer.train()
        metrics, bins = _test(trainer, model, split.test, recipe, seed)
    except Exception as failure:  # whatever it is, the other runs go on and the table shows it
        error = f"{type(failure).__name__}: {failure}"
    watch.finish()
    run = Run(
        arm=arm,
        seed=seed,
        status="finished" if error is None else "failed",
        error=error,
        optimizer_steps=trainer.state.global_step,
        metrics=metrics,
        curves=_curves(trainer.state, goal),
        reliability=bins,
    )
    return RunRecord(
        run=run,
        data=split.description,
        warnings=[],
        strategy=strategy,
        step_compute=compute,
        step_ms=watch.step_ms(),
        seconds=time.perf_counter() - start,
    )


def build_model(recipe: Recipe, seed: int) -> nn.Module:
    """The network with the initial weights of a seed."""
    set_seed(seed)
    return DigitsCNN(dropout=recipe.model.dropout, classes=digits.CLASSES)


def step_compute(model: nn.Module, batch: dict[str, Tensor], goal: Objective, recipe: Recipe) -> tuple[float, str]:
    """Counted operations of a training step as a ratio to one plain step, and how its passes are run.

    Counted are the matrix products and convolutions of forward and backward on a real batch, which is what
    `torch.utils.flop_counter` knows; the loss and the optimizer's update have none.
    """
    inputs = {name: column for name, column in batch.items() if name != "labels"}
    model = deepcopy(model).train()
    strategy: str = recipe.rdrop.strategy
    if strategy == "auto" or goal.passes == 1:
        strategy = explain_passes(model, passes=goal.passes, **inputs).strategy
    plain = _operations(model, inputs, 1, "auto")
    return _operations(model, inputs, goal.passes, recipe.rdrop.strategy) / plain, strategy


def _operations(model: nn.Module, inputs: dict[str, Tensor], passes: int, strategy: Strategy) -> int:
    """Floating-point operations of one forward and backward."""
    with FlopCounterMode(display=False) as counter:
        forward_passes(model, passes=passes, strategy=strategy, **inputs)["logits"].sum().backward()
    return int(counter.get_total_flops())


def _trainer(
    recipe: Recipe,
    goal: Objective,
    seed: int,
    model: nn.Module,
    split: digits.Split,
    steps: int,
    watch: _Watch,
) -> RDropTrainer:
    """The Trainer of a run; it seeds all generators anew, so nothing before it leaves a trace in the run."""
    training = recipe.training
    epoch = nominal_steps(recipe) // training.epochs
    warmed = training.lr_scheduler == "constant" and training.warmup_ratio > 0
    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(),  # it has to exist; nothing is saved into it
        max_steps=steps,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=EVAL_BATCH,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type="constant_with_warmup" if warmed else training.lr_scheduler,
        warmup_steps=math.ceil(training.warmup_ratio * steps),
        weight_decay=training.weight_decay,
        label_smoothing_factor=training.label_smoothing,
        max_grad_norm=0.0,
        seed=seed,
        data_seed=seed,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=epoch,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=epoch * training.eval_every_epochs,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = RDropTrainer(
        model,
        arguments,
        rdrop=_rdrop_config(recipe, goal, steps),
        train_dataset=split.train,
        eval_dataset=split.test,
        data_collator=digits.TensorRows.collate,
        compute_metrics=lambda prediction: classification_metrics(*_scored(prediction)),
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _rdrop_config(recipe: Recipe, goal: Objective, steps: int) -> RDropConfig:
    """The objective of an arm; alpha 0 needs no schedule."""
    rdrop = recipe.rdrop
    alpha: float | schedule.Schedule = goal.alpha
    if goal.alpha > 0:
        match rdrop.schedule:
            case "warmup":
                alpha = schedule.linear_warmup(goal.alpha, max(1, steps // 10))
            case "linear_decay":
                alpha = schedule.linear_decay(goal.alpha, steps)
            case "cosine_decay":
                alpha = schedule.cosine_decay(goal.alpha, steps)
    return RDropConfig(
        alpha=alpha,
        alpha_follows_learning_rate=rdrop.schedule == "learning_rate" and goal.alpha > 0,
        passes=goal.passes,
        strategy=rdrop.strategy,
        divergence=rdrop.divergence,
        stop_gradient=rdrop.stop_gradient,
    )


def _scored(prediction: EvalPrediction | PredictionOutput) -> tuple[NDArray[Any], NDArray[Any]]:
    """Logits and labels."""
    return np.asarray(prediction.predictions), np.asarray(prediction.label_ids)


def _test(
    trainer: RDropTrainer, model: nn.Module, test: digits.TensorRows, recipe: Recipe, seed: int
) -> tuple[dict[str, float], list[ReliabilityBin]]:
    """Metrics and reliability on the test split."""
    logits, labels = _scored(trainer.predict(test))
    set_seed(seed)  # the same masks in every arm
    gap = consistency_gap(model, _batches(test), samples=recipe.compare.samples)
    metrics = classification_metrics(logits, labels) | {
        "consistency_kl": gap.kl,
        "agreement": gap.agreement,
        "accuracy_averaged": gap.accuracy_averaged,
        "nll_averaged": gap.nll_averaged,
    }
    unusable = [name for name, value in metrics.items() if not math.isfinite(value)]
    if unusable:
        raise FloatingPointError(f"not finite on the test split: {', '.join(unusable)}")
    return metrics, reliability(logits, labels)


def _batches(rows: digits.TensorRows) -> Iterator[dict[str, Tensor]]:
    for first in range(0, len(rows), EVAL_BATCH):
        yield rows[first : first + EVAL_BATCH]


def _curves(state: TrainerState, goal: Objective) -> dict[str, Curve]:
    """The logged quantities over the optimizer steps; one pass has nothing to diverge from."""
    curves = {}
    for key, name in CURVES.items():
        points = [(entry["step"], entry[key]) for entry in state.log_history if math.isfinite(entry.get(key, math.nan))]
        if points and (goal.passes > 1 or key != "divergence"):
            curves[name] = Curve(steps=[int(step) for step, _ in points], values=[float(value) for _, value in points])
    return curves


class _Watch(TrainerCallback):
    """Times the steps, tells the progress, and ends a run whose loss is no longer finite."""

    def __init__(self, advance: Callable[[int], None], nominal: int, steps: int) -> None:
        self.advance, self.nominal, self.steps = advance, nominal, steps
        self.times: list[float] = []
        self.told = 0
        self.began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.perf_counter() - self.began)

    def on_log(  # only the state is looked at
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        loss = kwargs["logs"].get("loss", 0.0)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the training loss is {loss} at step {state.global_step}")
        self._tell(state.global_step * self.nominal // self.steps)

    def finish(self) -> None:
        """Tells what is left, also after a run that failed."""
        self._tell(self.nominal)

    def step_ms(self) -> float | None:
        """The median time of a step, without the first ones."""
        timed = self.times[UNTIMED_STEPS:]
        return 1000 * median(timed) if timed else None

    def _tell(self, done: int) -> None:
        self.advance(done - self.told)
        self.told = done
