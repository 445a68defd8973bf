"""`rdrop train`: train one model and keep it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rdrop.cli.completion import arms, begun
from rdrop.cli.quiet import quiet, tell_notes
from rdrop.cli.recipe_words import RUNS, WORDS_HELP, default_folder, recipe_and_changes
from rdrop.errors import UserError

if TYPE_CHECKING:
    from rdrop.toolkit.arm_names import ArmName
    from rdrop.toolkit.recipe import Recipe
    from rdrop.toolkit.single_run import TrainingRecord


def train(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="RECIPE|KEY=VALUE", help=WORDS_HELP, show_default=False)
    ] = None,
    arm: Annotated[
        str | None,
        typer.Option(
            metavar="ARM",
            help="plain, twice, rdrop or longer. Default: rdrop, or that of the run to go on with.",
            autocompletion=begun(arms),
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="SEED", help="Default: the first of the recipe's compare.seeds.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help=f"Where the model goes. Default: {RUNS}/NAME-train-1, or the next number."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was stopped: the one in --out, or the newest.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON, for programs.")] = False,
) -> None:
    """Train one model with R-Drop, judge it, and keep it for evaluate, predict and export.

    Stopped by Ctrl-C or SIGTERM it saves first; after that, or a kill at any moment, --resume goes on to the same
    weights.
    """
    name, changes = recipe_and_changes(words or [])
    folder = out or default_folder(f"{Path(name or 'digits').stem}-train", resume=resume)
    if resume and name is None and not changes and (folder / "recipe.yaml").exists():
        name = str(folder / "recipe.yaml")
    from rdrop.toolkit.recipe import cautions
    from rdrop.toolkit.recipe_file import load_recipe

    recipe = load_recipe(name or "digits", changes)
    chosen = _arm(arm, folder if resume else None)
    tell_notes(cautions(recipe))
    seed = recipe.compare.seeds[0] if seed is None else seed
    changed = [f"{change.key}={change.text}" for change in changes]
    again = shlex.join(["rdrop", "train", name or "digits", *changed, "--arm", chosen, "--seed", str(seed)])
    try:
        record = _run(recipe, folder, chosen, seed, resume=resume, command=again)
    except KeyboardInterrupt:  # before or after the training itself, which saves first
        record = None
    if record is None:
        print(f"\nstopped; {again} --resume --out {shlex.quote(str(folder))} goes on from here", file=sys.stderr)
        raise typer.Exit(130)
    if as_json:
        print(record.model_dump_json(indent=1))
    else:
        _show(record, folder)


def _arm(typed: str | None, resumed: Path | None) -> ArmName:
    """The arm that was asked for; that of the run in a folder where none was."""
    from rdrop.toolkit.arm_names import expected

    if typed is None and resumed is not None:
        from rdrop.toolkit.single_run import held_arm

        typed = held_arm(resumed)
    chosen = typed or "rdrop"
    wrong = expected(chosen)
    if wrong is not None:
        raise UserError(f"got --arm {chosen}, expected {wrong}")
    return chosen


def _run(recipe: Recipe, folder: Path, arm: ArmName, seed: int, *, resume: bool, command: str) -> TrainingRecord | None:
    from rich.console import Console

    from rdrop.cli.progress import StepProgress

    console = Console(stderr=True)
    with console.status("Starting"):  # importing torch takes seconds
        from rdrop.report.training_page import write_training_report
        from rdrop.toolkit import single_run

    progress = StepProgress(console)
    with quiet():
        record = single_run.train(recipe, folder, arm=arm, seed=seed, resume=resume, command=command, progress=progress)
    if record is not None:
        write_training_report([record], folder / "report.html")
    return record


def _show(record: TrainingRecord, folder: Path) -> None:
    from rich.console import Console

    from rdrop.cli.metric_table import metric_table

    Console().print(metric_table(record.metrics, record.run.metrics, record.split))
    tell_notes(record.notes)
    # Not through rich, which would break a long path.
    print(f"\nmodel   {folder / 'model'}\nreport  {folder / 'report.html'}")
    print(f"\nNext: rdrop predict {shlex.quote(str(folder))} FILES...")
