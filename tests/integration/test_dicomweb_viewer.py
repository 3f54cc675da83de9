"""OHIF, a viewer of another make, with the node itself as its source of images: no PACS in between."""

from __future__ import annotations

import io
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import uvicorn
from PIL import Image
from pydicom.uid import JPEG2000Lossless

from ich_node.findings import IchSubtype, Priority
from ich_node.report import ReadingReport
from ich_node.report.result_objects import build_result_objects
from ich_node.report.wording import HEADLINE
from ich_node.testing.phantom import head_phantom
from ich_node.testing.series import phantom_series
from ich_node.web import create_app
from tests.dicomweb_node import dicomweb_node
from tests.ohif_page import FORGETS, open_until
from tests.ohif_viewer import ViewerUnavailableError, ohif, ohif_files
from tests.receiver_process import wait_until
from tests.report_builders import READ_AT, series_finding

if TYPE_CHECKING:
    from playwright import sync_api as playwright
else:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}: apt install chromium"
)
ARGUMENTS = [
    "--no-sandbox",
    "--enable-unsafe-swiftshader",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--disable-background-networking",
]
DEADLINE_MS = 60_000


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address of OHIF, and the study that the node holds: compressed images, a report and captures."""
    try:
        files = ohif_files()
    except ViewerUnavailableError as missing:
        pytest.skip(str(missing))
    phantom = head_phantom(bleeds=[IchSubtype.INTRAPARENCHYMAL], seed=1, slices=8, rows=128, columns=128)
    images = phantom_series(
        phantom, name="web", patient_name="Straight^From=Node", transfer_syntax_uid=JPEG2000Lossless
    )
    study = str(images[0].StudyInstanceUID)
    with dicomweb_node(tmp_path_factory.mktemp("node")) as node:
        for image in images:
            node.receive(image)
            del image.PixelData
        report = ReadingReport(
            finding=series_finding(phantom.hu.shape, 0.9),
            source_images=list(images),
            hu=phantom.hu,
            spacing_mm=phantom.spacing_mm,
            run_number=1,
            read_at=READ_AT,
        )
        node.add_results(study, build_result_objects(report, {}))
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(create_app(node.settings, node.database), log_level="critical")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        with ohif(files, f"http://127.0.0.1:{listener.getsockname()[1]}") as address:
            yield address, study
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def page(viewer: tuple[str, str]) -> Iterator[playwright.Page]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        context = browser.new_context(viewport=playwright.ViewportSize(width=1600, height=900))
        page = context.new_page()
        page.set_default_timeout(DEADLINE_MS)
        page.add_init_script(FORGETS)
        yield page
        browser.close()


def seen(page: playwright.Page, name: str) -> np.ndarray[tuple[int, int, int], np.dtype[np.int64]]:
    """The middle of the viewport."""
    if folder := os.environ.get("OHIF_PICTURES"):
        page.screenshot(path=Path(folder) / f"ohif-node-{name}.png")
    picture = page.locator("[data-cy=viewport-grid]").screenshot()
    shown = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    rows, columns = shown.shape[0] // 8, shown.shape[1] // 8
    return shown[rows:-rows, columns:-columns]


def test_a_viewer_finds_the_study_and_shows_images_report_and_captures(
    page: playwright.Page, viewer: tuple[str, str]
) -> None:
    address, study = viewer
    page.goto(f"{address}/")
    page.get_by_text("Straight, From").first.wait_for()

    def open_the_report() -> None:
        page.goto(f"{address}/viewer?StudyInstanceUIDs={study}")
        page.get_by_text("Skip all").click()
        page.locator("[data-cy=viewport-overlay-bottom-left]", has_text="W:").first.wait_for()
        page.locator("[data-cy=study-browser-thumbnail-no-image]", has_text="ICH AI result").dblclick()

    open_until(open_the_report, page.locator("svg text", has_text=HEADLINE[Priority.STAT]).first)
    wait_until(
        lambda: (seen(page, "report").min(axis=2) > 200).mean() > 0.02, "a skull: the viewport is black"
    )
    thumbnail = page.locator("[data-cy=study-browser-thumbnail]", has_text="ICH AI overlays")
    series = page.locator("[data-cy=viewport-overlay-top-left]", has_text="ICH AI overlays").first
    open_until(thumbnail.dblclick, series)
    wait_until(lambda: (np.ptp(seen(page, "captures"), axis=2) > 100).mean() > 0.001, "colours")
