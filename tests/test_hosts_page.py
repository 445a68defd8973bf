"""The page of hosts against features: it says what the marks of the tests say."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from scripts_of_the_docs import ROOT, script


@pytest.fixture(scope="module")
def hosts() -> ModuleType:
    return script("hosts")


def test_the_page_is_what_the_marks_say(hosts: ModuleType) -> None:
    written = (ROOT / "docs" / "hosts" / "index.md").read_text(encoding="utf-8")
    assert written == hosts.page(), "run python scripts/hosts.py"


def test_every_host_of_the_contract_and_every_page_has_a_column(hosts: ModuleType) -> None:
    pages = {path.stem for path in (ROOT / "docs" / "hosts").glob("*.md")} - {"index"}
    assert set(hosts.PAGES.values()) == pages
    assert set(hosts.contract_hosts()) <= set(hosts.PAGES)
    found = list(hosts.shown())
    assert {each.host for each in found} == set(hosts.PAGES)
    assert {each.feature for each in found} == set(hosts.FEATURES)


def test_a_mark_that_the_page_does_not_know_is_refused(
    hosts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_it.py").write_text('@pytest.mark.shows("torch", "magic")\ndef test_it(): ...\n')
    monkeypatch.setattr(hosts, "TESTS", tmp_path)
    with pytest.raises(ValueError, match="test_it shows 'magic' on 'torch', which the page lacks"):
        list(hosts.shown())


def test_what_is_refused_has_a_mark_of_its_own(
    hosts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = '@pytest.mark.shows(("torch", "JAX"), "pair")\n@pytest.mark.shows("TRL", "pair", refused=True)\n'
    (tmp_path / "test_it.py").write_text(f"{marks}def test_it(): ...\n")
    monkeypatch.setattr(hosts, "TESTS", tmp_path)
    monkeypatch.setattr(hosts, "ROOT", tmp_path)
    row = next(line for line in hosts.page().splitlines() if line.startswith("| two different networks"))
    cells = dict(zip(hosts.PAGES, row.split("|")[2:-1], strict=True))
    assert {host: cell.strip() for host, cell in cells.items() if cell.strip()} == {
        "torch": "&#10003;",
        "JAX": "&#10003;",
        "TRL": "&#10007;",
    }
