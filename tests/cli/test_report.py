from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from command_line import rdrop
from rdrop.report.training_page import render_training_report
from rdrop.toolkit.compare import read_summary
from rdrop.toolkit.single_run import read_record
from rdrop.toolkit.summary import (
    Arm,
    Confusion,
    Environment,
    Gallery,
    Interval,
    Listing,
    Metric,
    Picture,
    Run,
    Summary,
    Timing,
)
from trained_digits import train_digits


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two trained models and a comparison."""
    folder = tmp_path_factory.mktemp("runs")
    train_digits(folder / "rdrop")
    train_digits(folder / "plain", arm="plain")
    (folder / "compared").mkdir()
    (folder / "compared" / "summary.json").write_text(_summary().model_dump_json(), encoding="utf-8")
    return folder


def _summary() -> Summary:
    accuracy = Metric(name="accuracy", label="Accuracy", higher_is_better=True, percent=True, explanation="Right.")
    arm = Arm(
        name="plain",
        description="One pass.",
        passes=1,
        alpha=0.0,
        strategy="single",
        optimizer_steps=10,
        step_compute=1.0,
        total_compute=1.0,
        seeds=[0],
        differences={},
        metrics={"accuracy": Interval(mean=0.9, low=None, high=None)},
    )
    return Summary(
        title="A comparison",
        task="image-classification",
        data="Ten images.",
        recipe={},
        metrics=[accuracy],
        arms=[arm],
        runs=[Run(arm="plain", seed=0, status="finished", metrics={"accuracy": 0.9})],
        headline="One arm alone tells nothing.",
        timing=Timing(step_ms={}, step_ratio={}, run_seconds={}, jobs=1),
        environment=Environment(created="", machine="", versions={}, command="rdrop compare"),
    )


def test_each_folder_gets_the_page_of_its_kind_again(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rdrop("report", runs / "rdrop", runs / "compared") == 0
    pages = [runs / "rdrop" / "report.html", runs / "compared" / "report.html"]
    assert capsys.readouterr().out.splitlines() == [str(page) for page in pages]
    assert pages[0].read_text(encoding="utf-8") == render_training_report([read_record(runs / "rdrop")])
    assert "<h1>A comparison</h1>" in pages[1].read_text(encoding="utf-8")
    assert not (runs / "plain" / "report.html").exists()


def test_several_models_get_one_page(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "both.html"
    assert rdrop("report", runs / "rdrop", runs / "plain", "--out", page) == 0
    assert capsys.readouterr().out == f"{page}\n"
    records = [read_record(runs / name) for name in ("rdrop", "plain")]
    assert page.read_text(encoding="utf-8") == render_training_report(records)
    assert "2 trained models side by side" in page.read_text(encoding="utf-8")


def test_mistakes_are_one_message_and_write_nothing(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(runs / "rdrop", broken, ignore=shutil.ignore_patterns("report.html"))
    (broken / "run.json").write_text("{}")
    for words, message in {
        (tmp_path,): f"error: {tmp_path} holds neither summary.json nor run.json; expected the folder of a finished",
        (broken,): f"error: {broken / 'run.json'} cannot be read: ",
        (
            runs / "rdrop",
            runs / "compared",
            "--out",
            tmp_path / "a.html",
        ): "is a comparison, which has a page of its own",
        (runs / "rdrop", "--out", tmp_path / "no" / "a.html"): f"error: {tmp_path / 'no' / 'a.html'}: No such file",
    }.items():
        assert rdrop("report", *words) == 2
        out, err = capsys.readouterr()
        assert message in err
        assert (out, err.count("\n")) == ("", 1)
    assert not list(tmp_path.rglob("*.html"))


@pytest.fixture
def private(runs: Path, tmp_path: Path) -> Path:
    """A comparison whose run shows an image, a text and a confusion matrix."""
    summary = read_summary(runs / "compared")
    exhibits = [
        Confusion(title="Confusions", labels=["no", "yes"], counts=[[3, 1], [0, 4]]),
        Gallery(title="Worst", reading="By loss.", pictures=[Picture(image=b"aGVsbG8=", caption=["cat.png"])]),
        Listing(title="Texts", reading="By loss.", columns=["text"], rows=[["a private letter"]]),
    ]
    run = summary.runs[0].model_copy(update={"exhibits": exhibits})
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "summary.json").write_text(
        summary.model_copy(update={"runs": [run]}).model_dump_json(), encoding="utf-8"
    )
    return tmp_path / "private"


def test_what_is_shared_shows_nothing_of_the_data(
    private: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rdrop("report", private, "--share", tmp_path / "shown" / "here") == 0
    page = tmp_path / "shown" / "here" / "report.html"
    assert capsys.readouterr().out == f"{page}\n"
    for text in (page.read_text(encoding="utf-8"), (page.parent / "summary.json").read_text(encoding="utf-8")):
        assert "Confusions" in text
        assert not any(part in text for part in ("cat.png", "aGVsbG8", "a private letter"))
    assert "a private letter" in (private / "summary.json").read_text(encoding="utf-8")
    assert read_summary(page.parent).arms == read_summary(private).arms


def test_a_trained_model_is_shared_without_its_pictures(runs: Path, tmp_path: Path) -> None:
    record = read_record(runs / "rdrop")
    confusions, worst = record.run.exhibits
    assert isinstance(confusions, Confusion)
    assert isinstance(worst, Gallery)
    assert rdrop("report", runs / "rdrop", "--share", tmp_path) == 0
    run = record.run.model_copy(update={"exhibits": [confusions]})
    shared = record.model_copy(update={"run": run})
    assert read_record(tmp_path) == shared
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_training_report([shared])


def test_only_a_copy_of_a_single_run_is_shared(
    runs: Path, private: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rdrop("report", private, "--share", private) == 2
    assert "is the folder of the run itself, which keeps its images and texts" in capsys.readouterr().err
    assert rdrop("report", private, runs / "rdrop", "--share", tmp_path / "both") == 2
    assert "--share takes a single run and no --out" in capsys.readouterr().err
    assert not (tmp_path / "both").exists()
