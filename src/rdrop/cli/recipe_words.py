"""The words of a command that name a recipe and change it, and the folder that its results go to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from rdrop.errors import UserError

if TYPE_CHECKING:
    from rdrop.toolkit.recipe_file import Override

RUNS = Path("rdrop-runs")
WORDS_HELP = (
    "A YAML file or the name of a built-in recipe (default: digits), then fields to change, for example "
    "rdrop.alpha=3 epochs=20."
)


def recipe_and_changes(words: list[str]) -> tuple[str | None, list[Override]]:
    """The recipe, None if none is named, and the fields that the words set."""
    from rdrop.toolkit.recipe_file import Override

    named = bool(words) and ("=" not in words[0] or Path(words[0]).exists())
    return (words[0] if named else None), [Override.parse(word) for word in words[named:]]


def default_folder(stem: str, *, resume: bool) -> Path:
    """The newest numbered folder of a recipe, or the one after it.

    Raises:
        UserError: There is none to resume.
    """
    pattern = re.compile(re.escape(stem) + r"-([0-9]+)")
    found = RUNS.iterdir() if RUNS.is_dir() else ()
    numbers = [int(match[1]) for path in found if (match := pattern.fullmatch(path.name))]
    if resume and not numbers:
        raise UserError(
            f"nothing to resume: {RUNS} holds no folder {stem}-1; name the folder with --out, or leave out --resume"
        )
    return RUNS / f"{stem}-{max(numbers, default=0) + (not resume)}"
