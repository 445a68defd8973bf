"""The command `rdrop`: one file per command, each of which parses, calls the toolkit and prints."""

from __future__ import annotations

import errno
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
        print(f"error: {printable(str(error))}", file=sys.stderr)
    except OSError as error:
        # Without a path it is no mistake of the user's, unless there was no room to write.
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = "" if error.filename is None else f"{error.filename}: "
        print(f"error: {printable(place)}{error.strerror}", file=sys.stderr)
    sys.exit(2)


def printable(text: str) -> str:
    r"""The text without control characters, which a recipe or a data file could send to the terminal.

    Args:
        text: What is to be printed.

    >>> printable("a\x1b[31mb")
    'a�[31mb'
    """
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)
