"""`rdrop compare`: train the arms of a recipe and show whether R-Drop helped."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rdrop.cli.recipe_words import RUNS, WORDS_HELP, default_folder, recipe_and_changes
from rdrop.errors import UserError

if TYPE_CHECKING:
    from rdrop.toolkit.recipe import Recipe
    from rdrop.toolkit.recipe_file import Override

MOST_SEEDS = 1000


def compare(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE|KEY=VALUE",
            help=WORDS_HELP,
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="SEEDS", help="A count (5 means 0,1,2,3,4) or a list (0,1,7).")
    ] = None,
    arms: Annotated[str | None, typer.Option(metavar="ARMS", help="Arms to train, for example plain,rdrop.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help=f"Where the results go. Default: {RUNS}/NAME-1, or the next number."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Runs at a time. Default: the usable cores.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Complete a comparison that was stopped: the one in --out, or the newest."),
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of summary.json and stop.")] = False,
    help_recipe: Annotated[
        bool, typer.Option("--help-recipe", help="Explain every field of the recipe, or of a task, and stop.")
    ] = False,
) -> None:
    """Train the arms of a recipe with several seeds, and show whether R-Drop helped.

    Without arguments: the digits of scikit-learn, about two minutes on two cores. Prints a table and writes
    summary.json and report.html. Exits with 1 if a run failed.
    """
    if schema:
        from rdrop.toolkit.summary import Summary

        print(json.dumps(Summary.model_json_schema(), indent=2))
    elif help_recipe:
        _print_fields((words or ["digits"])[0])
    else:
        from rdrop.toolkit.recipe_file import Override

        name, changes = recipe_and_changes(words or [])
        if seeds is not None:
            changes.append(Override("compare.seeds", _seed_list(seeds), f"--seeds {seeds}"))
        if arms is not None:
            changes.append(Override("compare.arms", f"[{arms}]", f"--arms {arms}"))
        folder = out or default_folder(Path(name or "digits").stem, resume=resume)
        if resume and name is None and not changes and (folder / "recipe.yaml").exists():
            name = str(folder / "recipe.yaml")
        _compare(name or "digits", changes, folder, jobs=jobs, resume=resume)


def seed_count(seeds: str) -> int | None:
    """How many seeds are asked for; None: they are listed.

    Raises:
        UserError: None, or too many.
    """
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*", seeds):
        return None
    if not 1 <= int(seeds) <= MOST_SEEDS:
        raise UserError(
            f"got --seeds {seeds}, expected a count from 1 to {MOST_SEEDS}; "
            f"for the seed {seeds.strip()} alone write {seeds.strip()},"
        )
    return int(seeds)


def _seed_list(seeds: str) -> str:
    """A count of seeds as the list from 0, a list as it is."""
    count = seed_count(seeds)
    return f"[{seeds}]" if count is None else str(list(range(count)))


def _compare(name: str, changes: list[Override], folder: Path, *, jobs: int | None, resume: bool) -> None:
    from rdrop.toolkit.environment import usable_cores
    from rdrop.toolkit.recipe import cautions
    from rdrop.toolkit.recipe_file import load_recipe

    recipe = load_recipe(name, changes)
    for caution in cautions(recipe):
        print(f"note: {caution}", file=sys.stderr)
    again = shlex.join(["rdrop", "compare", name, *(f"{change.key}={change.text}" for change in changes)])
    try:
        failed = _run_and_show(recipe, folder, jobs or usable_cores(), resume=resume, command=again)
    except KeyboardInterrupt:
        print(f"\nstopped; {again} --resume --out {shlex.quote(str(folder))} goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    if failed:
        raise typer.Exit(1)


def _run_and_show(recipe: Recipe, folder: Path, jobs: int, *, resume: bool, command: str) -> int:
    """Run the comparison, write the page, print the table; how many runs failed."""
    from rich.console import Console

    from rdrop.cli.progress import RichProgress

    console = Console(stderr=True)
    with console.status("Starting"):  # importing torch takes seconds
        from rdrop.report.page import write_report
        from rdrop.report.table import comparison_table
        from rdrop.toolkit import compare as toolkit

    progress = RichProgress(console)
    try:
        summary = toolkit.compare(recipe, folder, jobs=jobs, resume=resume, command=command, progress=progress)
    finally:
        progress.close()
    page = folder / "report.html"
    write_report(summary, page)
    Console().print(comparison_table(summary))
    # Not through rich, which would break a long path.
    print(f"\nreport   {page}\nsummary  {folder / 'summary.json'}")
    return sum(run.status == "failed" for run in summary.runs)


def _print_fields(name: str) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from rdrop.toolkit.plain_yaml import shown
    from rdrop.toolkit.recipe_fields import recipe_fields
    from rdrop.toolkit.recipe_file import load_recipe
    from rdrop.toolkit.tasks import TASK_NAMES, recipe_class

    schema = recipe_class(name) if name in TASK_NAMES else type(load_recipe(name))
    console = Console()
    for text in recipe_fields(schema).values():
        default = text.default if isinstance(text.default, str) else shown(text.default).removeprefix("the list ")
        console.print(Text(text.key, style="bold"))
        console.print(Padding(Text(f"{text.meaning}\nExpected: {text.expected}. Default: {default}."), (0, 0, 0, 4)))
