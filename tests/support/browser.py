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
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

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
SLOW_MS = 120_000  # shared cores: a page may take its time, but it must come
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
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=list(ARGUMENTS), timeout=SLOW_MS)
        try:
            yield browser
        finally:
            browser.close()


def expect(what: "Page | Locator") -> Any:
    """Playwright's ``expect``: what an action leads to comes later than the action ends, so ask until it is so."""
    from playwright.sync_api import expect

    expect.set_options(timeout=SLOW_MS)
    return expect(what)


def wait_pictures(page: "Page", within: str = "body") -> None:
    """Wait until all pictures below a CSS selector are loaded that the window shows: others may load when they come.

    Asked inside the page: Playwright's own ``wait_for_function`` needs ``eval``, which the policy of our pages forbids.
    """
    missing = page.evaluate(
        f"""async () => {{
            const shown = (image) => {{
                const at = image.getBoundingClientRect();  // of a closed <details> it has one, too
                return image.checkVisibility() && at.bottom > 0 && at.top < innerHeight;
            }};
            const missing = () => [...document.querySelectorAll("{within} img")]
                .filter((image) => shown(image) && !(image.complete && image.naturalWidth > 0));
            const deadline = performance.now() + {SLOW_MS};
            while (missing().length && performance.now() < deadline) await new Promise((done) => setTimeout(done, 20));
            return missing().map((image) => image.outerHTML.slice(0, 200));
        }}"""
    )
    assert not missing, missing


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
