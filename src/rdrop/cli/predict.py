"""`rdrop predict`: what a trained model says about new files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

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
    seed: Annotated[int, typer.Option(min=0, help="Seed of the dropout masks and of sampling.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all answers to this .jsonl or .csv file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines, for programs.")] = False,
) -> None:
    """Answer for each row of the files: label or text, confidence, and with --samples how sure the masks are."""
    if out is not None and out.suffix not in (".jsonl", ".csv"):
        raise UserError(f"got --out {out}, expected a name that ends in .jsonl or .csv")
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    with console.status("Reading the model and the files"):
        from rdrop.toolkit.use import predict_files, write_answers

        count, answers = predict_files(run, files, samples=samples, min_confidence=min_confidence, seed=seed)
    shown = track(answers, "Predicting", total=count, console=console, transient=True, disable=not console.is_terminal)
    if as_json:
        for answer in shown:
            print(json.dumps(answer, ensure_ascii=False))
        return
    held = list(shown)
    if out is not None:
        write_answers(held, out)
        print(f"{len(held)} answers in {out}")
        return
    _print_table(held[:SHOWN])
    if len(held) > SHOWN:
        print(f"... and {len(held) - SHOWN} more; --json or --out gives all of them", file=sys.stderr)


def _print_table(answers: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    names = [name for name, value in (answers[0] if answers else {}).items() if not isinstance(value, dict | list)]
    table = Table(*names)
    for answer in answers:
        table.add_row(*(Text(_cell(answer.get(name))) for name in names))
    Console().print(table)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
