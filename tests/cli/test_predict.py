from __future__ import annotations

import contextlib
import csv
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command_line import rdrop
from rdrop.cli import predict as command
from rdrop.toolkit.tasks.digits import DigitsTask
from trained_digits import train_digits, write_images


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    train_digits(out)
    return out


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_images(tmp_path_factory.mktemp("images"), 5)


@pytest.fixture
def answers(trained: Path, images: list[Path], capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert rdrop("predict", trained, *images, "--json") == 0
    out, err = capfd.readouterr()
    assert err == ""
    return [json.loads(line) for line in out.splitlines()]


def say(monkeypatch: pytest.MonkeyPatch, *answers: dict[str, Any]) -> None:
    """Lets the task answer so."""

    def predict(*_: Any, **__: Any) -> Iterator[dict[str, Any]]:
        yield from answers

    monkeypatch.setattr(DigitsTask, "predict", predict)


def test_a_program_gets_a_line_for_each_row(answers: list[dict[str, Any]]) -> None:
    assert len(answers) == 5
    assert all(answer["label"] in answer["probabilities"] for answer in answers)


def test_the_table_has_a_row_for_each_row(
    trained: Path, images: list[Path], answers: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert rdrop("predict", trained, *images) == 0
    out, err = capfd.readouterr()
    assert err == ""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]
    assert [row[-2:] for row in rows] == [[answer["label"], f"{answer['confidence']:.4g}"] for answer in answers]
    assert "probabilities" not in out


def test_samples_add_their_spread_and_a_limit_the_abstentions(
    trained: Path, images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--samples", "4", "--min-confidence", "1", "--seed", "1"]
    assert rdrop("predict", trained, *images, *words, "--json") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(answer["spread"] > 0 and answer["abstained"] and answer["label"] is None for answer in found)
    assert rdrop("predict", trained, *images, *words) == 0
    out = capsys.readouterr().out
    assert "spread" in out
    assert out.count(" yes ") == 5


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_all_answers_go_to_a_file(
    trained: Path,
    images: list[Path],
    answers: list[dict[str, Any]],
    tmp_path: Path,
    suffix: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / f"answers{suffix}"
    assert rdrop("predict", trained, *images, "--out", out) == 0
    assert capfd.readouterr().out == f"5 answers in {out}\n"
    with out.open(encoding="utf-8", newline="") as file:
        if suffix == ".jsonl":
            assert [json.loads(line) for line in file] == answers
        else:
            rows = list(csv.DictReader(file))
            assert [row["label"] for row in rows] == [answer["label"] for answer in answers]
            assert [float(row["confidence"]) for row in rows] == [answer["confidence"] for answer in answers]
            assert json.loads(rows[0]["probabilities"]) == answers[0]["probabilities"]


def test_a_long_table_is_cut_and_says_so(
    trained: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "SHOWN", 2)
    assert rdrop("predict", trained, *images) == 0
    out, err = capsys.readouterr()
    assert sum(line.startswith("│") for line in out.splitlines()) == 2
    assert err == "... and 3 more; --json or --out gives all of them\n"


def test_every_kind_of_value_has_its_cell(
    trained: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = {"text": "one\x1b[31m", "labels": ["a", "b"], "tokens": 7, "shares": {"a": 1.0}, "each": [0.5]}
    say(monkeypatch, first, {"text": None, "labels": [], "value": 0.123456})
    assert rdrop("predict", trained, *images) == 0
    out = capsys.readouterr().out
    header, *rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    heading = next(line for line in out.splitlines() if "text" in line)
    assert [word.strip() for word in heading.strip("┃").split("┃")] == ["text", "labels", "tokens", "value"]
    assert [header, *rows] == [
        ["one\N{REPLACEMENT CHARACTER}[31m", "a, b", "7", "-"],
        ["-", "-", "-", "0.1235"],
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.png"], "error: there is no missing.png; expected a file or folder to predict on\n"),
        ([".", "--out", "answers.txt"], "error: got --out answers.txt, expected a name that ends in .jsonl or .csv\n"),
        ([".", "--out", "nowhere/a.csv"], "error: got --out nowhere/a.csv, but there is no folder nowhere; make it"),
        ([".", "--out", "a.csv", "--json"], "error: got --json and --out, expected one of them"),
        (["."], "error: .: Is a directory\n"),
        (["empty.png"], "error: empty.png: it is not an image of one of the formats"),
    ],
)
def test_a_mistake_is_one_message(
    trained: Path,
    tmp_path: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.png").touch()
    assert rdrop("predict", trained, *words) == 2
    out, err = capfd.readouterr()
    assert message in err
    assert (out, err.count("\n")) == ("", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["empty.png"]


@pytest.mark.parametrize("words", [[], ["--samples", "-1"], ["--min-confidence", "2"]])
def test_an_impossible_option_is_told(
    trained: Path, images: list[Path], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert rdrop("predict", trained, *(images if words else []), *words) == 2
    assert (words[0] if words else "FILES...") in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_gets_no_traceback(
    trained: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    gone = os.fdopen(writer, "w", buffering=1)
    monkeypatch.setattr(sys, "stdout", gone)
    assert rdrop("predict", trained, *images, "--json") == 1
    monkeypatch.undo()
    with contextlib.suppress(BrokenPipeError):
        gone.close()
    assert capfd.readouterr() == ("", "")
