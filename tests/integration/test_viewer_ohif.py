"""The results in a viewer of another make: OHIF in Debian's Chromium, in front of a real Orthanc.

With OHIF_PICTURES=FOLDER in the environment the pictures of docs/viewers.md are written into that folder.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset

from ich_node.findings import IchSubtype, Priority, SeriesFinding
from ich_node.model.predict import Predictor, load_predictor
from ich_node.report import ReadingReport, build_secondary_captures, build_structured_report
from ich_node.report.segmentation import build_segmentation
from ich_node.report.sr_class import SrClass
from ich_node.report.wording import DISCLAIMER, HEADLINE
from ich_node.testing.phantom import HeadPhantom, head_phantom
from ich_node.testing.series import phantom_series
from tests.ohif_page import FORGETS, open_until
from tests.ohif_viewer import ViewerUnavailableError, ohif, ohif_files, orthanc, store
from tests.receiver_process import wait_until
from tests.report_builders import READ_AT

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
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-angle=swiftshader",  # the viewer draws with WebGL, and no graphics card is asked for
    "--enable-unsafe-swiftshader",
]
SIZE = playwright.ViewportSize(width=1600, height=900)
DEADLINE_MS = 60_000
BASIC_TEXT = "basic-text"
NO_COORDINATES = "no-coordinates"
SEGMENTS = "segments"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A study in Orthanc, with its results."""

    study_instance_uid: str
    patient: str
    priority: Priority


def _read(bleeds: list[IchSubtype], predictor: Predictor) -> tuple[HeadPhantom, SeriesFinding]:
    """A head, and what the shipped model makes of it."""
    phantom = head_phantom(bleeds=bleeds, seed=1, slices=12, rows=256, columns=256)
    return phantom, predictor.predict(phantom.hu, phantom.spacing_mm)


def _with_subtypes(finding: SeriesFinding) -> SeriesFinding:
    """The same finding of a model that tells subtypes apart."""
    shares = {IchSubtype.INTRAPARENCHYMAL: 0.9, IchSubtype.SUBDURAL: 0.3}

    def of_classes(score: float) -> dict[IchSubtype, float]:
        return {IchSubtype.ANY: score, **{subtype: score * share for subtype, share in shares.items()}}

    slices = tuple(
        replace(
            one,
            probabilities=of_classes(one.probabilities[IchSubtype.ANY]),
            likelihood_maps={
                subtype: each * share
                for each in one.likelihood_maps.values()
                for subtype, share in {IchSubtype.ANY: 1.0, **shares}.items()
            },
        )
        for one in finding.slices
    )
    subtypes = {subtype: finding.suspicion * share for subtype, share in shares.items()}
    return replace(finding, slices=slices, subtypes=subtypes)


def _report(name: str, phantom: HeadPhantom, finding: SeriesFinding, folder: Path) -> ReadingReport:
    """Save the images of a study of its own, and report on them."""
    images: list[Dataset] = list(
        phantom_series(phantom, name=name, patient_name=f"Viewer^{name}", patient_id=name)
    )
    for number, image in enumerate(images):
        image.save_as(folder / f"{number:02}.dcm", enforce_file_format=True)
        del image.PixelData
    return ReadingReport(
        finding=finding,
        source_images=images,
        hu=phantom.hu,
        spacing_mm=phantom.spacing_mm,
        run_number=1,
        read_at=READ_AT,
    )


def _without_coordinates(document: Dataset) -> Dataset:
    """The same report, but that the groups of the study and of the subtypes name no region."""
    measurements = next(
        item for item in document.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "126010"
    )
    for group in measurements.ContentSequence:
        for item in group.ContentSequence:
            if item.ValueType == "NUM":
                item.pop("ContentSequence", None)
    return document


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, Stored]]]:
    """Address of OHIF, and the studies that it can open."""
    try:
        files = ohif_files()
    except ViewerUnavailableError as missing:
        pytest.skip(str(missing))
    predictor = load_predictor(device="cpu")
    sound = _read([], predictor)
    readings = {
        "positive": _read([IchSubtype.INTRAPARENCHYMAL], predictor),
        "negative": sound,
        BASIC_TEXT: sound,
        NO_COORDINATES: sound,
    }
    readings[SEGMENTS] = readings["positive"][0], _with_subtypes(readings["positive"][1])
    try:
        with orthanc(tmp_path_factory.mktemp("orthanc")) as pacs:
            stored = {}
            for name, (phantom, finding) in readings.items():
                folder = tmp_path_factory.mktemp(name)
                report = _report(name, phantom, finding, folder)
                sr_class = SrClass.BASIC_TEXT if name == BASIC_TEXT else SrClass.COMPREHENSIVE_3D
                segmentation = build_segmentation(report) if name == SEGMENTS else None
                if segmentation is not None:
                    segmentation.save_as(folder / "segmentation.dcm", enforce_file_format=True)
                document = build_structured_report(report, sr_class=sr_class, segmentation=segmentation)
                if name == NO_COORDINATES:
                    document = _without_coordinates(document)
                for number, result in enumerate([document, *build_secondary_captures(report)]):
                    result.save_as(folder / f"result{number}.dcm", enforce_file_format=True)
                store(pacs, sorted(folder.iterdir()))
                stored[name] = Stored(
                    study_instance_uid=report.study_instance_uid,
                    patient=f"Viewer, {name}",
                    priority=report.finding.priority,
                )
            with ohif(files, pacs) as address:
                yield address, stored
    except ViewerUnavailableError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def chromium() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: playwright.Browser) -> Iterator[playwright.Page]:
    context = chromium.new_context(viewport=SIZE)
    page = context.new_page()
    page.set_default_timeout(DEADLINE_MS)
    page.add_init_script(FORGETS)
    yield page
    context.close()


def _open(page: playwright.Page, address: str, study: Stored) -> None:
    """Open a study: its CT is shown, and the tour for newcomers is out of the way."""
    page.goto(f"{address}/viewer?StudyInstanceUIDs={study.study_instance_uid}")
    page.get_by_text("Skip all").click()
    _sees_a_picture(page)


def _open_report(page: playwright.Page) -> None:
    page.locator("[data-cy=study-browser-thumbnail-no-image]", has_text="ICH AI result").dblclick()


def _viewport(page: playwright.Page) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """What is seen in the middle of the viewport, without its frame and buttons: (rows, columns, 3) uint8."""
    picture = page.locator("[data-cy=viewport-grid]").screenshot()
    seen = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    rows, columns = seen.shape[0] // 8, seen.shape[1] // 8
    return seen[rows:-rows, columns:-columns]


def _sees_a_picture(page: playwright.Page) -> None:
    page.locator("[data-cy=viewport-overlay-bottom-left]", has_text="W:").first.wait_for()
    page.locator(".cornerstone-canvas").first.wait_for(state="attached")


def _keep(page: playwright.Page, name: str) -> None:
    """Write a picture for the documentation, where one is asked for."""
    if folder := os.environ.get("OHIF_PICTURES"):
        page.screenshot(path=Path(folder) / f"ohif-{name}.png")


def test_the_study_is_found(page: playwright.Page, viewer: tuple[str, dict[str, Stored]]) -> None:
    address, stored = viewer
    page.goto(f"{address}/")
    for study in stored.values():
        page.get_by_text(study.patient).first.wait_for()
    _keep(page, "studies")


@pytest.mark.parametrize("name", ["positive", "negative", SEGMENTS])
def test_the_report_shows_the_finding_on_the_slice(
    page: playwright.Page, viewer: tuple[str, dict[str, Stored]], name: str
) -> None:
    address, stored = viewer

    def open_the_report() -> None:
        _open(page, address, stored[name])
        _open_report(page)

    open_until(open_the_report, page.locator("svg text", has_text=HEADLINE[stored[name].priority]).first)
    text = " ".join(page.locator("svg text").all_text_contents())
    assert DISCLAIMER in text
    assert "Certainty of Finding" in text
    wait_until(lambda: (_viewport(page).min(axis=2) > 200).mean() > 0.02, "a skull: the viewport is black")
    _keep(page, f"report-{name}")


def test_a_report_in_basic_text_is_read_as_text(
    page: playwright.Page, viewer: tuple[str, dict[str, Stored]]
) -> None:
    address, stored = viewer
    _open(page, address, stored[BASIC_TEXT])
    headline = page.get_by_text(HEADLINE[stored[BASIC_TEXT].priority]).first
    open_until(lambda: _open_report(page), headline)
    assert DISCLAIMER in page.locator("[data-cy=viewport-grid]").inner_text()
    _keep(page, "report-text")


def test_the_secondary_captures_are_seen(
    page: playwright.Page, viewer: tuple[str, dict[str, Stored]]
) -> None:
    address, stored = viewer
    _open(page, address, stored["positive"])
    colours = _viewport(page).astype(int)
    assert (np.ptp(colours, axis=2) > 100).mean() < 0.001, "the CT has no colours"
    thumbnail = page.locator("[data-cy=study-browser-thumbnail]", has_text="ICH AI overlays")
    series = page.locator("[data-cy=viewport-overlay-top-left]", has_text="ICH AI overlays").first
    open_until(thumbnail.dblclick, series)
    wait_until(lambda: (np.ptp(_viewport(page).astype(int), axis=2) > 100).mean() > 0.001, "colours")
    _keep(page, "overlays")


def test_what_the_viewer_cannot_show_is_noticed(
    page: playwright.Page, viewer: tuple[str, dict[str, Stored]]
) -> None:
    """Why every group names a region: without one the viewer fails, and nothing is seen."""
    address, stored = viewer
    _open(page, address, stored[NO_COORDINATES])
    with page.expect_console_message(lambda message: "ReferencedSOPSequence" in message.text):
        _open_report(page)
    assert page.locator("svg text").count() == 0
