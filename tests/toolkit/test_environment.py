from __future__ import annotations

import platform
from pathlib import Path

import pytest

from rdrop.toolkit import environment


def test_versions_are_those_that_are_installed() -> None:
    found = environment.versions()
    assert found["python"] == platform.python_version()
    assert {"rdrop", "torch", "transformers"} <= found.keys()


def test_packages_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package"))
    assert list(environment.versions()) == ["python", "torch"]


@pytest.mark.parametrize(
    ("quota", "cores"), [("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1), ("max 100000", 8), ("", 8)]
)
def test_cores_are_cut_by_the_quota_of_a_container(monkeypatch: pytest.MonkeyPatch, quota: str, cores: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(environment, "_first_line", lambda _: quota)
    assert environment.usable_cores() == cores


def test_a_file_that_cannot_be_read_tells_nothing(tmp_path: Path) -> None:
    assert environment._first_line(str(tmp_path / "missing")) == ""
    (tmp_path / "two").write_text("a b\nc")
    assert environment._first_line(str(tmp_path / "two")) == "a b"


def test_the_machine_is_one_line_with_processor_cores_and_memory() -> None:
    line = environment.machine()
    assert "\n" not in line
    assert environment.processor() in line
    assert "core" in line
    assert "GiB memory" in line or environment.memory_gib() is None


def test_a_bug_report_names_the_kernels() -> None:
    found = environment.description()
    assert found.keys() >= {"system", "cores", "accelerators", "kernel reference", "kernel fused"}
    assert all(text and "\n" not in text for text in found.values())
