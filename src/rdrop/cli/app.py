"""The commands put together."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from rdrop.cli.compare import compare
from rdrop.cli.env import env
from rdrop.cli.evaluate import evaluate
from rdrop.cli.export import export
from rdrop.cli.init import init
from rdrop.cli.inspect import inspect
from rdrop.cli.predict import predict
from rdrop.cli.recipes import recipes
from rdrop.cli.report import report
from rdrop.cli.sweep import sweep
from rdrop.cli.train import train

app = typer.Typer(
    name="rdrop",
    help="R-Drop for PyTorch: find out whether it helps, by how much, how surely and at what cost.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (init, train, compare, sweep, evaluate, predict, report, inspect, recipes, export, env):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(version("rdrop"))
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
