"""`rdrop sweep`: choose alpha and dropout on the validation split, with as many tries for every arm."""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from rdrop.cli.compare import seed_count
from rdrop.cli.recipe_words import RUNS, default_folder, recipe_and_changes
from rdrop.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from rdrop.toolkit.recipe import Recipe
    from rdrop.toolkit.sweep import Grid, Sweep

SHOWN_METRICS = 2  # the one that chooses, and a likelihood or loss

Number = TypeVar("Number", int, float)


def sweep(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE|KEY=VALUE",
            help="A YAML file or the name of a built-in recipe, with a validation split; then fields to change, for "
            "example epochs=20.",
            show_default=False,
        ),
    ] = None,
    alphas: Annotated[
        str | None, typer.Option(metavar="ALPHAS", help="Alphas that rdrop tries, for example 0.5,1,2.")
    ] = None,
    dropouts: Annotated[
        str | None,
        typer.Option(
            metavar="RATES",
            help="Dropout rates, for example 0.1,0.3. rdrop tries each with each alpha; every other arm tries as many "
            "rates, evenly spread from the lowest to the highest.",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="SEEDS",
            help="Seeds of each try: a count (the lowest that are not in the recipe's compare.seeds) or a list (7,8). "
            "Default: 1.",
        ),
    ] = None,
    arms: Annotated[
        str | None, typer.Option(metavar="ARMS", help="Arms to choose for, for example plain,rdrop.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help=f"Where the results go. Default: {RUNS}/NAME-sweep-1, or the next number."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Runs at a time. Default: the usable cores.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Complete a sweep that was stopped: the one in --out, or the newest of RECIPE."),
    ] = False,
) -> None:
    """Choose alpha and dropout on the validation split, with as many tries for every arm.

    Prints a table of all tries and writes sweep.json and chosen.yaml, the recipe for `rdrop compare`. The test split is
    not judged. Exits with 1 if an arm has no try that finished.
    """
    from rdrop.toolkit.recipe_file import Override, load_recipe
    from rdrop.toolkit.runs import RECIPE_FILE

    name, changes = recipe_and_changes(words or [])
    if arms is not None:
        changes.append(Override("compare.arms", f"[{arms}]", f"--arms {arms}"))
    if name is None and resume and out is not None and not changes:
        name = str(out / RECIPE_FILE)
    if name is None:
        raise UserError(
            "no recipe is named; expected one with a validation split (the digits have none), or --resume with --out "
            "for a sweep that was stopped"
        )
    folder = out or default_folder(f"{Path(name).stem}-sweep", resume=resume)
    recipe = load_recipe(name, changes)
    grid = _grid(recipe, folder, {"alphas": alphas, "dropouts": dropouts, "seeds": seeds}, resume=resume)
    arguments = [name, *(f"{change.key}={change.text}" for change in changes)]
    for option, values in grid.model_dump().items():
        arguments += [f"--{option}", ",".join(map(str, values)) + "," * (len(values) == 1)]
    again = shlex.join(["rdrop", "sweep", *arguments])
    try:
        made = _run(recipe, grid, folder, jobs, resume=resume, command=again)
    except KeyboardInterrupt:
        print(f"\nstopped; {again} --resume --out {shlex.quote(str(folder))} goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    _show(made, folder)


def _grid(recipe: Recipe, folder: Path, typed: dict[str, str | None], *, resume: bool) -> Grid:
    """What was asked for; what was not is that of the folder that is resumed."""
    from pydantic import ValidationError

    from rdrop.toolkit.sweep import Grid, read_grid

    held = read_grid(folder) if resume else None
    values = {} if held is None else held.model_dump()
    for option, text in typed.items():
        if text is not None:
            values[option] = _seeds(text, recipe) if option == "seeds" else _numbers(option, text, float)
        elif option not in values and option != "seeds":
            raise UserError(f"--{option} is missing; expected for example --alphas 0.5,1,2 --dropouts 0.1,0.3")
    try:
        return Grid.model_validate({"seeds": _seeds("1", recipe), **values})
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        option = str(fault["loc"][0]) if fault["loc"] else ""
        if fault["type"] == "recipe":  # a rule in our own words
            raise UserError(f"--{option}: {fault['msg']}" if option else fault["msg"]) from None
        raise _unusable(option, typed[option]) from None


def _seeds(text: str, recipe: Recipe) -> list[int]:
    """The lowest seeds that the comparison does not use, or those that are listed."""
    amount = seed_count(text)
    if amount is None:
        return _numbers("seeds", text, int)
    return list(itertools.islice((seed for seed in itertools.count() if seed not in recipe.compare.seeds), amount))


def _numbers(option: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    try:
        return [kind(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise _unusable(option, text) from None


def _unusable(option: str, text: str | None) -> UserError:
    from rdrop.toolkit.sweep import HIGHEST_DROPOUT

    expected = {
        "alphas": "numbers above 0",
        "dropouts": f"numbers from 0 to {HIGHEST_DROPOUT}",
        "seeds": "a count, or whole numbers from 0 to 4294967295",
    }
    return UserError(f"got --{option} {text}, expected {expected[option]}, with commas between them")


def _run(recipe: Recipe, grid: Grid, folder: Path, jobs: int | None, *, resume: bool, command: str) -> Sweep:
    from rich.console import Console

    from rdrop.cli.progress import RichProgress
    from rdrop.toolkit import sweep as toolkit
    from rdrop.toolkit.environment import usable_cores

    arms, seeds = recipe.compare.arms, grid.seeds
    total = len(arms) * grid.tries * len(seeds)
    print(
        f"{total} runs, judged on the validation split: arms {', '.join(arms)}; tries of each arm {grid.tries}; "
        f"seeds {', '.join(map(str, seeds))}",
        file=sys.stderr,
    )
    progress = RichProgress(Console(stderr=True))
    try:
        return toolkit.sweep(
            recipe, grid, folder, jobs=jobs or usable_cores(), resume=resume, command=command, progress=progress
        )
    finally:
        progress.close()


def _show(made: Sweep, folder: Path) -> None:
    from rich.console import Console
    from rich.text import Text

    from rdrop.report.number_format import count
    from rdrop.toolkit.sweep import CHOSEN_FILE, SWEEP_FILE

    console = Console()
    better = "higher" if made.metrics[0].higher_is_better else "lower"
    console.print(
        Text(
            f"{made.title}: validation split, mean of {count(len(made.grid.seeds), 'seed')}; {made.metrics[0].label} "
            f"chooses, {better} is better",
            style="bold",
        )
    )
    console.print(_table(made))
    for each in made.tries:
        for seed, error in each.failed.items():
            console.print(Text(f"{each.title}, seed {seed}: failed: {error}", style="red"))
    for note in made.notes:
        console.print(Text(f"Note: {note}", style="dim"))
    # Not through rich, which would break a long path.
    print(f"\nsweep   {folder / SWEEP_FILE}")
    if made.without_choice:
        print(
            f"error: every try of {', '.join(made.without_choice)} failed, so there is no {CHOSEN_FILE}",
            file=sys.stderr,
        )
        raise typer.Exit(1)
    print(f"chosen  {folder / CHOSEN_FILE}\n\nNext: rdrop compare {shlex.quote(str(folder / CHOSEN_FILE))}")


def _table(made: Sweep) -> Table:
    """Every try with its means, arm by arm."""
    from rich.table import Table

    from rdrop.report.number_format import MISSING, MetricFormat, plain_decimals

    shown = made.metrics[:SHOWN_METRICS]
    forms = [
        MetricFormat(metric.label, 100.0, 2)
        if metric.percent
        else MetricFormat(
            metric.label, 1.0, plain_decimals([each.means[metric.name] for each in made.tries if each.means], [])
        )
        for metric in shown
    ]
    table = Table("arm")
    for heading in ("alpha", "dropout", *(form.heading for form in forms)):
        table.add_column(heading, justify="right")
    table.add_column("")
    for index, each in enumerate(made.tries):
        chosen = made.chosen.get(each.arm)
        is_chosen = chosen is not None and (chosen.alpha, chosen.dropout) == (each.alpha, each.dropout)
        last = index + 1 == len(made.tries) or made.tries[index + 1].arm != each.arm
        table.add_row(
            each.arm,
            MISSING if each.alpha is None else f"{each.alpha:g}",
            f"{each.dropout:g}",
            *(form.value(each.means.get(metric.name)) for form, metric in zip(forms, shown, strict=True)),
            "chosen" if is_chosen else "failed" if each.failed else "",
            style="bold" if is_chosen else "",
            end_section=last,
        )
    return table
