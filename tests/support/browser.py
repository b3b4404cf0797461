"""A real browser for tests: Debian's chromium, driven by Playwright.

Without one a test is skipped with the command that installs it; where CI=true that is a failure, so that the checks
in a browser cannot go missing unseen.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# No sandbox: CI runs as root. The rest keeps the browser from calling home, so that every request seen is the page's.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
INSTALL_BROWSER = "apt-get install chromium (or set CHROMIUM to the path of a Chromium or Chrome)"
INSTALL_PLAYWRIGHT = 'pip install ".[test]"'


def missing(what: str, install: str) -> NoReturn:
    """Skip the test and say how to get what it needs; fail instead where CI=true."""
    message = f"{what} is missing; install it with: {install}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def chromium_path() -> str:
    """The browser's binary: CHROMIUM, or the one on the path."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not found or not shutil.which(found):
        missing("Chromium", INSTALL_BROWSER)
    return found


@contextmanager
def open_browser() -> Iterator["Browser"]:
    """A headless browser until the block ends."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("Playwright", INSTALL_PLAYWRIGHT)
    path = chromium_path()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


def output_folder() -> Path:
    """Where a run of CI keeps what people should look at: CI_OUTPUT, by default ``ci-output``."""
    folder = Path(os.environ.get("CI_OUTPUT", "ci-output"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def keep_screenshot(page: "Page", name: str, *, full_page: bool = False) -> Path:
    """Save what the browser shows as ``<CI_OUTPUT>/<name>.png``."""
    path = output_folder() / f"{re.sub(r'[^a-z0-9-]+', '-', name.lower())}.png"
    page.screenshot(path=str(path), full_page=full_page)
    return path
