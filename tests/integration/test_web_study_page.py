"""The study page in a real browser, on studies that the real pipeline has read: slices, overlays, reviews."""

from __future__ import annotations

import base64
import io
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import uvicorn
from PIL import Image
from pydicom.uid import JPEG2000Lossless

from ich_node.database.reviews import reviews_of
from ich_node.database.tables import StudyRow
from ich_node.findings import IchSubtype
from ich_node.model.predict import load_predictor
from ich_node.purge_job import Terms, purge_studies
from ich_node.testing.enhanced import enhanced_phantom
from ich_node.testing.phantom import HeadPhantom, head_phantom
from ich_node.testing.series import phantom_series
from ich_node.web import create_app
from ich_node.web.events import PageServer
from tests.axe import violations
from tests.read_studies import MappingPredictor, ReadStudies, read_studies
from tests.screenshots import assert_looks_like

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
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZE = playwright.ViewportSize(width=1366, height=768)
DEADLINE_MS = 20_000
SLICES = 20
SUSPICIOUS = (6, 7, 13)


@dataclass(frozen=True, kw_only=True)
class Site:
    """A running server and the studies behind it."""

    studies: ReadStudies
    address: str
    single: str
    """Read by the shipped model, in JPEG 2000."""
    enhanced: str
    """A multi-frame object with maps of two classes."""

    def verdicts(self, study: str) -> list[tuple[str, str]]:
        with self.studies.node.database.reading() as session:
            return [(str(each.verdict), each.comment) for each in reviews_of(session, study)]


@pytest.fixture(scope="module")
def phantom() -> HeadPhantom:
    return head_phantom(bleeds=[IchSubtype.INTRAPARENCHYMAL], seed=3, slices=SLICES, rows=192, columns=192)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, phantom: HeadPhantom) -> Iterator[Site]:
    with read_studies(tmp_path_factory.mktemp("node")) as studies:
        images = phantom_series(phantom, name="single", patient_name="Phantom^Single")
        for image in images:
            image.compress(JPEG2000Lossless, generate_instance_uid=False)
        single = studies.read(images, load_predictor())
        frames = enhanced_phantom(phantom, name="enhanced", patient_name="Phantom^Enhanced")
        enhanced = studies.read(frames, MappingPredictor(SUSPICIOUS))
        listener = socket.create_server(("127.0.0.1", 0))
        app = create_app(studies.node.settings, studies.node.database)
        server = PageServer(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield Site(studies=studies, address=address, single=single, enhanced=enhanced)
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def chromium() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: playwright.Browser, site: Site) -> Iterator[playwright.Page]:
    """A page that must not complain and must not ask any other server."""
    context = chromium.new_context(viewport=SIZE)
    page = context.new_page()
    page.set_default_timeout(DEADLINE_MS)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if "Policy" in message.text else None)
    page.on("request", lambda r: None if r.url.startswith(f"{site.address}/") else complaints.append(r.url))
    yield page
    context.close()
    assert complaints == []


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the viewer shows."""

    page: playwright.Page

    @classmethod
    def of(cls, page: playwright.Page, site: Site, study: str) -> Shown:
        page.goto(f"{site.address}/studies/{study}")
        page.locator('#canvas[data-slice]:not([data-slice=""])').wait_for()
        page.locator(".has-maps").wait_for()
        return cls(page=page)

    @property
    def index(self) -> int:
        return int(self.page.locator("#rail").get_attribute("aria-valuenow") or 0) - 1

    def wait_for(self, index: int) -> None:
        """Until the slice is drawn."""
        self.page.locator(f'#canvas[data-slice="{index}"]').wait_for()

    def press(self, key: str, index: int) -> None:
        self.page.keyboard.press(key)
        self.wait_for(index)

    @property
    def window(self) -> str:
        self.settle()
        return self.page.locator("#canvas").get_attribute("data-shown-window") or ""

    def settle(self) -> None:
        """Until the browser has drawn what was asked for."""
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def pixels(self) -> np.ndarray:
        """(rows, columns, 3) uint8 of the stage."""
        self.settle()
        address = self.page.locator("#canvas").evaluate("(canvas) => canvas.toDataURL('image/png')")
        picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
        return np.asarray(picture.convert("RGB"))

    def gray(self) -> np.ndarray:
        """(rows, columns) uint8, without what the AI drew."""
        assert self.page.locator("#overlay").get_attribute("aria-pressed") == "false"
        pixels = self.pixels()
        assert np.array_equal(pixels[..., 0], pixels[..., 2])
        return pixels[..., 0]

    def colored(self) -> int:
        """How many pixels are not gray."""
        pixels = self.pixels().astype(int)
        return int((np.abs(pixels[..., 0] - pixels[..., 2]) > 12).sum())


def test_it_looks_as_it_did(site: Site, page: playwright.Page) -> None:
    """The first test: the others add reviews."""
    shown = Shown.of(page, site, site.enhanced)
    shown.wait_for(6)
    shown.settle()
    page.evaluate("Promise.all([...document.images].map((image) => image.decode().catch(() => null)))")
    assert_looks_like(page, "study", masked=("#freshness", ".facts-line", "#review"))


def test_it_opens_on_the_most_suspicious_slice_with_its_overlay(site: Site, page: playwright.Page) -> None:
    shown = Shown.of(page, site, site.single)
    assert "Slice" in page.locator("#position").inner_text()
    scores = page.evaluate(f"fetch('/studies/{site.single}/viewer').then((r) => r.json())")["slices"]
    best = max(range(SLICES), key=lambda index: scores[index]["score"])
    assert shown.index == best
    assert scores[best]["suspicious"]
    assert shown.colored() > 200
    page.keyboard.press("o")
    assert shown.colored() == 0
    assert page.locator(".corner-mark").inner_text().startswith("AI result, unverified")
    assert page.locator(".disclaimer").is_visible()


def test_the_pixels_are_the_slice_through_its_window(
    site: Site, page: playwright.Page, phantom: HeadPhantom
) -> None:
    """What is seen is what the phantom has there, mapped by PS3.3 C.11.2.1.2, in its proportions."""
    shown = Shown.of(page, site, site.single)
    page.keyboard.press("o")
    for key, width, level in (("1", 80, 40), ("5", 2800, 600), ("6", 380, 40)):
        shown.press("Home", 0)
        shown.press("End", SLICES - 1)
        shown.press("PageDown", SLICES - 6)
        page.keyboard.press(key)
        assert shown.window == f"{width} {level}"
        gray = shown.gray()
        hu = np.rint(phantom.hu[SLICES - 6])
        expected = 255 * np.clip((hu - (level - 0.5)) / (width - 1) + 0.5, 0, 1)
        scale = min(gray.shape[0] / 192, gray.shape[1] / 192)
        left, top = ((size - scale * 192) / 2 for size in (gray.shape[1], gray.shape[0]))
        rows, columns = np.mgrid[20:172:8, 20:172:8]
        seen = gray[
            np.rint(top + (rows + 0.5) * scale - 0.5).astype(int),
            np.rint(left + (columns + 0.5) * scale - 0.5).astype(int),
        ]
        # The browser smooths between pixels: most are as computed, and none is another picture's.
        assert np.median(np.abs(seen - expected[rows, columns])) < 12
        assert np.corrcoef(seen.ravel(), expected[rows, columns].ravel())[0, 1] > 0.97


def test_scrolling_by_keys_wheel_and_rail(site: Site, page: playwright.Page) -> None:
    shown = Shown.of(page, site, site.enhanced)
    shown.wait_for(6)
    for key, index in [
        ("ArrowUp", 7), ("ArrowRight", 8), ("ArrowDown", 7), ("ArrowLeft", 6), ("PageUp", 11), ("Home", 0),
        ("ArrowDown", 0), ("End", 19), ("ArrowUp", 19), ("PageDown", 14),
    ]:  # fmt: skip
        shown.press(key, index)
    page.locator("#stage").hover()
    page.mouse.wheel(0, 100)
    shown.wait_for(13)
    page.mouse.wheel(0, 240)
    shown.wait_for(11)
    for _ in range(4):  # a pad sends little at a time
        page.mouse.wheel(0, -30)
    shown.wait_for(13)
    box = page.locator("#profile").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 2)
    shown.wait_for(19)
    page.locator("#rail").focus()
    shown.press("Home", 0)
    rail = page.locator("#rail")
    assert rail.get_attribute("aria-valuetext") == "Slice 1 of 20 from below, 10 %"


def test_jumping_to_suspicious_slices_goes_around(site: Site, page: playwright.Page) -> None:
    shown = Shown.of(page, site, site.enhanced)
    for key, index in [("n", 7), ("n", 13), ("n", 6), ("p", 13), ("p", 7)]:
        shown.press(key, index)
    assert page.locator("#announcer").text_content() == "Slice 8 of 20 from below, 83 %, suspicious"
    page.locator("#next-hit").click()
    shown.wait_for(13)
    page.locator("#previous-hit").click()
    shown.wait_for(7)


def test_of_a_slab_the_slice_that_shows_it_is_opened_and_jumped_to(
    site: Site, page: playwright.Page, phantom: HeadPhantom
) -> None:
    images = phantom_series(phantom, name="slabs", patient_name="Phantom^Slabs")
    shown = Shown.of(page, site, site.studies.read(images, MappingPredictor([7, 17], together=5)))
    shown.wait_for(7)
    assert shown.colored() > 200
    assert "1 place is marked" in (page.locator("#canvas").get_attribute("aria-label") or "")
    for key, index in [
        ("n", 17),
        ("n", 7),
        ("p", 17),
        ("ArrowUp", 18),
        ("p", 17),
        ("ArrowDown", 16),
        ("n", 17),
    ]:
        shown.press(key, index)
    assert (page.locator("#announcer").text_content() or "").endswith("suspicious, a peak")
    shown.press("ArrowUp", 18)
    assert (page.locator("#rail").get_attribute("aria-valuetext") or "").endswith("suspicious")
    assert "of a slab: see slice 18" in page.locator("#scores").inner_text()


def test_windows_by_button_key_field_and_mouse(site: Site, page: playwright.Page) -> None:
    shown = Shown.of(page, site, site.enhanced)
    assert shown.window == "80 40"
    for key, window in enumerate(("80 40", "200 80", "130 50", "40 40", "2800 600", "380 40"), 1):
        page.keyboard.press(str(key))
        assert shown.window == window
        assert page.locator(f'[data-window="{window}"]').get_attribute("aria-pressed") == "true"
        assert page.locator('[data-window][aria-pressed="true"]').count() == 1
    page.get_by_role("button", name="Stroke").click()
    assert shown.window == "40 40"
    page.get_by_label("Window width").fill("100")
    page.keyboard.press("Tab")
    assert shown.window == "100 40"
    assert page.locator('[data-window][aria-pressed="true"]').count() == 0
    box = page.locator("#stage").bounding_box()
    assert box is not None
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 60, middle[1] + 20, steps=3)
    page.mouse.up()
    width, level = map(int, shown.window.split())
    assert width > 100
    assert level > 40
    assert shown.index == 6


def test_zoom_pan_and_fit(site: Site, page: playwright.Page) -> None:
    shown = Shown.of(page, site, site.enhanced)
    page.keyboard.press("o")
    whole = shown.gray()
    for _ in range(5):
        page.keyboard.press("+")
    zoomed = shown.gray()
    assert "3.1 x" in page.locator("#window-words").inner_text()
    page.keyboard.press("Shift+ArrowLeft")
    moved = shown.gray()
    assert np.abs(moved[:, 40:].astype(int) - zoomed[:, :-40]).mean() < 1
    assert np.abs(moved.astype(int) - zoomed).mean() > 10
    page.locator("#stage").dblclick()
    assert np.array_equal(shown.gray(), whole)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -300)
    page.keyboard.up("Control")
    assert not np.array_equal(shown.gray(), whole)
    assert shown.index == 6
    page.keyboard.press("0")
    assert np.array_equal(shown.gray(), whole)


def test_overlays_toggle_by_class(site: Site, page: playwright.Page) -> None:
    shown = Shown.of(page, site, site.enhanced)
    both = shown.pixels()
    subdural = page.get_by_role("button", name="SDH: Subdural")
    subdural.click()
    assert subdural.get_attribute("aria-pressed") == "false"
    outline = shown.pixels()
    assert not np.array_equal(both, outline)
    assert shown.colored() == 0  # ANY beside subtypes is a white outline, never a veil
    page.get_by_role("button", name="ANY: Any hemorrhage").click()
    bare = shown.pixels()
    assert not np.array_equal(outline, bare)
    page.keyboard.press("o")
    assert np.array_equal(shown.pixels(), bare)
    page.keyboard.press("o")
    subdural.click()
    faint, dense = [], []
    for key, kept in (("[", faint), ("]", dense)):
        for _ in range(10):
            page.keyboard.press(key)
        kept.append(shown.colored())
    assert dense[0] > 2 * faint[0]
    shown.press("Home", 0)
    assert shown.colored() == 0


def test_sides_of_the_patient_and_key_slices(site: Site, page: playwright.Page) -> None:
    shown = Shown.of(page, site, site.enhanced)
    sides = {side: page.locator(f".edge-{side}").inner_text() for side in ("left", "right", "top", "bottom")}
    assert sides == {"left": "R", "right": "L", "top": "A", "bottom": "P"}
    page.locator(".strip a", has_text="Slice 14").click()
    shown.wait_for(13)
    assert "Slice 14" in page.locator(".strip [aria-current]").inner_text()
    page.locator(".strip a", has_text="Summary").click()
    page.locator(".picture:visible img").wait_for()
    assert not page.locator("#stage").is_visible()
    shown.press("ArrowUp", 14)
    assert page.locator("#stage").is_visible()


def test_neighbours_are_fetched_before_they_are_wanted(site: Site, page: playwright.Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/slices/" in request.url else None)
    with page.expect_event("requestfinished", lambda r: "/slices/19?" in r.url):
        Shown.of(page, site, site.enhanced)
    assert sorted(int(url.partition("/slices/")[2].partition("?")[0]) for url in asked) == list(range(SLICES))
    shown = Shown(page=page)
    for index in (7, 8, 9):
        shown.press("ArrowUp", index)
    assert len(asked) == SLICES


def test_a_slice_that_does_not_come_is_said_and_tried_again(site: Site, page: playwright.Page) -> None:
    page.route("**/slices/9?*", lambda route: route.abort())
    shown = Shown.of(page, site, site.enhanced)
    shown.press("ArrowUp", 7)
    shown.press("ArrowUp", 8)
    page.keyboard.press("ArrowUp")
    page.locator(".is-faulty").wait_for()
    assert "the node does not answer" in page.locator("#stage-note").inner_text()
    page.unroute("**/slices/9?*")
    shown.press("ArrowUp", 10)
    shown.press("ArrowDown", 9)
    assert not page.locator("#stage-note").is_visible()


def test_reviews_keep_the_slice_that_is_looked_at(site: Site, page: playwright.Page) -> None:
    shown = Shown.of(page, site, site.enhanced)
    shown.press("PageUp", 11)
    page.get_by_role("button", name="Agree", exact=True).click()
    page.locator(".reviewed").wait_for()
    assert "Seen by local" in page.locator("#review").inner_text()
    assert page.get_by_role("button", name="Agree", exact=True).get_attribute("aria-pressed") == "true"
    page.locator(".disagree summary").focus()
    page.keyboard.press("Enter")
    page.get_by_label("Missed a hemorrhage").focus()
    page.keyboard.press("Space")
    page.get_by_label("Comment").fill("1 n o Escape: letters are letters here")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator(".reviews li", has_text="missed a hemorrhage").wait_for()
    assert shown.index == 11
    assert not page.locator("#changed").is_visible()
    page.get_by_role("button", name="Take back").click()
    page.locator(".none", has_text="Nobody has said").wait_for()
    assert site.verdicts(site.enhanced) == [
        ("UNSEEN", ""),
        ("DISAGREE", "1 n o Escape: letters are letters here"),
        ("AGREE", ""),
    ]
    assert "review taken back" in page.locator("#audit").inner_text()


HOLDS_THE_ANSWER = """
const send = window.fetch;
window.fetch = async (resource, options) => {
  const answer = await send(resource, options);
  const root = document.documentElement;
  if (String(resource).endsWith("/version")) {
    const { version } = await answer.clone().json();
    setTimeout(() => (root.dataset.heard = version), 100); // the page has drawn what it made of it
  }
  if (!window.lets && String(resource).endsWith("/review")) {
    await new Promise((resolve) => {
      window.lets = resolve;
      root.classList.add("held");
    });
  }
  return answer;
};
"""
"""The first review's answer reaches the page when ``lets()`` is called; the page bears the version that it heard of."""


def test_a_review_of_this_page_is_no_change_that_it_is_told_of(site: Site, page: playwright.Page) -> None:
    page.add_init_script(HOLDS_THE_ANSWER)
    Shown.of(page, site, site.enhanced)
    before = page.locator("#study").get_attribute("data-version")
    page.get_by_role("button", name="Agree", exact=True).click()
    # the node has it, the page heard of another version and has no answer yet
    page.locator(f'html.held[data-heard]:not([data-heard="{before}"])').wait_for()
    assert not page.locator("#changed").is_visible()
    with page.expect_response("**/version"):
        page.evaluate("window.lets()")
        page.locator(".reviewed").wait_for()
    assert not page.locator("#changed").is_visible()
    page.get_by_role("button", name="Take back").click()
    page.locator(".none", has_text="Nobody has said").wait_for()


def test_a_review_that_is_refused_is_said(site: Site, page: playwright.Page) -> None:
    Shown.of(page, site, site.enhanced)
    page.evaluate("document.querySelectorAll('[name=reading]').forEach((field) => (field.value = '4711'))")
    page.get_by_role("button", name="Agree", exact=True).click()
    page.locator("#review-fault").wait_for()
    assert "was read again meanwhile" in page.locator("#review-fault").inner_text()


def test_it_fits_the_screen_and_axe_finds_nothing_serious(site: Site, page: playwright.Page) -> None:
    Shown.of(page, site, site.enhanced)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    strip = page.locator(".strip").bounding_box()
    stage = page.locator("#stage").bounding_box()
    assert strip is not None
    assert stage is not None
    assert strip["y"] + strip["height"] <= SIZE["height"]
    assert stage["height"] > 400
    page.locator(".disagree summary").click()
    assert violations(page) == []
    page.keyboard.press("Escape")


def test_help_by_key_and_the_agreement_page(site: Site, page: playwright.Page) -> None:
    Shown.of(page, site, site.enhanced)
    page.keyboard.press("?")
    page.locator("#keys[open]").wait_for()
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.locator("#keys[open]").wait_for(state="detached")
    assert "/studies/" in page.url
    page.goto(f"{site.address}/agreement")
    assert "readings" in page.locator("main").inner_text()
    assert violations(page) == []


def test_without_scripts_the_pictures_and_the_buttons_are_there(
    chromium: playwright.Browser, site: Site
) -> None:
    context = chromium.new_context(viewport=SIZE, java_script_enabled=False)
    page = context.new_page()
    page.set_default_timeout(DEADLINE_MS)
    page.goto(f"{site.address}/studies/{site.single}")
    assert page.locator(".picture:visible").count() >= 2
    assert not page.locator("#slices").is_visible()
    page.get_by_role("button", name="Seen", exact=True).click()
    page.get_by_text("Seen by local").first.wait_for()
    page.locator(".reprocess summary").click()
    page.get_by_role("button", name="Read it again").click()
    page.get_by_text("It cannot be read again now").wait_for()
    context.close()
    with site.studies.node.database.reading() as session:
        assert session.get_one(StudyRow, site.single).state == "QUEUED"


def test_purged_images_are_said_to_be_gone(site: Site, page: playwright.Page) -> None:
    """The last test: it takes the images away."""
    node = site.studies.node
    for path in node.settings.spool_dir.rglob("*.dcm"):
        os.utime(path, (0, 0))  # what has just come is not purged
    report = purge_studies(node, [site.enhanced], Terms(before=None, actor="test", force=True))
    assert report.purged
    page.goto(f"{site.address}/studies/{site.enhanced}")
    page.locator(".picture:visible img").first.wait_for()
    assert page.locator("#slices").count() == 0
    assert "The images that were read are not here any more" in page.locator("#viewer").inner_text()
    page.keyboard.press("ArrowRight")
    assert "Slice" in page.locator(".picture:visible figcaption").inner_text()
    assert page.locator(".profile-section").is_visible()
    assert "send the study again" in page.locator("#review").inner_text()
    assert violations(page) == []
