"""Debian's Chromium without a window, as the tests of the report drive it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # WebGL on the CPU, which a person's browser has on the GPU.
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)


def chromium() -> str:
    """Its path; skips the test where there is none, except where REQUIRE_BROWSER is set."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None and not os.environ.get("REQUIRE_BROWSER"):
        pytest.skip("no chromium on this machine: apt-get install chromium")
    assert path is not None, "REQUIRE_BROWSER is set and there is no chromium"
    return path


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """A fresh browser, closed at the end."""
    path = chromium()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS), timeout=120_000)
        try:
            yield browser
        finally:
            browser.close()


def open_page(browser: Browser, url: str, faults: list[str]) -> Page:
    """Open a page; errors, failed requests and requests to a network are added to `faults`."""
    page = browser.new_page(viewport={"width": 1240, "height": 900})
    watch(page, faults)
    page.goto(url, wait_until="load")
    return page


def watch(page: Page, faults: list[str]) -> None:
    """Add a page's errors, failed requests and requests to a network to `faults`."""
    page.set_default_timeout(120_000)
    page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith(("file:", "data:", "blob:"))
            else faults.append(request.url)
        ),
    )
