"""A comparison: every arm with every seed, in several processes, on disk as soon as it is done."""

from __future__ import annotations

from concurrent.futures import as_completed
from pathlib import Path

from rdrop.errors import UserError
from rdrop.toolkit import worker
from rdrop.toolkit.pool import Progress, environment_of, worker_pool
from rdrop.toolkit.recipe import Recipe
from rdrop.toolkit.runs import RunFolder, Unit, write_atomically
from rdrop.toolkit.summarize import summarize
from rdrop.toolkit.summary import Summary
from rdrop.toolkit.trackers import TENSORBOARD_FOLDER

SUMMARY_FILE = "summary.json"


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
    events = out / TENSORBOARD_FOLDER
    with folder.opened(recipe, resume=resume), worker_pool(min(jobs, len(units)), progress) as pool:
        missing = [unit for unit in units if folder.read(unit) is None]
        try:
            progress.read()
            found = pool.submit(worker.survey, recipe).result()
            progress.planned(found.plans)
            progress.start(len(units), len(missing) * found.nominal_steps, len(units) - len(missing))
            futures = [pool.submit(worker.run, recipe, *unit, found.nominal_steps, events) for unit in missing]
            for future in as_completed(futures):
                record = future.result()
                folder.write(record)
                progress.finished(record.run)
            environment = environment_of(pool, command)
        finally:
            progress.close()
        # From the files, not from memory: a resumed comparison then reads the very same numbers.
        records = [held for unit in units if (held := folder.read(unit)) is not None]
        summary = summarize(recipe, found, records, jobs, environment)
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
