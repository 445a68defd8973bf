from __future__ import annotations

import sys
from pathlib import Path

import pytest

from command_line import rdrop
from trained_digits import train_digits


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    train_digits(out)
    return out


def test_a_hugging_face_folder_is_written(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model"
    assert rdrop("export", trained, "--out", out) == 0
    assert capfd.readouterr() == (f"{out}: README.md, model.safetensors, recipe.yaml\n", "")
    assert (out / "README.md").read_text(encoding="utf-8").startswith("---\ntags:\n- r-drop\n")


def test_an_onnx_file_is_written_without_the_exporters_commentary(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    assert rdrop("export", trained, "--out", out, "--format", "onnx") == 0
    told, err = capfd.readouterr()
    assert told.startswith(f"{out / 'model.onnx'}: inputs pixel_values; the largest difference to torch is ")
    assert (told.count("\n"), err) == (1, "")
    assert (out / "model.onnx").exists()


def test_mistakes_are_one_message_and_write_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    existing = tmp_path / "existing"
    existing.mkdir()
    for words, message in {
        (trained, "--out", tmp_path / "a", "--format", "tf"): "error: got --format tf, expected huggingface or onnx\n",
        (trained, "--out", existing): f"error: {existing} exists already; name a new folder with --out\n",
        (existing, "--out", tmp_path / "a"): "existing holds no finished run",
        (
            trained,
            "--out",
            tmp_path / "a",
            "--format",
            "onnx",
        ): "error: onnxruntime is not installed; export to ONNX needs",
    }.items():
        assert rdrop("export", *words) == 2
        out, err = capfd.readouterr()
        assert message in err
        assert (out, err.count("\n")) == ("", 1)
    assert [path.name for path in tmp_path.rglob("*")] == ["existing"]
