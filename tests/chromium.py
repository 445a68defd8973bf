"""A browser that opens nothing but what it is given."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = Path(os.environ.get("RDROP_CHROMIUM", "/usr/bin/chromium"))
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NEEDS_CHROMIUM = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not CHROMIUM.exists(),
        reason=f"no Chromium at {CHROMIUM}; install it or set RDROP_CHROMIUM to its path",
    ),
]

Mode = Literal["light", "dark"]
OpenFile = Callable[[Path, int, Mode], Page]


@contextmanager
def chromium() -> Iterator[Browser]:
    """For one module at a time: while it is open, Playwright's loop would disturb asyncio in other tests."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def opened_files(browser: Browser) -> Iterator[OpenFile]:
    """Opens pages; afterwards, nothing may have been logged or asked from anywhere but their files."""
    contexts = []
    complaints: list[str] = []
    requests: list[str] = []
    opened: set[str] = set()

    def open_file(file: Path, width: int, mode: Mode) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=mode)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        opened.add(file.as_uri())
        page.goto(file.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert complaints == []
    assert set(requests) == opened


def assert_no_wider_than(page: Page, width: int) -> None:
    """Nothing of a page may stand out to the right, but for what scrolls by itself."""
    assert page.evaluate("document.documentElement.scrollWidth") == width
    hidden = page.evaluate(
        """width => [...document.querySelectorAll('body *')].filter(e =>
            !e.closest('.scroll, pre, svg, .skip, .hidden') && e.getBoundingClientRect().right > width + 0.5
        ).map(e => e.outerHTML.slice(0, 80))""",
        width,
    )
    assert hidden == []
