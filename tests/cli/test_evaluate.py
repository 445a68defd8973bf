from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import rdrop
from rdrop.toolkit.single_run import TrainingRecord, read_record
from rdrop.toolkit.task import Splits
from rdrop.toolkit.tasks.digits import DigitsTask
from trained_digits import train_digits


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    train_digits(out)
    return out


@pytest.fixture
def record(trained: Path) -> TrainingRecord:
    return read_record(trained)


def test_the_table_has_the_metrics_of_the_record(
    trained: Path, record: TrainingRecord, capfd: pytest.CaptureFixture[str]
) -> None:
    assert rdrop("evaluate", trained) == 0
    out, err = capfd.readouterr()
    assert "test split" in out
    for metric in record.metrics:
        assert metric.label in out
    assert f"{100 * record.run.metrics['accuracy']:.2f} %" in out
    assert err == f"{record.data}\n"


def test_a_program_gets_every_number(trained: Path, record: TrainingRecord, capsys: pytest.CaptureFixture[str]) -> None:
    assert rdrop("evaluate", trained, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"split": "test", "data": record.data, "notes": [], "metrics": record.run.metrics}


def test_other_data_are_named_by_fields_of_the_recipe(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rdrop("evaluate", trained, "data.train_size=1000", "data.split_seed=1", "--json") == 0
    assert "the other 797 as the test split" in json.loads(capsys.readouterr().out)["data"]


def test_what_is_to_be_known_of_the_data_is_told(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = DigitsTask.load

    def noted(self: DigitsTask, seed: int) -> Splits:
        splits = load(self, seed)
        return Splits(
            splits.train, None, splits.test, splits.description, ("2 rows: \x1b[31mred", "2 rows: \x1b[31mred")
        )

    monkeypatch.setattr(DigitsTask, "load", noted)
    assert rdrop("evaluate", trained) == 0
    assert capsys.readouterr().err.count("note: 2 rows: \N{REPLACEMENT CHARACTER}[31mred\n") == 1
    assert rdrop("evaluate", trained, "--json") == 0
    assert json.loads(capsys.readouterr().out)["notes"] == ["2 rows: \x1b[31mred"] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "train"], "error: got --split train, expected test or validation\n"),
        (["--split", "validation"], "got validation, but the digits have a test split alone; write test"),
        (["data.tset=other.csv"], "on the command line, data.tset=other.csv: data.tset is not a key of a recipe"),
    ],
)
def test_a_mistake_is_one_message(
    trained: Path, words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert rdrop("evaluate", trained, *words) == 2
    out, err = capfd.readouterr()
    assert message in err
    assert (out, err.count("\n")) == ("", 1)


def test_a_folder_without_a_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rdrop("evaluate", tmp_path) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} holds no finished run (there is no run.json)")
