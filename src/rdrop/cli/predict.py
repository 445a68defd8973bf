"""`rdrop predict`: what a trained model says about new files."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rdrop.cli import printable
from rdrop.errors import UserError

SHOWN = 50


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `rdrop train` made.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILES...", help="Images, tables or text files, as the task trains on.")
    ],
    samples: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Monte Carlo dropout: mean and spread of N predictions; 0: dropout off."),
    ] = 0,
    min_confidence: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="P", help="Abstain where the confidence is below this probability."),
    ] = 0.0,
    seed: Annotated[
        int, typer.Option(min=0, metavar="SEED", help="Seed of the dropout masks and of whatever else is drawn.")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write all answers to this .jsonl or .csv file.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines, for programs.")] = False,
) -> None:
    """Answer for each row of the files: label or text, confidence, and with --samples how sure the masks are."""
    _check_out(out, as_json=as_json)
    from rich.console import Console
    from rich.progress import track

    from rdrop.cli.quiet import quiet

    console = Console(stderr=True)
    with console.status("Starting") as status:  # importing torch takes seconds
        from rdrop.toolkit.use import predict_files, write_answers

        status.update("Reading the model and the files")
        with quiet():
            count, answers = predict_files(run, files, samples=samples, min_confidence=min_confidence, seed=seed)
    shown = track(answers, "Predicting", count, console=console, transient=True, disable=not console.is_terminal)
    held = []
    with quiet():
        for answer in shown:
            if as_json:
                print(json.dumps(answer, ensure_ascii=False))
            else:
                held.append(answer)
    if out is not None:
        write_answers(held, out)
        print(f"{len(held)} {'answer' if len(held) == 1 else 'answers'} in {out}")
    elif not as_json:
        _print_table(held)


def _check_out(out: Path | None, *, as_json: bool) -> None:
    """Refuses an output that could not be written in the end."""
    if out is None:
        return
    if as_json:
        raise UserError("got --json and --out, expected one of them: --json prints what --out writes to a file")
    if out.suffix not in (".jsonl", ".csv"):
        raise UserError(f"got --out {out}, expected a name that ends in .jsonl or .csv")
    if not out.parent.is_dir():
        raise UserError(f"got --out {out}, but there is no folder {out.parent}; make it first")


def _print_table(answers: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = answers[:SHOWN]
    given = dict.fromkeys(name for answer in shown for name in answer)
    # Values within values, such as the probability of each class, have no place in a table.
    names = [name for name in given if all(_fits(answer.get(name)) for answer in shown)]
    table = Table(*names)
    for answer in shown:
        table.add_row(*(Text(_cell(answer.get(name))) for name in names))
    Console().print(table)
    if len(answers) > len(shown):
        print(f"... and {len(answers) - len(shown)} more; --json or --out gives all of them", file=sys.stderr)


def _fits(value: object) -> bool:
    """Whether a value is a single one, or a list of words."""
    return all(isinstance(word, str) for word in value) if isinstance(value, list) else not isinstance(value, dict)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return printable(", ".join(value)) or "-"
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))
