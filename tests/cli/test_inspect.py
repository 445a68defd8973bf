from __future__ import annotations

import json
from pathlib import Path

import pytest

from rdrop.cli import main

MODULE = """
from torch import nn, ones

def build():
    return nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.1), nn.Linear(32, 2)), ones(4, 32)
"""


def run(*words: str) -> int:
    """Exit code of the command in this process."""
    with pytest.raises(SystemExit) as caught:
        main(["inspect", *words])
    assert caught.value.code is None or isinstance(caught.value.code, int)
    return caught.value.code or 0


@pytest.fixture
def _own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_model_of_this_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_own_model")
def test_layers_cost_and_choice_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("own_model_of_this_test:build", "--dropout", "0.3", "--passes", "4", "--measure") == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in (
        "Sequential, 1,122 parameters",
        "1 \N{BOX DRAWINGS LIGHT VERTICAL} dropout \N{BOX DRAWINGS LIGHT VERTICAL} 0.3",
        "concat \N{BOX DRAWINGS LIGHT VERTICAL} 4.00\N{MULTIPLICATION SIGN}",
        "chosen by auto",
        "auto chooses shared: shared takes",
    ):
        assert part in shown, part


@pytest.mark.usefixtures("_own_model")
def test_json_is_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("own_model_of_this_test:build", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["strategy"], found["layers"][0]["pattern"], found["warnings"]) == ("shared", "1", [])


def test_a_model_of_timm_is_told_about_its_rates(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("test_vit", "--input", "3,160,160", "--batch-size", "1") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "blocks.{0..5}.attn.proj_drop" in shown
    assert "R-Drop has no effect on VisionTransformer" in shown
    assert "timm builds models with drop_rate=0; try --dropout 0.1 here" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["test_vit", "--input", "3,x"], "error: got --input 3,x, expected positive whole numbers"),
        (["test_vit", "--input", "0"], "error: got --input 0, expected positive whole numbers"),
        (["test_vit", "--input", "3,8"], "error: VisionTransformer cannot be run on [2, 3, 8]: "),
        (["resnet81"], "error: timm has no model 'resnet81'; did you mean resnet"),
        (["test_vit", "--dropout", "2"], "error: --dropout 2.0: "),
        (["test_vit", "--passes", "1"], "Invalid value for '--passes'"),
    ],
)
def test_mistakes_are_messages(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert run(*words) == 2
    shown = capsys.readouterr()
    assert (message in shown.err, shown.out) == (True, "")
