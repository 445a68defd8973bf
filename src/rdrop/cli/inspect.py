"""`rdrop inspect`: the randomness of a model, what R-Drop would cost on it, and warnings."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from rdrop.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rdrop.toolkit.inspection import Inspection, LayerGroup


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A timm name (resnet18), a folder with the config.json of transformers, or module:function "
            "of your own, which returns a model, or a model and its inputs.",
            show_default=False,
        ),
    ],
    shape: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="SHAPE",
            help="Shape of one example, as in 3,224,224. Default: the model's own.",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, metavar="B", help="Examples in the batch.")] = 2,
    passes: Annotated[int, typer.Option(min=2, max=16, metavar="M", help="Forward passes in a step.")] = 2,
    dropout: Annotated[
        float | None, typer.Option(metavar="RATE", help="Set every dropout rate first, 0 to below 1.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also time forward and backward with every strategy.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show the stochastic layers of a model, what R-Drop would cost on it, and what to beware of.

    The model is built with random weights; nothing is downloaded.
    """
    size = _shape(shape)
    from rich.console import Console

    console = Console(stderr=True)
    with console.status(f"Looking at {model}") as status:
        from rdrop.toolkit.inspection import inspect_model
        from rdrop.toolkit.model_source import load_example

        def tick(done: int, total: int) -> None:
            status.update(f"Measuring, step {done} of {total}")

        example = load_example(model, shape=size, batch_size=batch_size)
        found = inspect_model(example, passes=passes, dropout=dropout, measure=measure, tick=tick)
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        Console().print(_shown(found))


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"got --input {text}, expected positive whole numbers with commas, for example 3,224,224")
    return tuple(map(int, parts))


def _shown(found: Inspection) -> RenderableType:
    """An inspection as text."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(f"{found.model}, {found.parameters:,} parameters\n", style="bold")]
    parts.append(_layer_table(found.layers) if found.layers else Text("No stochastic layer.\n"))
    where = f" (time on {found.device})" if found.device else ""
    parts.append(Text(f"\nA step with {found.passes} passes, as a ratio to a step with one{where}"))
    parts.append(_cost_table(found))
    parts.append(Text(f"auto chooses {found.strategy}: {found.reason}."))
    parts += [Text(f"\nWarning: {warning}", style="yellow") for warning in found.warnings]
    return Group(*parts)


def _layer_table(layers: list[LayerGroup]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("stochastic layers", overflow="fold")
    for heading in ("kind", "rate", "count", "active"):
        table.add_column(heading, no_wrap=True)
    for layer in layers:
        low, high = f"{layer.lowest_rate:g}", f"{layer.highest_rate:g}"
        rate = low if low == high else f"{low} to {high}"
        table.add_row(Text(layer.pattern), layer.kind, rate, str(layer.count), str(layer.active))
    return table


def _cost_table(found: Inspection) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table("strategy", "operations", *(["time"] if found.step_ratio else []), "")
    for strategy in ("concat", "sequential", "shared"):
        cells = [_ratio(found.cost, strategy)]
        if found.step_ratio:
            cells.append(_ratio(found.step_ratio, strategy))
        remark = found.refusals.get(strategy) or ("chosen by auto" if strategy == found.strategy else "")
        table.add_row(strategy, *cells, Text(remark))
    return table


def _ratio(ratios: dict[str, float], strategy: str) -> str:
    from rdrop.report.number_format import ratio

    return ratio(ratios[strategy]) if strategy in ratios else "-"
