"""Experiment trackers: what a run is called there, where its files go, and when it ends.

The Trainer reports to them by itself (`report_to`). It was made for one run in a process; here are several, and each is
judged after its training, which a tracker would take for the beginning of another run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.integrations.integration_utils import (
    MLflowCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
)

from rdrop.errors import UserError

TENSORBOARD_FOLDER = "tensorboard"
PROJECT = "rdrop"
# What names the project, for the trackers that read it from the environment.
_PROJECT_VARIABLES = {"wandb": "WANDB_PROJECT", "mlflow": "MLFLOW_EXPERIMENT_NAME"}
_CALLBACKS = (TensorBoardCallback, MLflowCallback, WandbCallback, TrackioCallback)


def require_trackers(trackers: Sequence[str]) -> None:
    """Refuses trackers that are not installed; the Trainer would do so only once it is built.

    Args:
        trackers: Names of packages, as in `training.report_to`.

    Raises:
        UserError: One is missing.

    >>> require_trackers([])
    >>> require_trackers(["x"])
    Traceback (most recent call last):
        ...
    rdrop.errors.UserError: training.report_to names x, which Python does not find; pip install x, or leave it out
    """
    specs = {name: find_spec(name) for name in trackers}
    # A folder of that name, such as the one that wandb writes, is found too, but has no origin.
    missing = [name for name, spec in specs.items() if spec is None or spec.origin is None]
    if missing:
        raise UserError(
            f"training.report_to names {' and '.join(missing)}, which Python does not find; "
            f"pip install {' '.join(missing)}, or leave it out"
        )


@contextmanager
def tracked(trainer: Trainer, folder: Path | None) -> Iterator[None]:
    """Lets the trackers of a Trainer follow its training, and nothing after it.

    Within the block they do as the Trainer tells them. What the user has set in the environment (`WANDB_PROJECT`,
    `MLFLOW_EXPERIMENT_NAME`, `TENSORBOARD_LOGGING_DIR` and all the others) is kept; where nothing is set, the project
    is called `rdrop`. At the end the run is closed, also after an error, so that the next run in this process is
    another one.

    Args:
        trainer: The Trainer, before its training.
        folder: Where TensorBoard's events go, in one place however often the run is resumed; None leaves them where
            the Trainer puts them.
    """
    callbacks: list[Any] = [item for item in trainer.callback_handler.callbacks if isinstance(item, _CALLBACKS)]
    for callback in callbacks:
        if folder is not None and isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(folder)
    asked = trainer.args.report_to or []
    ours = [variable for name, variable in _PROJECT_VARIABLES.items() if name in asked and variable not in os.environ]
    os.environ.update(dict.fromkeys(ours, PROJECT))
    try:
        yield
    finally:
        for callback in callbacks:
            trainer.remove_callback(callback)
        _close(asked)
        for variable in ours:
            os.environ.pop(variable, None)


def _close(trackers: str | Sequence[str]) -> None:
    """Ends the runs that are still open: W&B's always, the others' if the training has raised."""
    if "wandb" in trackers and "wandb" in sys.modules:
        sys.modules["wandb"].finish()
    if "mlflow" in trackers and "mlflow" in sys.modules and sys.modules["mlflow"].active_run() is not None:
        sys.modules["mlflow"].end_run()
    if "trackio" in trackers and "trackio" in sys.modules:
        with suppress(RuntimeError):  # there is none
            sys.modules["trackio"].finish()
