"""Tables of options for the pages of the commands, from the commands themselves; a hook of `mkdocs build`."""

from __future__ import annotations

import re
from typing import Any

from typer.main import get_command

from rdrop.cli.app import app

FOLDER = "commands/"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Adds the table to the page of a command; called by mkdocs."""
    del config, files
    path = page.file.src_uri
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    name = path.removeprefix(FOLDER).removesuffix(".md")
    return markdown + "\n" + options(commands[name]) if path.startswith(FOLDER) and name in commands else markdown


def options(command: Any) -> str:
    """What a command takes, in Markdown."""
    rows = ["## All options", "", "| | | default |", "| --- | --- | --- |"]
    for each in command.params:
        if each.name == "help" or getattr(each, "hidden", False):
            continue
        is_option = each.param_type_name == "option"
        name = ", ".join(each.opts) if is_option else (each.metavar or each.name.upper())
        shown = f"`{name}{_value(each) if is_option else ''}`"
        shown += "" if is_option or each.required else " (may be left out)"
        default = each.default if is_option and not getattr(each, "is_flag", False) else None
        if callable(default) or default in (None, (), []):
            default = ""
        rows.append(f"| {shown} | {_line(each.help)} | {f'`{default}`' if default != '' else ''} |")
    return "\n".join([*rows, ""])


def _value(option: Any) -> str:
    """What stands after an option's name."""
    return "" if getattr(option, "is_flag", False) else f" {option.metavar or option.type.name.upper()}"


def _line(text: str | None) -> str:
    """A help text in one cell of a table."""
    return re.sub(r"\s+", " ", text or "").replace("|", "\\|").strip()
