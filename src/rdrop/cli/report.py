"""`rdrop report`: make the pages of comparisons and runs again, one page of several runs, or a copy to share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rdrop.errors import UserError

PAGE = "report.html"


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Folders of `rdrop compare` or `rdrop train`.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"One page for all the trained models. Default: {PAGE} in each folder.",
            show_default=False,
        ),
    ] = None,
    share: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Copy the page and the record of a single run there, without the images and texts of your data.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the report of each folder again; with --out one page that sets trained models side by side."""
    from rich.console import Console

    with Console(stderr=True).status("Starting"):  # importing torch takes seconds
        from rdrop.report.training_page import write_training_report
        from rdrop.toolkit.compare import SUMMARY_FILE
        from rdrop.toolkit.single_run import RECORD_FILE, read_record

    for run in runs:
        if not (run / SUMMARY_FILE).exists() and not (run / RECORD_FILE).exists():
            raise UserError(
                f"{run} holds neither {SUMMARY_FILE} nor {RECORD_FILE}; expected the folder of a finished "
                "`rdrop compare` or `rdrop train`"
            )
    if share is not None:
        if len(runs) > 1 or out is not None:
            raise UserError("--share takes a single run and no --out; share one run after the other")
        if share.resolve() == runs[0].resolve():
            raise UserError(f"--share {share} is the folder of the run itself, which keeps its images and texts")
        share.mkdir(parents=True, exist_ok=True)
        print(_write(runs[0], share, examples=False))
        return
    if out is not None:
        compared = [run for run in runs if (run / SUMMARY_FILE).exists()]
        if compared:
            raise UserError(
                f"{compared[0]} is a comparison, which has a page of its own; leave it out, or leave out --out"
            )
        write_training_report([read_record(run) for run in runs], out)
        print(out)
        return
    for run in runs:
        print(_write(run, run, examples=True))


def _write(run: Path, folder: Path, *, examples: bool) -> Path:
    """Write the page of a run into a folder; without examples of the data, also the record without them."""
    from rdrop.report.page import write_report
    from rdrop.report.training_page import write_training_report
    from rdrop.toolkit.compare import SUMMARY_FILE, read_summary
    from rdrop.toolkit.runs import write_atomically
    from rdrop.toolkit.single_run import RECORD_FILE, read_record
    from rdrop.toolkit.summary import without_examples

    page = folder / PAGE
    if (run / SUMMARY_FILE).exists():
        summary = read_summary(run)
        if not examples:
            summary = summary.model_copy(update={"runs": [without_examples(made) for made in summary.runs]})
            write_atomically(folder / SUMMARY_FILE, summary.model_dump_json(indent=1) + "\n")
        write_report(summary, page)
    else:
        record = read_record(run)
        if not examples:
            record = record.model_copy(update={"run": without_examples(record.run)})
            write_atomically(folder / RECORD_FILE, record.model_dump_json(indent=1) + "\n")
        write_training_report([record], page)
    return page
