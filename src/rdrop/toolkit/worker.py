"""A worker process: it makes one run after another, and ends with the process that started it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from multiprocessing import parent_process
from multiprocessing.queues import Queue
from pathlib import Path
from typing import TYPE_CHECKING

from rdrop.errors import RDropWarning
from rdrop.toolkit.arm_names import ArmName
from rdrop.toolkit.recipe import Recipe
from rdrop.toolkit.runs import RunRecord

if TYPE_CHECKING:
    from rdrop.toolkit.train import Survey

_progress: Queue[int] | None = None


def start(progress: Queue[int]) -> None:
    """Prepares a fresh process.

    Args:
        progress: Takes the nominal steps made.
    """
    global _progress
    _progress = progress
    progress.cancel_join_thread()  # the last word about progress must not keep a process from ending
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the run without a traceback
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def survey(recipe: Recipe) -> Survey:
    """Reads and checks the data; see `rdrop.toolkit.train.survey`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rdrop.toolkit import train

        logging.disable(logging.WARNING)
        return train.survey(recipe)


def run(recipe: Recipe, arm: ArmName, seed: int, nominal: int, events: Path) -> RunRecord:
    """Makes one run; its warnings go into its record, and nothing is printed.

    Args:
        recipe: What to do.
        arm: The arm.
        seed: The seed.
        nominal: Optimizer steps of a run of `plain`.
        events: The folder for TensorBoard's files.

    Returns:
        The run.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        import torch

        from rdrop.toolkit.train import train_run

        # One thread: sums are then the same whatever the number of jobs, and workers do not share cores.
        torch.set_num_threads(1)
        logging.disable(logging.WARNING)
        warnings.simplefilter("always", RDropWarning)
        record = train_run(recipe, arm, seed, nominal, _tell, events)
    told = [str(warning.message) for warning in caught if issubclass(warning.category, RDropWarning)]
    return record.model_copy(update={"warnings": list(dict.fromkeys(told))})


def _tell(steps: int) -> None:
    if _progress is not None:
        _progress.put(steps)


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, however it went."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
