"""Files of the user's data: they stay in their folder, and one that cannot be opened is explained."""

from __future__ import annotations

import os
from io import BufferedReader
from itertools import islice
from pathlib import Path

from rdrop.errors import UserError
from rdrop.toolkit.data.rows import BadValue
from rdrop.toolkit.plain_yaml import shown
from rdrop.toolkit.recipe_fields import nearest

LONGEST_PATH, LONGEST_NAME = 4096, 255  # bytes that systems allow
NEIGHBOURS = 10_000  # names among which a mistaken one is looked for; a folder of images may hold millions


def inside(folder: Path, name: str) -> Path:
    """The file of a name that stands in the data, if it is one of the data folder.

    Args:
        folder: The data folder.
        name: Path of a file relative to it; an absolute one has to lead into the folder too.

    Returns:
        The resolved path, free of links, so that what was checked is what will be opened. Whether there is
        such a file is not asked.

    Raises:
        BadValue: The path leaves the folder, by `..`, from the root or through a link, or it is the folder
            itself, or no path at all.

    >>> inside(Path("/plants"), "train/7.png").relative_to("/plants").as_posix()
    'train/7.png'
    >>> inside(Path("/plants"), "../7.png")
    Traceback (most recent call last):
        ...
    rdrop.toolkit.data.rows.BadValue: the path '../7.png' leads out of the data folder /plants; expected a file below it
    """
    told = shown(name).removeprefix("the text ")
    try:
        parts = [len(os.fsencode(part)) for part in Path(name).parts]
        if sum(parts) > LONGEST_PATH or max(parts, default=0) > LONGEST_NAME:
            raise BadValue(f"the path {told} has {len(name):,} characters, more than any file may have")
        root = folder.resolve()
        path = (root / name).resolve()
    except BadValue:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # a chain of links without end; a NUL character
        raise BadValue(f"the path {told} cannot be followed: {error}") from None
    if path == root or not name:
        raise BadValue(f"the path {told} names no file; expected a file below the data folder {folder}")
    if not path.is_relative_to(root):
        raise BadValue(f"the path {told} leads out of the data folder {folder}; expected a file below it")
    return path


def opened(path: Path) -> BufferedReader:
    """Opens a file of data for reading bytes.

    Args:
        path: The file.

    Returns:
        The open file, to be closed by the caller.

    Raises:
        UserError: There is no such file, or it is a folder, or it cannot be read.
    """
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; expected a file")
        # Opening a named pipe would wait for ever for a writer.
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is neither a file nor a folder; expected a file")
        return path.open("rb")
    except FileNotFoundError:
        raise UserError(_missing(path)) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"cannot read {str(path)!r}: {reason}; expected a file that this user may read") from None


def _missing(path: Path) -> str:
    """Why there is no such file, as far as the folder tells."""
    if path.is_symlink():
        return f"{path} is a link to {path.readlink()}, which is not there; repair the link"
    if not path.parent.is_dir():
        return f"there is no file {path}, and no folder {path.parent}; check the path"
    try:
        close = nearest(path.name, (other.name for other in islice(path.parent.iterdir(), NEIGHBOURS)))
    except OSError:  # a folder that may be entered and not listed
        close = None
    return f"there is no file {path}; " + (f"did you mean {close}?" if close else "check the path")
