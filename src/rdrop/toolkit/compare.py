"""A comparison: every arm with every seed, in several processes, on disk as soon as it is done."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from threading import Event, Thread
from typing import Protocol

from rdrop.errors import UserError
from rdrop.toolkit import worker
from rdrop.toolkit.environment import machine, versions
from rdrop.toolkit.recipe import Recipe
from rdrop.toolkit.runs import RunFolder, Unit, write_atomically
from rdrop.toolkit.summarize import summarize
from rdrop.toolkit.summary import Environment, Run, Summary

SUMMARY_FILE = "summary.json"


class Progress(Protocol):
    """Who is told how far a comparison is."""

    def read(self) -> None:
        """The data are read and checked now."""

    def start(self, total_runs: int, total_steps: int, finished_runs: int) -> None:
        """It begins.

        Args:
            total_runs: All runs.
            total_steps: Steps still to be made, each run counted as long as a run of `plain`.
            finished_runs: Runs that ended in an earlier process.
        """

    def advance(self, steps: int) -> None:
        """So many more of those steps were made."""

    def finished(self, run: Run) -> None:
        """A run ended."""

    def close(self) -> None:
        """It is over, however it went; maybe told more than once."""


def compare(recipe: Recipe, out: Path, *, jobs: int, resume: bool, command: str, progress: Progress) -> Summary:
    """Makes the runs that are missing, and sums up all of them.

    The folder holds `recipe.yaml`, one record for each finished run under `runs/`, and in the end
    `summary.json`. Every file appears whole or not at all, so a comparison that was killed at any moment can
    be resumed; what comes out is then the same as without the interruption, in all but times and environment.

    Args:
        recipe: What to compare.
        out: The folder, made if needed.
        jobs: Processes, at least 1; each makes one run at a time with one thread.
        resume: Whether to complete a folder that holds runs.
        command: The command that repeats this comparison, for the record.
        progress: Is told how far it is.

    Returns:
        The summary, which is in `summary.json` too.

    Raises:
        UserError: If the folder belongs to something else, or a record in it is damaged, or a process died.
    """
    folder = RunFolder(out)
    # Seed by seed, so that what is there after an interruption is balanced over the arms.
    units: list[Unit] = [(arm, seed) for seed in recipe.compare.seeds for arm in recipe.compare.arms]
    with folder.opened(recipe, resume=resume), _workers(min(jobs, len(units)), progress) as pool:
        missing = [unit for unit in units if folder.read(unit) is None]
        try:
            progress.read()
            found = pool.submit(worker.survey, recipe).result()
            progress.start(len(units), len(missing) * found.nominal_steps, len(units) - len(missing))
            futures = [pool.submit(worker.run, recipe, *unit, found.nominal_steps) for unit in missing]
            for future in as_completed(futures):
                record = future.result()
                folder.write(record)
                progress.finished(record.run)
            where = pool.submit(machine).result()  # there, because it needs torch, which is slow to load
        finally:
            progress.close()
        # From the files, not from memory: a resumed comparison then reads the very same numbers.
        records = [held for unit in units if (held := folder.read(unit)) is not None]
        summary = summarize(recipe, found, records, jobs, _environment(where, command))
        write_atomically(out / SUMMARY_FILE, summary.model_dump_json(indent=1) + "\n")
        return summary


def read_summary(folder: Path) -> Summary:
    """The summary of a finished comparison.

    Raises:
        UserError: It cannot be understood.
    """
    path = folder / SUMMARY_FILE
    try:
        return Summary.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read: {reason}. Make it again with `rdrop compare --resume`.") from error


@contextmanager
def _workers(jobs: int, progress: Progress) -> Iterator[ProcessPoolExecutor]:
    """Processes that make runs, one at a time each, and tell their steps."""
    context = _context()
    steps: Queue[int] = context.Queue()
    pool = ProcessPoolExecutor(max(1, jobs), context, initializer=worker.start, initargs=(steps,))
    with _relayed(steps, progress):
        try:
            yield pool
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process died, killed by the system or by someone else; a lack of memory is the "
                "usual reason. The runs that ended are kept: start again with --resume, and with fewer "
                "--jobs if memory is short."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _context() -> BaseContext:
    """How workers are started: copied from a process that has loaded torch once, where the system can do that.

    Never from this one: a copy of a process that has threads may hang.
    """
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rdrop.toolkit.train"])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # or Ctrl-C shows a traceback from there
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@contextmanager
def _relayed(steps: Queue[int], progress: Progress) -> Iterator[None]:
    """Passes the workers' messages on from a thread of its own."""
    over = Event()

    def relay() -> None:
        # Waiting with a limit, not for a last message: a worker that was killed may hold the queue's lock for
        # good.
        while not over.is_set():
            try:
                progress.advance(steps.get(timeout=0.1))
            except Empty:
                continue

    thread = Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _environment(where: str, command: str) -> Environment:
    return Environment(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=where,
        versions=versions(),
        command=command,
    )
