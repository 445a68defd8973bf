"""`rdrop export`: a trained model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rdrop.errors import UserError


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `rdrop train` made.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the export goes; it must not exist yet.")],
    form: Annotated[str, typer.Option("--format", help="onnx, or huggingface.")] = "huggingface",
) -> None:
    """Write a trained model as an ONNX file, checked against torch, or as a Hugging Face folder with a model card."""
    if form not in ("onnx", "huggingface"):
        raise UserError(f"got --format {form}, expected onnx or huggingface")
    from rich.console import Console

    with Console(stderr=True).status("Exporting"):
        from rdrop.toolkit import export as toolkit

        write = toolkit.export_onnx if form == "onnx" else toolkit.export_hugging_face
        found = write(run, out)
    print(found)
