from __future__ import annotations

from pathlib import Path

import pytest

from command_line import rdrop
from rdrop.toolkit.recipe_file import load_recipe
from rdrop.toolkit.tasks import TASK_NAMES


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("task", TASK_NAMES)
def test_every_task_has_a_recipe_that_loads_and_explains_itself(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert rdrop("init", task) == 0
    assert (
        capsys.readouterr().out == f"{task}.yaml written. Look at its section data:, then: rdrop compare {task}.yaml\n"
    )
    text = Path(f"{task}.yaml").read_text(encoding="utf-8")
    assert text.startswith(f"# A recipe for {task}.")
    assert f"#   rdrop train {task}.yaml " in text
    assert text.count("Expected: ") > 30
    assert load_recipe(f"{task}.yaml") == load_recipe(task)


def test_fields_are_set_and_named_by_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert rdrop("init", "digits", "data.train_size=100", "alpha=2", "--out", "mine.yaml") == 0
    recipe = load_recipe("mine.yaml")
    assert (recipe.data.model_dump()["train_size"], recipe.rdrop.alpha) == (100, 2.0)
    assert "rdrop compare mine.yaml" in capsys.readouterr().out


def test_the_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert rdrop("init", "list") == 0
    assert capsys.readouterr().out.split() == list(TASK_NAMES)


def test_an_existing_file_is_replaced_on_demand_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("digits.yaml").write_text("mine")
    assert rdrop("init", "digits") == 2
    assert "error: digits.yaml exists already; name another file with --out, or replace it with --force" in (
        capsys.readouterr().err
    )
    assert Path("digits.yaml").read_text() == "mine"
    assert rdrop("init", "digits", "--force") == 0
    assert load_recipe("digits.yaml") == load_recipe("digits")
    assert [path.name for path in here.iterdir()] == ["digits.yaml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digit"], "expected one of the tasks digits, "),
        (["digit"], "did you mean digits?"),
        (["digits", "data.train_size=0"], "on the command line, data.train_size=0: data.train_size: got 0"),
        (["digits", "--out", "nowhere/mine.yaml"], "error: there is no folder nowhere for nowhere/mine.yaml; make it"),
        (["digits", "--out", "folder", "--force"], "error: folder is a folder; expected the name of a file"),
    ],
)
def test_a_mistake_is_one_message_and_writes_nothing(
    here: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "folder").mkdir()
    assert rdrop("init", *words) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""
    assert [path.name for path in here.rglob("*")] == ["folder"]
