"""`rdrop init`: a recipe for your own data, with every field explained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rdrop.cli import printable
from rdrop.cli.completion import begun, tasks
from rdrop.errors import UserError

if TYPE_CHECKING:
    from rdrop.toolkit.recipe import Recipe
    from rdrop.toolkit.recipe_file import Override


def init(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK", help="What is to be learned; `rdrop init list` names them.", autocompletion=begun(tasks)
        ),
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Fields to set, for example data.train=mine.csv.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the recipe goes. Default: TASK.yaml.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a recipe for a task: every field with its meaning, its bounds and its default.

    If the training data are there, their columns are guessed, and each guess is told with its reason.
    """
    from rdrop.toolkit.recipe_fields import nearest
    from rdrop.toolkit.tasks import TASK_NAMES

    if task == "list":
        print("\n".join(TASK_NAMES))
        return
    if task not in TASK_NAMES:
        close = nearest(task, TASK_NAMES)
        hint = f"; did you mean {close}?" if close else ""
        raise UserError(f"got {task!r}, expected one of the tasks {', '.join(TASK_NAMES)}{hint}")
    path = out or Path(f"{task}.yaml")
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected the name of a file, for example {path / f'{task}.yaml'}")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for {path}; make it first")
    if path.exists() and not force:
        raise UserError(f"{path} exists already; name another file with --out, or replace it with --force")
    from rdrop.toolkit.recipe_file import Override, load_recipe, recipe_text
    from rdrop.toolkit.runs import write_atomically

    given = [Override.parse(word) for word in changes or []]
    recipe = _with_guesses(task, load_recipe(task, given), given)
    header = (
        f"# A recipe for {task}. Set what is under data: first; every key may be left out.\n"
        f"#\n"
        f"#   rdrop compare {path}    does R-Drop help? several seeds, four arms\n"
        f"#   rdrop train {path}      one model to keep\n\n"
    )
    write_atomically(path, header + recipe_text(recipe))
    print(f"{path} written. Look at its section data:, then: rdrop compare {path}")


def _with_guesses(task: str, recipe: Recipe, given: list[Override]) -> Recipe:
    """The recipe with what its training data tell; prints each guess, and what could not be guessed."""
    from rdrop.toolkit.data.file_data import TableData
    from rdrop.toolkit.recipe_file import Override, load_recipe

    if not isinstance(recipe.data, TableData):
        return recipe
    from rdrop.toolkit.guesses import data_guesses

    guesses, unknown = data_guesses(recipe.data, {item.key.removeprefix("data.") for item in given})
    for line in [*guesses, *unknown]:
        print(printable(str(line)))
    return load_recipe(task, [*given, *(Override(f"data.{key}", value, f"{key}={value}") for key, value, _ in guesses)])
