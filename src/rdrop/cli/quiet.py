"""What other packages print is kept off the terminal."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rdrop.cli import printable
from rdrop.errors import RDropWarning


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps warnings, log lines and progress bars of other packages off the terminal.

    Warnings of this package are told at the end, one line each. To be entered after the slow imports, which it makes
    itself otherwise.
    """
    from rdrop.toolkit.pretrained import quiet_loading

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(record=True) as caught, quiet_loading():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", RDropWarning)
            yield
    finally:
        logging.disable(before)
    tell_notes(str(warning.message) for warning in caught if issubclass(warning.category, RDropWarning))


def tell_notes(notes: Iterable[str]) -> None:
    """Prints what the user should know to standard error, each note once."""
    for note in dict.fromkeys(notes):
        print(f"note: {printable(note)}", file=sys.stderr)
