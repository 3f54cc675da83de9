"""The web pages on a real server on loopback, and Debian's Chromium, headless, that looks at them."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvicorn

from ich_node.database.engine import Database
from ich_node.receive.free_space import FreeSpace
from ich_node.web import create_app
from ich_node.web.events import PageServer
from tests.stored_studies import StoredStudies

if TYPE_CHECKING:
    from playwright import sync_api as playwright
else:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = Path("/usr/bin/chromium")
needs_chromium = pytest.mark.skipif(
    not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}: apt install chromium"
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZE = playwright.ViewportSize(width=1366, height=768)
NOW = datetime.now(UTC)
DEADLINE_MS = 20_000


def ago(minutes: float) -> datetime:
    """A time before the tests began."""
    return NOW - timedelta(minutes=minutes)


@dataclass
class LiveSite:
    """The application on a port of its own; can be stopped and started again."""

    studies: StoredStudies
    free_space: FreeSpace | None = None
    port: int = 0
    _server: uvicorn.Server | None = field(default=None, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port))  # listens from here on: no wait is needed
        self.port = listener.getsockname()[1]
        app = create_app(self.studies.settings, self.studies.database, free_space=self.free_space)
        self._server = PageServer(uvicorn.Config(app, log_level="warning"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()

    def stop(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(timeout=30)
            assert not self._thread.is_alive()
        self._server = self._thread = None

    def add(
        self, number: int, name: str, suspicion: float | None = 0.02, *, at: datetime | None = None
    ) -> str:
        """A study that came an hour less ``number`` minutes ago, or when it is told, and was read if it has a score."""
        uid = f"1.2.3.{number}"
        came = at or ago(60 - number)
        self.studies.receive(
            uid,
            at=came,
            patient_name=name,
            patient_id=f"P{number}",
            accession_number=f"ACC{number}",
            study_date="20261121",
            study_time="081500",
        )
        if suspicion is not None:
            self.studies.read(uid, at=came + timedelta(seconds=30), suspicion=suspicion)
        return uid


@contextmanager
def live_site(folder: Path) -> Iterator[LiveSite]:
    """Run the pages on an empty database in a folder."""
    database = Database(f"sqlite:///{folder / 'node.sqlite'}")
    database.upgrade()
    site = LiveSite(studies=StoredStudies(database=database, results_dir=folder / "results"))
    site.free_space = FreeSpace(folder, 0)
    site.start()
    try:
        yield site
    finally:
        site.stop()
        database.dispose()


@contextmanager
def chromium_browser() -> Iterator[playwright.Browser]:
    """Run Chromium."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def quiet_page(browser: playwright.Browser, site: LiveSite) -> Iterator[playwright.Page]:
    """A page that must not complain and must not ask any other server."""
    context = browser.new_context(viewport=SIZE)
    page = context.new_page()
    page.set_default_timeout(DEADLINE_MS)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("console", lambda message: complaints.append(message.text) if "Policy" in message.text else None)
    page.on("request", lambda r: None if r.url.startswith(f"{site.address}/") else complaints.append(r.url))
    try:
        yield page
    finally:
        context.close()
    assert complaints == []


def wait_for_title(page: playwright.Page, title: str) -> None:
    """Wait until the page's title begins so, asked from outside: its own policy forbids to evaluate expressions."""
    playwright.expect(page).to_have_title(re.compile(f"^{re.escape(title)}"), timeout=DEADLINE_MS)
