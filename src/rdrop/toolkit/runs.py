"""Finished runs on disk: one record for each, written whole or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from rdrop.errors import UserError
from rdrop.toolkit.arm_names import ArmName
from rdrop.toolkit.recipe import Recipe
from rdrop.toolkit.summary import Record, Run

RECIPE_FILE = "recipe.yaml"
RUNS_FOLDER = "runs"
LOCK_FILE = ".lock"

Unit = tuple[ArmName, int]  # an arm and a seed


class RunRecord(Record):
    """A run with what it cost."""

    run: Run
    data: str = Field(description="What the run was trained and tested on.")
    warnings: list[str] = Field(description="Warnings of this package during the run.")
    strategy: str = Field(description="How the passes were run: `single`, `concat`, `shared` or `sequential`.")
    form: str = Field(default="", description="What a budget has left of the objective; empty: all of it.")
    step_compute: float = Field(description="Operations of one training step as a ratio to one step of plain training.")
    step_ms: float | None = Field(description="Median time of a training step; null if too few were made to tell.")
    seconds: float = Field(description="Time of the whole run.")


def write_atomically(path: Path, text: str) -> None:
    """Puts `text` into a file so that a reader, or a crash, meets the old content or the new, never a part.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(Path(folder) / "note.txt", "all of it")
    ...     (Path(folder) / "note.txt").read_text()
    'all of it'
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


class RunFolder:
    """The records of one comparison.

    Args:
        path: The folder; it is made if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def opened(self, recipe: Recipe, *, resume: bool) -> AbstractContextManager[None]:
        """Holds the folder for this process and this recipe; see `claimed`."""
        return claimed(self.path, recipe, resume=resume, what="comparison", results=RUNS_FOLDER)

    def read(self, unit: Unit) -> RunRecord | None:
        """The record of a run, or None if it has not ended.

        Raises:
            UserError: If the file cannot be understood.
        """
        path = self._file(unit)
        try:
            text = path.read_text(encoding="utf-8")
            record = RunRecord.model_validate_json(text)
        except FileNotFoundError:
            return None
        except (ValidationError, UnicodeDecodeError) as error:
            raise UserError(
                f"the record {path} cannot be read: {_first_line(error)}. Delete that file and start again "
                "with --resume: its run is then repeated."
            ) from error
        if (record.run.arm, record.run.seed) != unit:
            raise UserError(
                f"the record {path} is that of arm {record.run.arm}, seed {record.run.seed}; expected arm "
                f"{unit[0]}, seed {unit[1]}. Delete that file and start again with --resume: its run is then "
                "repeated."
            )
        return record

    def write(self, record: RunRecord) -> None:
        """Adds a run."""
        unit = (record.run.arm, record.run.seed)
        write_atomically(self._file(unit), record.model_dump_json(indent=1) + "\n")

    def _file(self, unit: tuple[str, int]) -> Path:
        return self.path / RUNS_FOLDER / f"{unit[0]}-seed{unit[1]}.json"


@contextmanager
def claimed(path: Path, recipe: Recipe, *, resume: bool, what: str, results: str) -> Iterator[None]:
    """Holds a folder for this process and this recipe.

    Args:
        path: The folder; it is made if it does not exist.
        recipe: The complete recipe; it is written into the folder.
        resume: Whether a folder that holds results already is to be completed.
        what: What the folder holds, for messages.
        results: Its folder of results; it is made too.

    Raises:
        UserError: If the folder holds results and `resume` is false, or belongs to another recipe, or another
            process is working in it.
    """
    try:
        (path / results).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}. Name another with --out.") from error
    with _locked(path / LOCK_FILE):
        _claim(path, recipe, resume=resume, what=what)
        for leftover in [*path.glob(".*.tmp"), *(path / results).glob(".*.tmp")]:
            leftover.unlink()  # half a file of a process that was killed
        try:
            yield
        except UserError:
            # Nothing was made: what is repaired now may well be the recipe.
            if not any((path / results).iterdir()):
                (path / RECIPE_FILE).unlink()
            raise


def _claim(folder: Path, recipe: Recipe, *, resume: bool, what: str) -> None:
    """Makes the folder that of `recipe`, or says why it cannot be."""
    path = folder / RECIPE_FILE
    wanted = recipe.model_dump(mode="json")
    if not path.exists():
        write_atomically(path, yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True))
        return
    if not resume:
        raise UserError(
            f"the folder {folder} already holds a {what}. Complete it with --resume, or name another with --out."
        )
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"the file {path} cannot be read: {_first_line(error)}. Name another folder with --out."
        ) from error
    differing = list(_differing_keys(held, wanted))
    if differing:
        raise UserError(
            f"the folder {folder} holds a {what} with another recipe: {'; '.join(differing)}. Give it the same "
            "recipe, or name another folder with --out."
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock that ends with this process, however it ends."""
    with path.open("a+b") as file:
        try:
            _lock(file.fileno())
        except OSError as error:
            raise UserError(
                f"another process is working in {path.parent}. Wait for it, or name another folder with --out."
            ) from error
        yield


def _lock(handle: int) -> None:
    """Takes the lock of an open file or raises OSError."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _differing_keys(held: object, wanted: object, prefix: Sequence[str] = ()) -> Iterator[str]:
    """The keys in which two recipes differ, each with both values."""
    if isinstance(held, dict) and isinstance(wanted, dict):
        for key in dict.fromkeys([*wanted, *held]):
            yield from _differing_keys(held.get(key), wanted.get(key), [*prefix, str(key)])
    elif held != wanted:
        yield f"{'.'.join(prefix) or 'recipe'} is {held!r} there and {wanted!r} here"


def _first_line(error: Exception) -> str:
    """The start of a long message."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return ": ".join([*map(str, first["loc"]), first["msg"]])
    return str(error).splitlines()[0]
