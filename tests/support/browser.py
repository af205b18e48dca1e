"""A headless Chromium for tests of the page; they are skipped where there is none."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, async_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; Debian's is `apt-get install chromium`")


@asynccontextmanager
async def page_of(url: str, *, expected: tuple[str, ...] = (), **context: Any) -> AsyncIterator[Page]:
    """Open `url`; at the end nothing may have been refused, thrown or logged as an error, but for lines with a word
    that is `expected`. `context`: Playwright's.
    """
    complaints: list[str] = []
    async with async_playwright() as playwright:
        # As root, as in a container, Chromium has no sandbox; it opens nothing but our own page.
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = await (await browser.new_context(**context)).new_page()
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
            await page.goto(url)
            yield page
        finally:
            await browser.close()
    assert [line for line in complaints if not any(word in line for word in expected)] == []


async def violations(page: Page) -> list[str]:
    """Return what axe finds wrong for people who cannot see, or see little: WCAG 2, A and AA."""
    options: dict[str, Any] = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
    found = (await Axe().run(page, options=options)).response["violations"]
    return [f"{one['id']}: {node['html'][:160]} {node['failureSummary']}" for one in found for node in one["nodes"]]
