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


def test_the_training_file_is_looked_at_and_each_guess_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{number}\tThis film is number {number}.\t{number / 4}" for number in range(8)]
    for name in ("train.tsv", "dev.tsv"):
        Path(name).write_text("\n".join(["id\tsentence\tscore", *rows]) + "\n")
    Path("test.tsv").write_text("id\tsentence\n1\tA film.\n")
    assert rdrop("init", "text-classification", "data.train=train.tsv") == 0
    assert capsys.readouterr().out.splitlines()[:-1] == [
        "data.text: sentence (the only column with long texts)",
        "data.label: score (a usual name of answers)",
        "data.answer: regression (its numbers have fractions)",
        "data.validation: dev.tsv (it lies beside the training split)",
        "data.test: test.tsv is not taken, since it has no column score",
    ]
    guessed = ["train=train.tsv", "text=sentence", "label=score", "answer=regression", "validation=dev.tsv"]
    assert load_recipe("text-classification.yaml") == load_recipe("text-classification", guessed)


def test_a_guess_never_goes_before_what_was_written(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["sentence,note,class", *(f"This is a film.,This is a note.,{number % 2}.5" for number in range(6))]
    for name in ("train.csv", "dev.csv"):
        Path(name).write_text("\n".join(lines) + "\n")
    words = ["train=train.csv", "data.text=note", "label=class", "answer=classification", "validation=null"]
    assert rdrop("init", "text-classification", *words) == 0
    assert capsys.readouterr().out.startswith("text-classification.yaml written.")
    assert load_recipe("text-classification.yaml") == load_recipe("text-classification", words)


def test_what_cannot_be_guessed_is_said_with_the_columns_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    Path("train.csv").write_text("a,b\n1,2\n3,\x1b[31m4\n")
    assert rdrop("init", "translation", "data.train=train.csv") == 0
    assert capsys.readouterr().out.splitlines()[:-1] == [
        "data.source: none of the columns a, b looks like it; set data.source to one of them",
        "data.target: none of the columns a, b looks like it; set data.target to one of them",
    ]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.train=absent.csv", "data.train: there is no "),
        ("data.train=../train.csv", "data.train: the path '../train.csv' leads out of the data folder"),
        ("data.train=zip.csv", "zip.csv is a zip archive or a spreadsheet"),
    ],
)
def test_a_training_file_that_cannot_be_read_is_told_and_the_recipe_written(
    word: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("zip.csv").write_bytes(b"PK\x03\x04")
    assert rdrop("init", "text-classification", word) == 0
    told, written = capsys.readouterr().out.splitlines()
    assert message in told
    assert written.startswith("text-classification.yaml written.")
    assert load_recipe("text-classification.yaml") == load_recipe("text-classification", [word])
