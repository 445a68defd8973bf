"""A small run of the built-in task, trained within a second or two."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from rdrop.toolkit.arm_names import ArmName
from rdrop.toolkit.single_run import TrainingRecord, train
from rdrop.toolkit.step_plan import StepPlan
from rdrop.toolkit.tasks.digits import DigitsRecipe

SEED = 3


class Silent:
    """Progress that nobody watches."""

    def read(self) -> None: ...

    def planned(self, plans: Mapping[ArmName, StepPlan]) -> None: ...

    def start(self, total_steps: int, made_steps: int) -> None: ...

    def advance(self, step: int) -> None: ...

    def logged(self, step: int, logs: dict[str, float]) -> None: ...

    def judge(self) -> None: ...

    def close(self) -> None: ...


def small_recipe(**changes: Mapping[str, Any]) -> DigitsRecipe:
    """Six epochs on 96 images; `changes` are fields by section."""
    sections: dict[str, dict[str, Any]] = {
        "data": {"train_size": 96},
        "training": {"epochs": 6, "eval_every_epochs": 3},
        "compare": {"samples": 2},
    }
    for name, fields in changes.items():
        sections[name] = {**sections.get(name, {}), **fields}
    return DigitsRecipe.model_validate(sections)


def train_digits(out: Path, recipe: DigitsRecipe | None = None, arm: ArmName = "rdrop") -> TrainingRecord:
    """A finished run in a folder."""
    record = train(
        recipe or small_recipe(),
        out,
        arm=arm,
        seed=SEED,
        resume=False,
        command="rdrop train digits 'title=`x`'",
        progress=Silent(),
    )
    assert record is not None
    return record


def write_images(folder: Path, count: int) -> list[Path]:
    """The first images of the data as files, ordered by name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:03}.png" for index in range(count)]
    for path, image in zip(paths, load_digits().images, strict=False):
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(path)
    return paths
