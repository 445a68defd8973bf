from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from rdrop.errors import UserError
from rdrop.toolkit.arm_names import ArmName
from rdrop.toolkit.compare import compare
from rdrop.toolkit.step_plan import StepPlan
from rdrop.toolkit.summary import Run, Summary
from rdrop.toolkit.tasks.digits import DigitsRecipe

RECIPE = DigitsRecipe.model_validate(
    {
        "data": {"train_size": 96},
        "training": {"epochs": 12, "eval_every_epochs": 6},
        "compare": {"arms": ["plain", "rdrop"], "seeds": [0, 1], "samples": 2},
    }
)
UNITS = {("plain", 0), ("rdrop", 0), ("plain", 1), ("rdrop", 1)}

PROGRAM = """
import sys
from pathlib import Path
from rdrop.toolkit.compare import compare
from rdrop.toolkit.tasks.digits import DigitsRecipe

class Silent:
    def read(self): pass
    def planned(self, plans): pass
    def start(self, *_): pass
    def advance(self, _): pass
    def finished(self, _): pass
    def close(self): pass

recipe = DigitsRecipe.model_validate_json(sys.argv[1])
compare(recipe, Path(sys.argv[2]), jobs=1, resume=False, command="", progress=Silent())
"""


class Watched:
    """Progress that is written down."""

    def __init__(self) -> None:
        self.started: list[tuple[int, int, int]] = []
        self.steps = 0
        self.runs: list[Run] = []
        self.closed = False
        self.reading = False
        self.plans: dict[str, StepPlan] = {}

    def read(self) -> None:
        self.reading = True

    def planned(self, plans: Mapping[ArmName, StepPlan]) -> None:
        self.plans |= plans

    def start(self, total_runs: int, total_steps: int, finished_runs: int) -> None:
        self.started.append((total_runs, total_steps, finished_runs))

    def advance(self, steps: int) -> None:
        self.steps += steps

    def finished(self, run: Run) -> None:
        self.runs.append(run)

    def close(self) -> None:
        self.closed = True


class NeverReads(Watched):
    """Stands for data that turn out to be bad."""

    def read(self) -> None:
        raise UserError("train.csv:3: no such image")


def test_a_folder_is_free_again_after_data_that_were_bad(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match=r"train\.csv:3"):
        compare(RECIPE, out, jobs=1, resume=False, command="", progress=NeverReads())
    assert not (out / "recipe.yaml").exists()


class KillsWorkers(Watched):
    """Ends every worker as soon as one run is done, as a system without memory does."""

    def finished(self, run: Run) -> None:
        super().finished(run)
        for process in multiprocessing.active_children():
            process.kill()


def lasting(summary: Summary) -> str:
    """What must not depend on the clock or on interruptions."""
    return summary.model_dump_json(exclude={"timing", "environment"})


def wait_until(true: object, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def descendants(pid: int) -> list[int]:
    words = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [found for word in words for found in (int(word), *descendants(int(word)))]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Summary, Watched, Path]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    progress = Watched()
    summary = compare(RECIPE, out, jobs=2, resume=False, command="rdrop compare", progress=progress)
    return summary, progress, out


def test_every_run_is_made_told_and_written(undisturbed: tuple[Summary, Watched, Path]) -> None:
    summary, progress, out = undisturbed
    assert {(run.arm, run.seed) for run in progress.runs} == UNITS
    assert progress.started == [(4, 4 * 36, 0)]
    assert {arm: (plan.strategy, plan.compute) for arm, plan in progress.plans.items()} == {
        arm.name: (arm.strategy, arm.step_compute) for arm in summary.arms
    }
    assert progress.closed
    assert progress.steps <= 4 * 36
    assert [(run.arm, run.seed, run.status) for run in summary.runs] == [
        ("plain", 0, "finished"),
        ("plain", 1, "finished"),
        ("rdrop", 0, "finished"),
        ("rdrop", 1, "finished"),
    ]
    assert Summary.model_validate_json((out / "summary.json").read_text(encoding="utf-8")) == summary
    assert sorted(path.name for path in (out / "runs").iterdir()) == [
        "plain-seed0.json",
        "plain-seed1.json",
        "rdrop-seed0.json",
        "rdrop-seed1.json",
    ]
    assert (summary.environment.command, summary.timing.jobs) == ("rdrop compare", 2)
    assert summary.timing.step_ratio["rdrop"].mean > 0
    assert "torch" in summary.environment.versions


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_killed_and_resumed_comes_out_the_same(undisturbed: tuple[Summary, Watched, Path], tmp_path: Path) -> None:
    out, records = tmp_path / "out", tmp_path / "out" / "runs"
    command = [sys.executable, "-c", PROGRAM, RECIPE.model_dump_json(), str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_until(lambda: list(records.glob("*.json")) or process.poll() is not None)
    workers = descendants(process.pid)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(map(running, workers)), seconds=10)
    done = {path.name: path.stat().st_mtime_ns for path in records.glob("*.json")}
    assert 1 <= len(done) < 4
    (records / ".rdrop-seed1.json.99.tmp").write_text('{"run": {"arm": "rd', encoding="utf-8")

    dying = KillsWorkers()
    with pytest.raises(UserError, match="a worker process died"):
        compare(RECIPE, out, jobs=1, resume=True, command="", progress=dying)
    assert dying.closed
    assert dying.started == [(4, (4 - len(done)) * 36, len(done))]

    progress = Watched()
    summary = compare(RECIPE, out, jobs=1, resume=True, command="", progress=progress)
    assert progress.started[0][2] == len(done) + len(dying.runs)
    assert len(progress.runs) == 4 - len(done) - len(dying.runs)
    for name, written in done.items():
        assert (records / name).stat().st_mtime_ns == written
    assert lasting(summary) == lasting(undisturbed[0])
    assert not list(records.glob(".*"))


def test_a_complete_comparison_is_only_summed_up_again(
    undisturbed: tuple[Summary, Watched, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    summary, _, out = undisturbed
    progress = Watched()
    again = compare(RECIPE, out, jobs=2, resume=True, command="", progress=progress)
    assert progress.started == [(4, 0, 4)]
    assert progress.runs == []
    assert lasting(again) == lasting(summary)
    assert capfd.readouterr() == ("", "")
