"""`rdrop recipes`: list the built-in recipes, or print one."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from rdrop.cli.completion import begun
from rdrop.cli.completion import recipes as built_in


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(help="The recipe to print; all are listed without it.", autocompletion=begun(built_in)),
    ] = None,
) -> None:
    """List the built-in recipes, or print one to copy: `rdrop recipes digits > my.yaml`."""
    import yaml

    from rdrop.errors import UserError
    from rdrop.toolkit.recipe_fields import nearest
    from rdrop.toolkit.recipe_file import built_in_recipes

    built_in = built_in_recipes()
    if name is None:
        width = max(map(len, built_in)) + 2
        for known, text in built_in.items():
            print(f"{known:<{width}}{yaml.safe_load(text)['title']}")
        return
    if name not in built_in:
        close = nearest(name, built_in)
        hint = f"; did you mean {close}?" if close else ""
        raise UserError(f"got {name!r}, expected one of the built-in recipes {', '.join(built_in)}{hint}")
    sys.stdout.write(built_in[name])
