"""One run: a recipe, an arm and a seed, trained and tested."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from rdrop.block_names import block
from rdrop.errors import UserError
from rdrop.integrations.transformers import RDropConfig, RDropTrainer
from rdrop.toolkit.arm_names import ArmName
from rdrop.toolkit.arms import Objective, nominal_steps, objective, recipe_of
from rdrop.toolkit.pretrained import apply_dropout
from rdrop.toolkit.recipe import Recipe, Training
from rdrop.toolkit.runs import RunRecord
from rdrop.toolkit.step_plan import StepPlan, plan_step
from rdrop.toolkit.summary import Curve, Metric, Run
from rdrop.toolkit.task import Evaluation, Splits, Task
from rdrop.toolkit.tasks import task_of
from rdrop.toolkit.trackers import PROJECT, require_trackers, tracked

UNTIMED_STEPS = 10  # the first steps of a process are slower than those that follow
EXAMPLES = 4  # enough to count operations on, and for a batch norm

TRAINING_CURVES = {"loss": "train_loss", "task_loss": "task_loss", "divergence": "divergence", "agreement": "agreement"}
UNSHOWN = {
    "eval_loss",
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
    "eval_model_preparation_time",
}


@dataclass(frozen=True)
class Survey:
    """What is known of a recipe once its data were read."""

    nominal_steps: int
    """Optimizer steps of a run of `plain`."""
    metrics: tuple[Metric, ...]
    notes: tuple[str, ...]
    plans: Mapping[ArmName, StepPlan]
    """What a step of each arm is, counted on the model of the first seed."""


def survey(recipe: Recipe) -> Survey:
    """Reads and checks the data of a recipe, with its first seed, and plans every arm, before anything is trained.

    Raises:
        UserError: The data are not what the recipe says, or an arm's passes cannot be made.
    """
    seed = recipe.compare.seeds[0]
    task = task_of(recipe)
    splits = task.load(seed)
    steps = planned_steps(task, splits)
    model = build_model(task, seed)  # first: a batch of some tasks needs to know of it
    batch = example_batch(task, splits)
    plans = {arm: _planned(arm, model, recipe.model.dropout, batch, recipe) for arm in recipe.compare.arms}
    return Survey(steps, task.metrics, splits.notes, plans)


def planned_steps(task: Task[Any], splits: Splits) -> int:
    """Optimizer steps of a run of `plain`.

    Raises:
        UserError: The data have no known length and the recipe has no number of steps, or they do not fill a batch,
            or there is no split to judge a run on, or a tracker is not installed.
    """
    training = task.recipe.training
    require_trackers(training.report_to)
    splits.judged_name(task.recipe.compare.split)
    batches = task.batches_per_epoch(splits.train)
    if batches is None and training.steps is None:
        raise UserError(
            "training.steps is null, but the length of streamed data is not known; set the number of optimizer steps"
        )
    if hasattr(splits.train, "__len__") and len(splits.train) < training.batch_size:
        raise UserError(
            f"training.batch_size is {training.batch_size}, but there are only {len(splits.train)} training examples; "
            "expected at most that number"
        )
    return nominal_steps(training, batches)


def train_run(
    recipe: Recipe, arm: ArmName, seed: int, nominal: int, advance: Callable[[int], None], events: Path | None = None
) -> RunRecord:
    """Trains and tests one arm with one seed.

    Everything but the times is decided by the arguments: the seed draws the split (unless the recipe fixes
    it), the initial weights, the order of the data and the dropout masks. All but the masks are the same in
    every arm.

    Args:
        recipe: What to do.
        arm: The arm.
        seed: The seed.
        nominal: Optimizer steps of a run of `plain`, from `survey`.
        advance: Called now and then with the progress made since the last call, in nominal steps: together
            `nominal`, also where the arm makes more of them.
        events: The folder for TensorBoard's files, of all runs; None: they are not kept.

    Returns:
        The run. One that raises, or whose loss is no longer finite, is returned as failed with its error.
    """
    start = time.perf_counter()
    task = task_of(recipe_of(arm, recipe))
    splits = task.load(seed)
    model = build_model(task, seed)
    batch = example_batch(task, splits)
    plan = plan_step(model, batch, objective(arm, task.recipe), task.recipe.rdrop)
    goal = plan.goal
    steps = steps_of(goal, model, batch, recipe, nominal)
    watch = Watch(advance, nominal=nominal, steps=steps, every=goal.every)
    error: str | None = None
    found = Evaluation({})
    with tempfile.TemporaryDirectory() as folder:
        name = f"{recipe.title}: {arm}, alpha {goal.alpha:g}, dropout {task.recipe.model.dropout}, seed {seed}"
        trainer = make_trainer(
            task, goal, seed, model, splits, steps=steps, nominal=nominal, folder=folder, run_name=name
        )
        trainer.add_callback(watch)
        try:
            with tracked(trainer, events and events / f"{arm}-seed{seed}"):
                trainer.train()
            found = judge(trainer, task, splits, seed=seed, exhibits=seed == recipe.compare.seeds[0])
        except Exception as failure:  # whatever it is, the other runs go on and the table shows it
            error = f"{type(failure).__name__}: {failure}"
    watch.finish()
    run = Run(
        arm=arm,
        seed=seed,
        status="finished" if error is None else "failed",
        error=error,
        optimizer_steps=trainer.state.global_step,
        metrics=found.metrics,
        curves=curves(trainer.state, goal),
        reliability=found.reliability,
        exhibits=found.exhibits,
    )
    return RunRecord(
        run=run,
        data=splits.description,
        warnings=[],
        strategy=plan.strategy,
        form=plan.form,
        step_compute=plan.compute,
        step_ms=watch.step_ms(),
        seconds=time.perf_counter() - start,
    )


def build_model(task: Task[Any], seed: int) -> nn.Module:
    """The network with the initial weights of a seed."""
    set_seed(seed)
    return task.build_model()


def example_batch(task: Task[Any], splits: Splits) -> dict[str, Tensor]:
    """The first few training examples as a batch."""
    loader = DataLoader(
        splits.train, batch_size=min(EXAMPLES, task.recipe.training.batch_size), collate_fn=task.collate
    )
    batch: dict[str, Tensor] = next(iter(loader))
    return batch


def steps_of(goal: Objective, model: nn.Module, batch: dict[str, Tensor], recipe: Recipe, steps: int) -> int:
    """Optimizer steps of an arm, where a run of `plain` has so many.

    Those of `longer` have the compute of the arm `rdrop`, at the dropout rate of that arm: at the model's own rate the
    passes might be cheaper; without any dropout, they are one.
    """
    if not goal.equal_compute:
        return round(steps * goal.longer)
    rate = recipe_of("longer", recipe).model.dropout
    return round(steps * _planned("rdrop", model, rate, batch, recipe).compute)


def _planned(arm: ArmName, model: nn.Module, rate: float | None, batch: dict[str, Tensor], recipe: Recipe) -> StepPlan:
    """What a step of an arm would be on a model that was built for a dropout rate, maybe that of another arm."""
    own = recipe_of(arm, recipe)
    if own.model.dropout != rate:
        model = apply_dropout(deepcopy(model), own.model.dropout)
    return plan_step(model, batch, objective(arm, own), own.rdrop)


def make_trainer(
    task: Task[Any],
    goal: Objective,
    seed: int,
    model: nn.Module,
    splits: Splits,
    *,
    steps: int,
    nominal: int,
    folder: str,
    **saving: Any,
) -> RDropTrainer:
    """The Trainer of a run; it seeds all generators anew, so nothing before it leaves a trace in the run.

    Args:
        task: Collates, scores and measures.
        goal: The arm.
        seed: The seed.
        model: The network.
        splits: The data.
        steps: Optimizer steps to make.
        nominal: Optimizer steps of a run of `plain`, for the learning rate's and the learning curve's course.
        folder: Where trackers and checkpoints go.
        **saving: Arguments of `transformers.TrainingArguments` about checkpoints and trackers; no checkpoint is written
            without them.
    """
    training = task.recipe.training
    watched = splits.watched()
    epoch = epoch_steps(training, nominal, task.batches_per_epoch(splits.train))
    curve = training.eval_every_steps or epoch * training.eval_every_epochs
    warmup = math.ceil(training.warmup_ratio * steps) if training.warmup_steps is None else training.warmup_steps
    warmed = training.lr_scheduler == "constant" and warmup > 0
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.eval_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type="constant_with_warmup" if warmed else training.lr_scheduler,
        warmup_steps=warmup,
        adam_beta2=training.adam_beta2,
        weight_decay=training.weight_decay,
        label_smoothing_factor=training.label_smoothing,
        max_grad_norm=training.max_grad_norm,
        bf16=training.precision == "bfloat16",
        fp16=training.precision == "float16",
        seed=seed,
        data_seed=seed,
        use_cpu=training.device == "cpu",
        dataloader_num_workers=training.workers,
        report_to=list(training.report_to) or "none",
        project=PROJECT,
        logging_strategy="steps",
        logging_steps=min(epoch, curve),
        logging_nan_inf_filter=False,
        eval_strategy="no" if watched is None else "steps",
        eval_steps=curve,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        **{"save_strategy": "no", **saving},
    )
    trainer = task.trainer_class(
        model,
        arguments,
        rdrop=_rdrop_config(task, goal, model),
        train_dataset=splits.train,
        eval_dataset=watched,
        data_collator=task.collate,
        compute_metrics=lambda prediction: task.measure(prediction.predictions, np.asarray(prediction.label_ids)),
        preprocess_logits_for_metrics=task.scores,
    )
    trainer.remove_callback(PrinterCallback)
    if hasattr(splits.train, "set_epoch"):
        trainer.add_callback(_Epochs(splits.train))
    return trainer


def epoch_steps(training: Training, nominal: int, batches: int | None) -> int:
    """Optimizer steps in an epoch; a tenth of the run where nobody knows."""
    if batches is None:
        return max(1, nominal // 10)
    return math.ceil(batches / training.gradient_accumulation_steps)


def judge(trainer: RDropTrainer, task: Task[Any], splits: Splits, *, seed: int, exhibits: bool) -> Evaluation:
    """What the judged split says about the trained model, the main metric first.

    Raises:
        FloatingPointError: A metric is not finite.
    """
    rows = splits.judged(task.recipe.compare.split)
    found = task.evaluate(trainer, rows, seed=seed, exhibits=exhibits)
    unusable = [name for name, value in found.metrics.items() if not math.isfinite(value)]
    if unusable:
        raise FloatingPointError(f"not finite on the judged split: {', '.join(unusable)}")
    order = [metric.name for metric in task.metrics if metric.name in found.metrics]
    return replace(found, metrics={name: found.metrics[name] for name in dict.fromkeys([*order, *found.metrics])})


def _rdrop_config(task: Task[Any], goal: Objective, model: nn.Module) -> RDropConfig:
    """The objective of an arm."""
    rdrop = task.recipe.rdrop
    return RDropConfig(
        alpha=goal.alpha,
        schedule=rdrop.schedule,
        passes=goal.passes,
        every=goal.every,
        fraction=goal.fraction,
        branch_at=None if goal.branch_at is None else block(model, goal.branch_at),
        one_sided=goal.one_sided,
        strategy=rdrop.strategy,
        kind=task.kind,
        divergence=rdrop.divergence,
        stop_gradient=rdrop.stop_gradient,
    )


def curves(state: TrainerState, goal: Objective) -> dict[str, Curve]:
    """The logged quantities over the optimizer steps; one pass has nothing to diverge from."""
    names = dict(TRAINING_CURVES)
    if goal.passes == 1:
        del names["divergence"]
    for entry in state.log_history:
        names |= {key: key for key in entry if key.startswith("eval_") and key not in UNSHOWN}
    found = {}
    for key, name in names.items():
        points = [(entry["step"], entry[key]) for entry in state.log_history if math.isfinite(entry.get(key, math.nan))]
        if points:
            found[name] = Curve(steps=[int(step) for step, _ in points], values=[float(value) for _, value in points])
    return found


class _Epochs(TrainerCallback):
    """Tells the training split its epoch; accelerate does so as well, but not in an epoch that goes on after a stop."""

    def __init__(self, train: Any) -> None:
        self.train = train

    def on_epoch_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        self.train.set_epoch(int(state.epoch or 0))


class Watch(TrainerCallback):
    """Times the steps, tells the progress, and ends a run whose loss is no longer finite."""

    def __init__(self, advance: Callable[[int], None], nominal: int, steps: int, every: int = 1) -> None:
        self.advance, self.nominal, self.steps, self.every = advance, nominal, steps, every
        self.times: list[float] = []
        self.told = 0
        self.began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Starts the clock."""
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stops the clock."""
        self.times.append(time.perf_counter() - self.began)

    def on_log(  # only the state is looked at
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        """Tells the progress, and looks at the loss."""
        loss = kwargs["logs"].get("loss", 0.0)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the training loss is {loss} at step {state.global_step}")
        self._tell(state.global_step * self.nominal // self.steps)

    def finish(self) -> None:
        """Tells what is left, also after a run that failed."""
        self._tell(self.nominal)

    def step_ms(self) -> float | None:
        """The median time of a step, without the first ones; a mean of those between two with several passes."""
        timed, k = self.times[UNTIMED_STEPS:], self.every
        rounds = [sum(timed[start : start + k]) / k for start in range(0, len(timed) - k + 1, k)]
        return 1000 * median(rounds) if rounds else None

    def _tell(self, done: int) -> None:
        self.advance(done - self.told)
        self.told = done
