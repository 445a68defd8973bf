"""A sweep: alpha and dropout chosen on the validation split, with as many tries for every arm.

The arm `rdrop` tries every pair of an alpha and a dropout rate. An alpha means nothing to the other arms, so each of
them tries as many dropout rates, spread evenly over the same range. The test split is not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import as_completed
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from rdrop.errors import UserError
from rdrop.toolkit import worker
from rdrop.toolkit.arm_names import ArmName, economy
from rdrop.toolkit.data.file_data import FileData
from rdrop.toolkit.pool import Progress, environment_of, worker_pool
from rdrop.toolkit.recipe import Chosen, Recipe, Section, Seed, distinct, fault
from rdrop.toolkit.recipe_file import recipe_text
from rdrop.toolkit.runs import RunFolder, RunRecord, claimed, write_atomically
from rdrop.toolkit.summary import Environment, Metric, Record
from rdrop.toolkit.trackers import TENSORBOARD_FOLDER

if TYPE_CHECKING:
    from rdrop.toolkit.train import Survey

TRIES_FOLDER = "tries"
GRID_FILE = f"{TRIES_FOLDER}/grid.json"
SWEEP_FILE = "sweep.json"
CHOSEN_FILE = "chosen.yaml"
DECIMALS = 3  # of a dropout rate that is spread between two others
HIGHEST_DROPOUT = 0.999  # the highest below 1 with so many
SAMPLES = 2  # the consistency gap chooses nothing, so it may be rough
TELLING = 3  # from so many values on, a choice at the end of the range says that the range may be too small


class Grid(Section):
    """What is tried, and with which seeds."""

    alphas: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1), AfterValidator(distinct)] = Field(
        description="Alphas of the arm `rdrop`."
    )
    dropouts: Annotated[
        list[Annotated[float, Field(ge=0, le=HIGHEST_DROPOUT)]], Field(min_length=1), AfterValidator(distinct)
    ] = Field(description="Dropout rates of the arm `rdrop`; the other arms try rates from the lowest to the highest.")
    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(distinct)] = Field(
        description="Seeds of each try."
    )

    @property
    def tries(self) -> int:
        """Tries of each arm."""
        return len(self.alphas) * len(self.dropouts)

    @property
    def spread_dropouts(self) -> list[float]:
        """As many dropout rates as `rdrop` has pairs, in rising order."""
        low, high, last = min(self.dropouts), max(self.dropouts), max(1, self.tries - 1)
        return [round(low + (high - low) * step / last, DECIMALS) for step in range(self.tries)]

    @model_validator(mode="after")
    def _as_many_tries(self) -> Self:
        found = len(set(self.spread_dropouts))
        if found < self.tries:
            raise fault(
                f"{len(self.alphas)} alphas with {len(self.dropouts)} dropout rates are {self.tries} tries for rdrop, "
                f"but from {min(self.dropouts):g} to {max(self.dropouts):g} there are only {found} dropout rates, of "
                f"{DECIMALS} decimals, for the arms without an alpha; give rates that are further apart, so that every "
                "arm has as many tries"
            )
        return self


class Setting(Record):
    """An arm and what it is trained with."""

    arm: ArmName
    alpha: float | None = Field(default=None, description="Weight of the divergence; null for an arm that has none.")
    dropout: float = Field(description="Probability of dropping a unit.")

    @property
    def title(self) -> str:
        """The setting in words."""
        alpha = "" if self.alpha is None else f", alpha {self.alpha:g}"
        return f"{self.arm}{alpha}, dropout {self.dropout:g}"

    @property
    def folder(self) -> str:
        """Name of the folder of its runs."""
        alpha = "" if self.alpha is None else f"-alpha{self.alpha}"
        return f"{self.arm}{alpha}-dropout{self.dropout}"


class Try(Setting):
    """A setting with all its seeds."""

    metrics: dict[int, dict[str, float]] = Field(
        description="Seed to metric name to its value on the validation split, for the runs that finished."
    )
    failed: dict[int, str] = Field(description="Seed to error, for the runs that failed.")
    means: dict[str, float] = Field(description="Metric name to its mean over the seeds; empty if a run failed.")


class Sweep(Record):
    """What a sweep leaves behind: the schema of `sweep.json`."""

    schema_version: Literal[1] = 1
    title: str = Field(description="Title of the recipe.")
    task: str = Field(description="Task family.")
    data: str = Field(description="What the runs were trained and judged on, in one sentence with the counts.")
    recipe: dict[str, object] = Field(description="The recipe that the tries started from.")
    grid: Grid
    metrics: list[Metric] = Field(description="The metrics; the first one chooses.")
    tries: list[Try] = Field(description="All of them, arm by arm; every arm has as many.")
    chosen: dict[ArmName, Chosen] = Field(description="Arm to its best setting; without the arms that have none.")
    notes: list[str] = Field(description="What a careful reader must know.")
    environment: Environment

    @property
    def without_choice(self) -> list[ArmName]:
        """Arms of which no try finished."""
        return [arm for arm in dict.fromkeys(each.arm for each in self.tries) if arm not in self.chosen]


def settings(arms: Sequence[ArmName], grid: Grid) -> list[Setting]:
    """All tries, arm by arm.

    >>> tried = settings(["plain", "rdrop"], Grid(alphas=[1.0, 2.0], dropouts=[0.1, 0.4], seeds=[0]))
    >>> [setting.dropout for setting in tried if setting.arm == "plain"]
    [0.1, 0.2, 0.3, 0.4]
    >>> [(setting.alpha, setting.dropout) for setting in tried if setting.arm == "rdrop"]
    [(1.0, 0.1), (2.0, 0.1), (1.0, 0.4), (2.0, 0.4)]
    """
    pairs = [(alpha, dropout) for dropout in grid.dropouts for alpha in grid.alphas]
    rates = [(None, dropout) for dropout in grid.spread_dropouts]
    return [
        Setting(arm=arm, alpha=alpha, dropout=dropout)
        for arm in arms
        for alpha, dropout in (pairs if arm == "rdrop" or economy(arm) else rates)
    ]


def read_grid(out: Path) -> Grid | None:
    """The grid of a folder, or None if it has none yet.

    Raises:
        UserError: It cannot be understood.
    """
    path = out / GRID_FILE
    try:
        return Grid.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValidationError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read: {reason}. Name another folder with --out.") from error


def sweep(recipe: Recipe, grid: Grid, out: Path, *, jobs: int, resume: bool, command: str, progress: Progress) -> Sweep:
    """Makes the tries that are missing, and chooses the best of each arm.

    The folder holds `recipe.yaml`, under `tries/` the grid and for each try a folder with its recipe and a record for
    each seed, and in the end `sweep.json` and `chosen.yaml`, the recipe of the comparison that may follow. Every file
    appears whole or not at all, so a sweep that was killed at any moment can be resumed; what comes out is then the
    same as without the interruption, in all but the environment.

    Args:
        recipe: What the tries have in common, and its `compare.arms`.
        grid: What is tried.
        out: The folder, made if needed.
        jobs: Processes, at least 1; each makes one run at a time with one thread.
        resume: Whether to complete a folder that holds tries.
        command: The command that repeats this sweep, for the record.
        progress: Is told how far it is.

    Returns:
        The sweep, which is in `sweep.json` too. If no try of an arm finished, that arm is not in `chosen`, and there is
        no `chosen.yaml`.

    Raises:
        UserError: There is no validation split, or the folder belongs to something else, or a record in it is damaged,
            or a process died.
    """
    recipes = {setting: _recipe_of_try(recipe, grid, setting) for setting in settings(recipe.compare.arms, grid)}
    folders = {setting: RunFolder(out / TRIES_FOLDER / setting.folder) for setting in recipes}
    units = [(setting, seed) for seed in grid.seeds for setting in _balanced(list(recipes), grid.tries)]
    with (
        claimed(out, recipe, resume=resume, what="sweep", results=TRIES_FOLDER),
        worker_pool(min(jobs, len(units)), progress) as pool,
    ):
        _check_grid(out, grid)
        try:
            progress.read()
            found = pool.submit(worker.survey, next(iter(recipes.values()))).result()
            write_atomically(out / GRID_FILE, grid.model_dump_json(indent=1) + "\n")
            for setting, folder in folders.items():
                with folder.opened(recipes[setting], resume=True):
                    pass  # it is held by who holds the whole
            missing = [(setting, seed) for setting, seed in units if folders[setting].read((setting.arm, seed)) is None]
            progress.planned(found.plans)
            progress.start(len(units), len(missing) * found.nominal_steps, len(units) - len(missing))
            futures = {
                pool.submit(
                    worker.run,
                    recipes[setting],
                    setting.arm,
                    seed,
                    found.nominal_steps,
                    out / TRIES_FOLDER / setting.folder / TENSORBOARD_FOLDER,
                ): setting
                for setting, seed in missing
            }
            for future in as_completed(futures):
                record, setting = future.result(), futures[future]
                # Pictures and examples of every try would fill the disk, and no report shows them.
                record = record.model_copy(update={"run": record.run.model_copy(update={"exhibits": []})})
                folders[setting].write(record)
                progress.finished(record.run.model_copy(update={"arm": setting.title}))
            environment = environment_of(pool, command)
        finally:
            progress.close()
        records = {
            setting: [held for seed in grid.seeds if (held := folder.read((setting.arm, seed))) is not None]
            for setting, folder in folders.items()
        }
        made = _summed_up(recipe, grid, found, records, environment)
        write_atomically(out / SWEEP_FILE, made.model_dump_json(indent=1) + "\n")
        if not made.without_choice:
            write_atomically(out / CHOSEN_FILE, _chosen_text(recipe, made.chosen))
        return made


def best(tries: Sequence[Try], metric: Metric) -> Try | None:
    """The try with the best mean; of equal ones that with the lower dropout rate, then the lower alpha.

    Args:
        tries: Tries of one arm.
        metric: The main metric.

    Returns:
        The best, or None if each has a run that failed.

    >>> from rdrop.toolkit.metrics import CLASSIFICATION_METRICS
    >>> tries = [Try(arm="plain", dropout=rate, metrics={}, failed={}, means={"accuracy": 0.9}) for rate in (0.3, 0.1)]
    >>> best(tries, CLASSIFICATION_METRICS[0]).dropout
    0.1
    """
    sign = -1 if metric.higher_is_better else 1
    return min(
        (each for each in tries if each.means),
        key=lambda each: (sign * each.means[metric.name], each.dropout, each.alpha or 0.0),
        default=None,
    )


def _changed(recipe: Recipe, **compare: Any) -> Recipe:
    """The recipe with other values in its section `compare`, checked again."""
    held = recipe.model_dump(mode="json")
    held["compare"].update(compare)
    return type(recipe).model_validate(held)


def _recipe_of_try(recipe: Recipe, grid: Grid, setting: Setting) -> Recipe:
    """What the run of a try is made from."""
    try:
        judged = _changed(recipe, split="validation")
    except ValidationError:
        raise UserError(
            f"{recipe.title!r} ({recipe.task}) has no validation split, and a sweep must not choose on the test split; "
            "use a recipe with a file in data.validation, or with a part of the training split held out by "
            "data.validation_fraction"
        ) from None
    chosen = {setting.arm: {"alpha": setting.alpha, "dropout": setting.dropout}}
    if setting.arm != "rdrop" and "rdrop" in recipe.compare.arms:
        chosen["rdrop"] = {"alpha": max(grid.alphas), "dropout": max(grid.dropouts)}  # whose compute `longer` takes
    return _changed(judged, chosen=chosen, seeds=grid.seeds, samples=SAMPLES)


def _balanced(tried: Sequence[Setting], tries: int) -> list[Setting]:
    """A try of each arm in turn, so that what is there after an interruption is balanced over the arms."""
    return [setting for start in range(tries) for setting in tried[start::tries]]


def _check_grid(out: Path, grid: Grid) -> None:
    """Refuses the folder of another grid: tries that are left out of the record would not be equal in number."""
    held = read_grid(out) or grid
    for name, values in held.model_dump().items():
        wanted = getattr(grid, name)
        if values != wanted:
            raise UserError(
                f"the folder {out} holds a sweep with another grid: {name} are {_listed(values)} there and "
                f"{_listed(wanted)} here. Give it the same ones, or name another folder with --out."
            )


def _summed_up(
    recipe: Recipe, grid: Grid, found: Survey, records: dict[Setting, list[RunRecord]], environment: Environment
) -> Sweep:
    names = [metric.name for metric in found.metrics]
    tries = [_try(setting, held, names) for setting, held in records.items()]
    bests = (best([each for each in tries if each.arm == arm], found.metrics[0]) for arm in recipe.compare.arms)
    chosen = {each.arm: Chosen(alpha=each.alpha, dropout=each.dropout) for each in bests if each is not None}
    runs = [record for held in records.values() for record in held]
    return Sweep(
        title=recipe.title,
        task=recipe.FAMILY,
        data=runs[0].data,
        recipe=recipe.model_dump(mode="json"),
        grid=grid,
        metrics=list(found.metrics),
        tries=tries,
        chosen=chosen,
        notes=[
            *_cautions(recipe, grid),
            *_at_the_ends(chosen, tries),
            *found.notes,
            *dict.fromkeys(warning for record in runs for warning in record.warnings),
        ],
        environment=environment,
    )


def _try(setting: Setting, records: Sequence[RunRecord], names: Sequence[str]) -> Try:
    metrics = {r.run.seed: r.run.metrics for r in records if r.run.status == "finished"}
    failed = {r.run.seed: r.run.error or "unknown" for r in records if r.run.status == "failed"}
    means = {name: fmean(found[name] for found in metrics.values()) for name in names if not failed}
    return Try(**setting.model_dump(), metrics=metrics, failed=failed, means=means)


def _cautions(recipe: Recipe, grid: Grid) -> list[str]:
    """What makes the comparison that follows too kind to the settings that were chosen here."""
    told = []
    shared = sorted(set(grid.seeds) & set(recipe.compare.seeds))
    if shared:
        told.append(
            f"Seeds of compare.seeds chose the settings ({_listed(shared)}): what was lucky with them here will be so "
            "again. Compare with other seeds."
        )
    if isinstance(recipe.data, FileData) and recipe.data.test is None:
        told.append(
            "The recipe has no test split: a comparison will be judged on the validation split that chose the "
            "settings, and flatters all arms. Name a file in data.test."
        )
    return told


def _at_the_ends(chosen: dict[ArmName, Chosen], tries: Sequence[Try]) -> list[str]:
    """Choices at an end of what was tried, beyond which there may be better ones."""
    told = []
    for arm, setting in chosen.items():
        for name in ("alpha", "dropout"):
            values = sorted({getattr(made, name) for made in tries if made.arm == arm})
            value = getattr(setting, name)
            if len(values) >= TELLING and value in (values[0], values[-1]) and value != 0:
                end = "lowest" if value == values[0] else "highest"
                told.append(
                    f"{arm}: the best {name}, {value:g}, is the {end} tried; there may be better ones beyond it."
                )
    return told


def _chosen_text(recipe: Recipe, chosen: dict[ArmName, Chosen]) -> str:
    """The recipe of the comparison that follows."""
    kept = {arm: setting.model_dump(exclude_none=True) for arm, setting in chosen.items()}
    header = (
        "# Chosen by `rdrop sweep` on the validation split: see compare.chosen below, and sweep.json for all tries.\n\n"
    )
    return header + recipe_text(_changed(recipe, split="test", chosen=kept))


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
