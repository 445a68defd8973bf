from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from pictures import class_folders, listed
from rdrop.cli.recipe_words import recipe_and_changes
from rdrop.toolkit.images.models import ImageNetwork
from rdrop.toolkit.images.recipe import ImageRecipe
from rdrop.toolkit.recipe_file import built_in_recipes, load_recipe
from rdrop.toolkit.train import survey, train_run

PAGE = Path(__file__).parents[2] / "docs" / "plant-project.md"
RECIPES = ("plant-stages", "plant-stages-pair")
WRITTEN = {"plants.yaml": "plant-stages", "pair.yaml": "plant-stages-pair"}


def commands() -> list[list[str]]:
    """The words of every command on the page."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def load(name: str, *changes: str) -> ImageRecipe:
    recipe = load_recipe(name, changes)
    assert isinstance(recipe, ImageRecipe)
    return recipe


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_are_those_of_the_project(name: str) -> None:
    recipe = load(name)
    training = recipe.training
    assert (recipe.data.train, recipe.data.image, recipe.data.label) == ("labels.csv", "image", "label")
    assert recipe.data.validation_fraction == 0.1
    assert (recipe.model.image_size, recipe.model.crop_mode, recipe.model.crop_pct) == (256, "squash", 1.0)
    assert (training.batch_size, training.learning_rate, training.weight_decay) == (8, 3e-4, 0.0)
    assert (training.lr_scheduler, training.warmup_ratio) == ("constant", 0.0)
    assert recipe.rdrop.alpha == 0.6
    names = [network for network in (recipe.model.name, recipe.model.second) if network is not None]
    assert names == {"plant-stages": ["res2net50d"], "plant-stages-pair": ["seresnet50d", "seresnext50e_32x4d"]}[name]
    for network in names:
        form = ImageNetwork(network, "auto", pretrained=False, dropout=None, drop_path=None).input_format(
            image_size=256, crop_mode="squash", crop_pct=1.0
        )
        assert form.size == (256, 256)


def test_the_single_network_has_dropout_without_which_r_drop_does_nothing() -> None:
    assert load("plant-stages").model.dropout


def test_every_command_of_the_page_names_what_there_is() -> None:
    found = commands()
    assert {words[1] for words in found} >= {"recipes", "train", "evaluate", "predict", "export", "compare"}
    for words in found:
        assert words[0] == "rdrop"
        if words[1] == "recipes":
            assert words[2] in built_in_recipes()
        if words[1] in ("train", "compare"):
            given = words[2 : next((i for i, word in enumerate(words) if word.startswith("--")), None)]
            name, changes = recipe_and_changes(given)
            assert name is not None
            load_recipe(WRITTEN.get(name, name), changes)


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_train_on_a_folder_of_photos(tmp_path: Path, name: str) -> None:
    listed(tmp_path / "labels.csv", class_folders(tmp_path / "photos", 10))
    small: list[str] = [f"data.folder={tmp_path}", "model.name=test_resnet", "image_size=32", "steps=4", "device=cpu"]
    if name == "plant-stages-pair":
        small.append("second=test_efficientnet")
    recipe = load(name, *small)
    assert survey(recipe).nominal_steps == 4
    run: Any = train_run(recipe, "rdrop", 0, 4, lambda _: None).run
    assert (run.status, run.error) == ("finished", None)
    assert sum(b.count for b in run.reliability) == 4  # a tenth of 40, one of each stage
    assert ("accuracy_second" in run.metrics) == (name == "plant-stages-pair")
