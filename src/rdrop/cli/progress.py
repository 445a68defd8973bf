"""How far a comparison is: a live bar on a terminal, one line for each run elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rdrop.report.number_format import ratio
from rdrop.toolkit.arm_names import ArmName
from rdrop.toolkit.summary import Run

if TYPE_CHECKING:
    from rdrop.toolkit.step_plan import StepPlan

TRAINING_LOGS = ("loss", "divergence", "agreement")
SHOWN_EVALUATIONS = 2  # the main metric, and a likelihood or loss


class RichProgress:
    """Shows steps, finished runs and the time left.

    Args:
        console: Where to; standard error, so that standard output holds the table alone.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.fields[runs_done]}/{task.fields[runs]} runs"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = TaskID(0)
        self._runs = self._runs_done = 0
        self._reading = console.status("Reading the data")

    def read(self) -> None:
        """Show that the data are read."""
        self._reading.start()

    def planned(self, plans: Mapping[ArmName, StepPlan]) -> None:
        """Show what a step of each arm will cost."""
        self._reading.stop()
        _show_plans(self._console, plans)

    def start(self, total_runs: int, total_steps: int, finished_runs: int) -> None:
        """Begin; `total_steps` are those that are still to be made."""
        self._reading.stop()
        self._runs, self._runs_done = total_runs, finished_runs
        if finished_runs:
            self._console.print(f"{finished_runs} of {total_runs} runs are finished already")
        self._task = self._bar.add_task("", total=total_steps, runs=total_runs, runs_done=finished_runs)
        self._bar.start()

    def advance(self, steps: int) -> None:
        """Some steps were made."""
        self._bar.advance(self._task, steps)

    def finished(self, run: Run) -> None:
        """A run ended; a failed one is told at once, on a terminal too."""
        self._runs_done += 1
        self._bar.update(self._task, runs_done=self._runs_done)
        if run.status == "failed" or not self._console.is_terminal:
            values = ", ".join(f"{name} {value:.4g}" for name, value in list(run.metrics.items())[:2])
            outcome = f"failed: {run.error}" if run.status == "failed" else values
            self._console.print(
                f"[{self._runs_done}/{self._runs}] {run.arm}, seed {run.seed}: {outcome}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def close(self) -> None:
        """End the display; more than once does no harm."""
        self._reading.stop()
        self._bar.stop()


class StepProgress:
    """Shows the steps of one run and the last logged quantities.

    Args:
        console: Where to; standard error.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._busy = console.status("Reading the data")
        self._bar = Progress(
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.description}", style="dim"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = TaskID(0)
        self._logs: dict[str, float] = {}

    def read(self) -> None:
        """Show that the data are read."""
        self._busy.start()

    def planned(self, plans: Mapping[ArmName, StepPlan]) -> None:
        """Show what a step will cost."""
        self._busy.stop()
        _show_plans(self._console, plans)

    def start(self, total_steps: int, made_steps: int) -> None:
        """Begin; `made_steps` were made before."""
        self._busy.stop()
        if made_steps:
            self._console.print(f"going on after {made_steps:,} of {total_steps:,} steps")
        self._task = self._bar.add_task("", total=total_steps, completed=made_steps)
        self._bar.start()

    def advance(self, step: int) -> None:
        """So many steps are made."""
        self._bar.update(self._task, completed=step)

    def logged(self, step: int, logs: dict[str, float]) -> None:
        """Show what was logged; without a terminal as a line of its own."""
        self._logs |= logs
        self._bar.update(self._task, description=_line(self._logs))
        line = _line(logs)
        if line and not self._console.is_terminal:
            self._console.print(f"step {step:,}: {line}", markup=False, highlight=False, soft_wrap=True)

    def judge(self) -> None:
        """Show that the model is judged."""
        self._bar.stop()
        self._busy.update("Judging the model")
        self._busy.start()

    def close(self) -> None:
        """End the display; more than once does no harm."""
        self._busy.stop()
        self._bar.stop()


def _show_plans(console: Console, plans: Mapping[ArmName, StepPlan]) -> None:
    """The expected cost of each arm with several passes."""
    told = [
        f"{arm} {ratio(plan.compute)} ({plan.strategy}{', ' + plan.form if plan.form else ''})"
        for arm, plan in plans.items()
        if plan.strategy != "single"
    ]
    if told:
        console.print(
            f"Operations of a step, to a plain one: {'; '.join(told)}", markup=False, highlight=False, soft_wrap=True
        )


def _line(logs: Mapping[str, float]) -> str:
    """What is worth a place on one line; one pass has no divergence."""
    evaluated = [name for name in logs if name.startswith("eval_")]
    training = [name for name in TRAINING_LOGS if name in logs and (name == "loss" or logs[name] > 0)]
    return ", ".join(f"{name} {logs[name]:.4g}" for name in [*training, *evaluated[:SHOWN_EVALUATIONS]])
