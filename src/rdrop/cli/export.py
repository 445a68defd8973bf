"""`rdrop export`: a trained model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rdrop.cli.completion import begun
from rdrop.errors import UserError

FORMATS = ("huggingface", "onnx")


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `rdrop train` made.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the export goes; it must not exist yet.")],
    form: Annotated[
        str,
        typer.Option("--format", metavar="FORMAT", help="huggingface, or onnx.", autocompletion=begun(lambda: FORMATS)),
    ] = "huggingface",
) -> None:
    """Write a trained model as a Hugging Face folder with a model card, or as an ONNX file, checked against torch."""
    if form not in FORMATS:
        raise UserError(f"got --format {form}, expected {' or '.join(FORMATS)}")
    from rich.console import Console

    from rdrop.cli.quiet import quiet

    with Console(stderr=True).status("Starting") as status:  # importing torch takes seconds
        from rdrop.toolkit import export as toolkit

        write = toolkit.export_onnx if form == "onnx" else toolkit.export_hugging_face
        status.update("Exporting")
        with quiet():
            found = write(run, out)
    print(found)
