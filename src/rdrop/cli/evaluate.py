"""`rdrop evaluate`: judge a trained model, on its own test split or on other files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from rdrop.cli import printable
from rdrop.cli.completion import begun
from rdrop.errors import UserError

SPLITS = ("test", "validation")


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `rdrop train` made.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Fields of its recipe to change, for example data.test=other.csv.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="SPLIT", help="test or validation.", autocompletion=begun(lambda: SPLITS))
    ] = "test",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Judge a trained model on a split of its recipe, or on files that you name."""
    if split not in SPLITS:
        raise UserError(f"got --split {split}, expected {' or '.join(SPLITS)}")
    from rich.console import Console

    from rdrop.cli.quiet import quiet, tell_notes

    console = Console(stderr=True)
    with console.status("Starting") as status:  # importing torch takes seconds
        from rdrop.cli.metric_table import metric_table
        from rdrop.toolkit.use import evaluate_run

        status.update("Judging the model")
        with quiet():
            found = evaluate_run(run, [*(changes or []), f"compare.split={split}"])
    tell_notes(found.notes)
    if as_json:
        told = {"split": found.split, "data": found.data, "notes": list(found.notes), "metrics": found.metrics}
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return
    print(printable(found.data), file=sys.stderr)
    Console().print(metric_table(found.described, found.metrics, found.split))
