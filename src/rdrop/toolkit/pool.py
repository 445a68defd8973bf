"""The processes that make runs: how they are started, what they tell, and where they are."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from multiprocessing.queues import Queue
from queue import Empty
from threading import Event, Thread
from typing import TYPE_CHECKING, Protocol

from rdrop.errors import UserError
from rdrop.toolkit import worker
from rdrop.toolkit.arm_names import ArmName
from rdrop.toolkit.environment import machine, versions
from rdrop.toolkit.summary import Environment, Run

if TYPE_CHECKING:
    from rdrop.toolkit.step_plan import StepPlan


class Progress(Protocol):
    """Who is told how far the runs of a comparison or a sweep are."""

    def read(self) -> None:
        """The data are read and checked now."""

    def planned(self, plans: Mapping[ArmName, StepPlan]) -> None:
        """This is what a step of each arm will be."""

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


@contextmanager
def worker_pool(jobs: int, progress: Progress) -> Iterator[ProcessPoolExecutor]:
    """Processes that make runs, one at a time each, and tell their steps.

    Args:
        jobs: Processes, at least one.
        progress: Is told the steps, from a thread of its own.

    Raises:
        UserError: A process died.
    """
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


def environment_of(pool: ProcessPoolExecutor, command: str) -> Environment:
    """Where the runs of a pool are made.

    Args:
        pool: The pool.
        command: The command that repeats them.
    """
    where = pool.submit(machine).result()  # there, because it needs torch, which is slow to load
    return Environment(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=where,
        versions=versions(),
        command=command,
    )


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
