from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOUR = Path(__file__).parents[1] / "docs" / "tour.md"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_command_of_the_tour_runs_and_leaves_what_it_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = BLOCK.findall(TOUR.read_text(encoding="utf-8"))
    assert [kind for kind, _ in blocks] == ["python", *["bash"] * (len(blocks) - 1)]
    assert len(blocks) == 8
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for kind, text in blocks:
        words = [sys.executable, "-c", text] if kind == "python" else ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        assert "Warning" not in done.stderr, done.stderr
    summary = json.loads((tmp_path / "answer" / "summary.json").read_text(encoding="utf-8"))
    assert [arm["seeds"] for arm in summary["arms"]] == [[0, 1]] * 3
    assert (tmp_path / "answer" / "report.html").stat().st_size > 50_000
    record = json.loads((tmp_path / "model" / "run.json").read_text(encoding="utf-8"))
    assert record["run"]["metrics"]["accuracy"] > 0.2
    answers = (tmp_path / "answers.csv").read_text(encoding="utf-8").splitlines()
    assert len(answers) == 1 + len(list((tmp_path / "photos" / "test" / "3").iterdir()))
    assert {"README.md", "recipe.yaml"} <= {path.name for path in (tmp_path / "published").iterdir()}
