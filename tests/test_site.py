"""The documentation as it is read: from a folder, in a browser, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chromium import NEEDS_CHROMIUM, chromium
from scripts_of_the_docs import ROOT

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=True)
    return folder


def test_the_search_finds_pages_and_asks_nothing_of_a_network(site: Path) -> None:
    with chromium() as browser:
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "hosts" / "peft.html").as_uri())
        page.get_by_placeholder("Search").fill("sentence-transformers")
        titles = page.locator(".md-search-result__item h1")
        titles.first.wait_for(timeout=20_000)
        assert "sentence-transformers" in titles.all_inner_texts()
        assert all(url.startswith(("file:", "data:", "about:", "blob:")) for url in asked), asked
