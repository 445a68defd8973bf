"""`rdrop report`: make the pages of comparisons and runs again, or one page of several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rdrop.errors import UserError


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Folders of `rdrop compare` or `rdrop train`.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="One page for all the trained models. Default: report.html in each folder.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the report of each folder again; with --out one page that sets trained models side by side."""
    from rich.console import Console

    with Console(stderr=True).status("Starting"):  # importing torch takes seconds
        from rdrop.report.page import write_report
        from rdrop.report.training_page import write_training_report
        from rdrop.toolkit.compare import SUMMARY_FILE, read_summary
        from rdrop.toolkit.single_run import RECORD_FILE, read_record

    for run in runs:
        if not (run / SUMMARY_FILE).exists() and not (run / RECORD_FILE).exists():
            raise UserError(
                f"{run} holds neither {SUMMARY_FILE} nor {RECORD_FILE}; expected the folder of a finished "
                "`rdrop compare` or `rdrop train`"
            )
    compared = [run for run in runs if (run / SUMMARY_FILE).exists()]
    if out is not None:
        if compared:
            raise UserError(
                f"{compared[0]} is a comparison, which has a page of its own; leave it out, or leave out --out"
            )
        write_training_report([read_record(run) for run in runs], out)
        print(out)
        return
    for run in runs:
        page = run / "report.html"
        if run in compared:
            write_report(read_summary(run), page)
        else:
            write_training_report([read_record(run)], page)
        print(page)
