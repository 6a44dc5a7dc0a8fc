"""One server, and one browser, for all tests of the console."""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from hyprstream.runtime.keys import KeyFile
from hyprstream.runtime.settings import Settings
from tests.server.process import ServerProcess

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_FAST = {
    "HYPRSTREAM_TRAIN__LEARNER__MIN_WAITING": "8",
    "HYPRSTREAM_TRAIN__LEARNER__MIN_HELD_OUT": "1",
    "HYPRSTREAM_TRAIN__LEARNER__SAMPLES_PER_STEP": "4",
}
"""A version is made of a few samples, so that it is made at once."""


@dataclass
class Console:
    """A server with the page, and its keys."""

    url: str
    home: Path
    key: str
    limited: str

    def client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False)


@dataclass
class Opened:
    """A page, and whatever went wrong in it."""

    page: "Page"
    mistakes: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def console(home) -> Iterator[Console]:
    folder = home[0].parent / "console"
    shutil.copytree(home[0], folder, ignore=shutil.ignore_patterns("keys"))
    keys = KeyFile(Settings(home=folder).keys_folder)
    key = keys.create("all", ["inference", "feedback", "admin"])[0]
    limited = keys.create("limited", ["inference"], ["poet"])[0]
    with ServerProcess(folder, **_FAST) as server:
        yield Console(url=server.url, home=folder, key=key, limited=limited)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """A browser, for one file: its driver has an event loop, beside which no other can run."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, console) -> Iterator[Callable[..., Opened]]:
    """Open the page in a tab of its own; whatever goes wrong in it fails the test."""
    contexts, pages = [], []

    def opened(*, key: str | None = None, url: str = "", **options) -> Opened:
        options.setdefault("viewport", {"width": 1280, "height": 800})
        context = browser.new_context(**options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        given = console.key if key is None else key
        if given:
            context.add_init_script(f"sessionStorage.setItem('hyprstream.key', '{given}')")
        visited = Opened(page=context.new_page())
        pages.append(visited)
        page = visited.page
        page.on("pageerror", lambda error: visited.mistakes.append(str(error)))
        page.on("console", lambda said: _note(visited, said.type, said.text))
        page.on("request", lambda request: visited.asked.append(request.url))
        page.goto(url or console.url)
        return visited

    yield opened
    for context in contexts:
        context.close()
    assert [mistake for visited in pages for mistake in visited.mistakes] == []


def _note(visited: Opened, kind: str, text: str) -> None:
    """Keep what the browser complains of; that an answer was a refusal is none of it."""
    if kind in ("error", "warning") and not re.match("Failed to load resource", text):
        visited.mistakes.append(text)
