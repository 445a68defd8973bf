"""The command `rdrop`: one file per command, each of which parses, calls the toolkit and prints."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from rdrop.errors import UserError

MISSING_EXTRA = 'The command rdrop needs the extra "train": pip install "rdrop[train]"'


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 for success, 1 if a run failed, 2 for what the user can repair.

    Args:
        arguments: The words after `rdrop`; None takes them from the command line.
    """
    try:
        from rdrop.cli.app import app

        app(args=arguments, prog_name="rdrop")
    except ModuleNotFoundError as error:
        # A module of this package that is missing is our fault and wants its traceback.
        if (error.name or "rdrop").partition(".")[0] == "rdrop":
            raise
        print(f"{MISSING_EXTRA} (missing: {error.name})", file=sys.stderr)
    except UserError as error:
        print(f"error: {_printable(str(error))}", file=sys.stderr)
    except OSError as error:
        # Without a path it is no mistake of the user's.
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
    sys.exit(2)


def _printable(text: str) -> str:
    """The text without control characters, which a recipe could send to the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)
