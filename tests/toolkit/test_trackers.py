"""Trackers, asked for their own records after a comparison in a process of its own: two runs, one worker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import COMMAND
from rdrop.errors import UserError
from rdrop.toolkit.trackers import require_trackers

PARTS = ["loss", "task_loss", "divergence", "alpha", "agreement"]
NAMES = [f"Digits with 300 labels: {arm}, dropout 0.3, seed 5" for arm in ("plain, alpha 0", "rdrop, alpha 2")]
WORDS = ["compare", "digits", "epochs=1", "alpha=2", "compare.samples=2"]
OPTIONS = ["--arms", "plain,rdrop", "--seeds", "5,", "--jobs", "1", "--out", "answer"]
# Asked by the trackers' own libraries, away from the warnings that they have for us.
MLFLOW = """
import mlflow
runs = mlflow.MlflowClient().search_runs([mlflow.get_experiment_by_name("rdrop").experiment_id])
print(*sorted(f"{run.info.run_name}|{run.info.status}|{sorted(run.data.metrics)}" for run in runs), sep="\\n")
"""
TRACKIO = """
import trackio
from trackio.sqlite_storage import SQLiteStorage
for run in trackio.Api().runs("rdrop"):
    logs = SQLiteStorage.get_logs("rdrop", run.name)
    print(run.name, sorted({name for log in logs for name in log}), sep="|")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tracked")
    trackers = "training.report_to=[tensorboard,wandb,mlflow,trackio]"
    run(place, *COMMAND, *WORDS, trackers, *OPTIONS)
    return place


def run(folder: Path, *command: str) -> list[str]:
    """The lines that a command prints in that folder."""
    environment = {
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": (folder / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "TRACKIO_DIR": str(folder / "trackio"),
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_tensorboard_has_a_folder_for_each_run(folder: Path) -> None:
    events = sorted((folder / "answer" / "tensorboard").rglob("events.*"))
    assert [file.parent.name for file in events] == ["plain-seed5", "rdrop-seed5"]
    plain, rdrop = (file.read_bytes() for file in events)
    assert all(f"train/{part}".encode() in rdrop for part in PARTS)
    assert b"train/loss" in plain
    assert b"train/agreement" not in plain


def test_wandb_has_two_runs_with_the_parts_of_the_loss(folder: Path) -> None:
    logs = [file.read_bytes() for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]
    assert len(logs) == 2
    for log, name in zip(logs, NAMES, strict=True):  # the folders are named by time
        assert name.encode() in log
    assert all(f"train/{part}".encode() in logs[1] for part in PARTS)


def test_mlflow_has_two_finished_runs_with_the_parts_of_the_loss(folder: Path) -> None:
    found = [line.split("|") for line in run(folder, sys.executable, "-c", MLFLOW)]
    assert [(name, status) for name, status, _ in found] == [(name, "FINISHED") for name in NAMES]
    assert all(f"'{part}'" in found[1][2] for part in PARTS)


def test_trackio_has_two_runs_with_the_parts_of_the_loss(folder: Path) -> None:
    found = dict(line.split("|") for line in run(folder, sys.executable, "-c", TRACKIO))
    assert sorted(found) == NAMES
    assert all(f"'train/{part}'" in found[NAMES[1]] for part in PARTS)


def test_a_tracker_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flatland").mkdir()  # a folder of that name is no package
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="report_to names flatland, which Python does not find; pip install flatland"):
        require_trackers(["tensorboard", "flatland"])
