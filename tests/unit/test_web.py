from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG2MPML, JPEG2000Lossless, RLELossless

import ich_node.web.worklist_routes
from ich_node.database.engine import Database
from ich_node.errors import REASON_WORDS, RejectionReason, StudyRejected
from ich_node.findings import IchSubtype, Priority, StudyState
from ich_node.report import build_secondary_captures
from ich_node.selection import SeriesExclusion
from ich_node.settings import Settings
from ich_node.web import create_app, display
from ich_node.web.pictures import MAX_PIXELS, picture_source, sc_to_png
from ich_node.web.security import host_name
from ich_node.web.slice_profile import HEIGHT, WIDTH, slice_profile
from ich_node.web.wording import DELIVERY, DISCLAIMER, PRIORITY, STATE, SUBTYPE, standing
from ich_node.web_settings import is_loopback
from tests.report_builders import make_report
from tests.stored_studies import StoredStudies, picture, secondary_capture

NOW = datetime.now(UTC)
STAT, ROUTINE, UNREAD = "1.2.3.1", "1.2.3.2", "1.2.3.3"
SCRIPT = "<script>alert('x')</script>\"onload=alert(2)"


@dataclass
class Browser:
    """Asks the application without sockets."""

    app: FastAPI

    def get(self, path: str, *, accept: str = "text/html", host: str = "127.0.0.1:8080") -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.get(path, headers={"accept": accept, "host": host})

        return asyncio.run(ask())


class Text(HTMLParser):
    """What a page says, and what it would load or run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._script = False
        self.feed(html)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def row(self, part: str) -> str:
        found = [" ".join(" ".join(row).split()) for row in self.rows if part in " ".join(row)]
        assert len(found) == 1, found
        return found[0]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.rows.append([])

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.rows:
            self.rows[-1].append(data)


@pytest.fixture
def studies(tmp_path: Path) -> Iterator[StoredStudies]:
    database = Database(f"sqlite:///{tmp_path / 'node.sqlite'}")
    database.upgrade()
    yield StoredStudies(database=database, results_dir=tmp_path / "results")
    database.dispose()


@pytest.fixture
def browser(studies: StoredStudies) -> Browser:
    return Browser(create_app(studies.settings, studies.database))


def ago(minutes: float) -> datetime:
    return datetime.now(UTC) - timedelta(minutes=minutes)


def fill(studies: StoredStudies) -> None:
    """A normal study, then a bleed, then one that cannot be read."""
    studies.receive(
        ROUTINE, at=ago(30), patient_name="Novak^Jan", accession_number="ACC2", study_date="20261121"
    )
    studies.read(ROUTINE, at=ago(29), suspicion=0.02)
    studies.receive(
        STAT,
        at=ago(20),
        patient_name="Meyer^Katharina^Luise",
        patient_id="P1",
        accession_number="ACC1",
        study_date="20261121",
        study_time="081530.12",
    )
    studies.read(STAT, at=ago(19), suspicion=0.973, caveats=("Gantry tilt of 12.5 degrees",))
    studies.receive(UNREAD, at=ago(10), patient_name="Dubois^Anne", accession_number="ACC3")
    studies.reject(UNREAD, at=ago(9), reason=RejectionReason.LOCALIZER, detail="localizers are all there is")


# the worklist


def test_worklist_lists_by_urgency_and_says_what_each_study_is(
    studies: StoredStudies, browser: Browser
) -> None:
    fill(studies)
    page = Text(browser.get("/").text)
    order = [page.text.index(name) for name in ("Meyer, Katharina Luise", "Dubois, Anne", "Novak, Jan")]
    assert order == sorted(order)
    bleed = page.row("Meyer")
    for part in ("STAT", "Suspected hemorrhage", "P1", "ACC1", "2026-11-21", "08:15", "20 min ago", "97 %"):
        assert part in bleed
    assert "vicar-attention-v1" in bleed
    assert "not yet" in bleed
    assert "Read, nothing flagged" in page.row("Novak")
    unread = page.row("Dubois")
    for part in ("MEDIUM", "Not read: a person must look", "localizer", "no result"):
        assert part in unread
    assert DISCLAIMER in page.text


def test_among_equals_the_one_that_waits_longest_comes_first(
    studies: StoredStudies, browser: Browser
) -> None:
    for number, minutes in ((1, 5), (2, 50), (3, 20)):
        studies.receive(f"1.2.{number}", at=ago(minutes), patient_name=f"Wait{number}^X")
        studies.read(f"1.2.{number}", at=ago(minutes - 1), suspicion=0.9)
    text = Text(browser.get("/").text).text
    assert text.index("Wait2") < text.index("Wait3") < text.index("Wait1")


def test_a_study_appears_in_the_next_fragment(studies: StoredStudies, browser: Browser) -> None:
    assert "No study has been received yet" in browser.get("/worklist").text
    fill(studies)
    fragment = browser.get("/worklist").text
    assert f'id="study-{STAT}"' in fragment
    assert "No study" not in fragment
    assert "<html" not in fragment


def test_a_list_that_is_cut_says_so(
    studies: StoredStudies, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(studies)
    assert "node holds more" not in browser.get("/").text
    monkeypatch.setattr(ich_node.web.worklist_routes, "LINES", 2)
    text = Text(browser.get("/").text).text
    assert "Only the 2 most urgent studies are shown" in text
    assert "Novak" not in text


def test_delivery_shows_once_every_object_is_sent(studies: StoredStudies, browser: Browser) -> None:
    fill(studies)
    now = datetime.now(UTC)
    assert studies.deliver(at=now) == 6
    row = Text(browser.get("/").text).row("Meyer")
    assert "not yet" not in row
    assert now.astimezone().strftime("%H:%M %Z") in row


def test_what_was_not_delivered_stands_on_a_page_with_the_words_of_the_pacs(
    studies: StoredStudies, browser: Browser
) -> None:
    fill(studies)
    page = Text(browser.get("/deliveries").text).text
    assert "Every result that was sent has reached its destination" in page
    refused = studies.deliver(at=datetime.now(UTC), refusal="0xC123 cannot understand <b>this</b>")
    answer = browser.get("/deliveries")
    assert "<b>this</b>" not in answer.text
    page = Text(answer.text).text
    assert page.count("0xC123 cannot understand") == refused == 6
    assert "Given up: a person must look" in page
    assert "ich-node deliveries --failed --retry" in page
    assert f'href="/studies/{STAT}"' in answer.text


@pytest.mark.parametrize("state", list(StudyState))
@pytest.mark.parametrize("priority", list(Priority))
@pytest.mark.parametrize("reason", [None, RejectionReason.TOO_FEW_SLICES])
def test_only_a_finished_reading_reads_as_negative(
    state: StudyState, priority: Priority, reason: RejectionReason | None
) -> None:
    words = standing(priority, state, reason)
    says_negative = "nothing" in words.priority_words
    assert says_negative == (priority is Priority.ROUTINE and state is StudyState.READ)
    assert words.state_words == STATE[state]
    assert words.reason_words == ("too few slices" if reason else "")


@pytest.mark.parametrize("stage", ["received", "queued", "reading", "not read", "failed", "read, then more"])
def test_a_study_that_was_not_read_never_looks_negative(
    studies: StoredStudies, browser: Browser, stage: str
) -> None:
    studies.receive(STAT, at=ago(5), patient_name="Only^One")
    if stage == "queued":
        studies.queue(at=ago(4))
    elif stage == "reading":
        studies.claim(STAT, at=ago(4))
    elif stage in ("not read", "failed"):
        state = StudyState.FAILED if stage == "failed" else StudyState.NOT_READ
        studies.reject(
            STAT, at=ago(4), reason=RejectionReason.MISSING_SLICES, detail="gap at 12 mm", state=state
        )
    elif stage == "read, then more":
        studies.read(STAT, at=ago(4), suspicion=0.02)
        studies.receive(STAT, at=ago(3), series=2)
    for page in (
        Text(browser.get("/").text).row("Only, One"),
        Text(browser.get(f"/studies/{STAT}").text).text,
    ):
        assert "MEDIUM" in page
        assert "nothing flagged" not in page
        expected = "Not read: a person must look" if stage in ("not read", "failed") else "Not read yet"
        assert f"MEDIUM {expected}" in page
        if stage == "read, then more":
            assert "2 % from an earlier reading" in page
        else:
            assert "no result" in page


def test_words_cover_every_code() -> None:
    assert set(REASON_WORDS) == set(RejectionReason)
    assert set(STATE) == set(StudyState)
    assert set(PRIORITY) == set(Priority)
    assert set(SUBTYPE) == set(IchSubtype)
    assert set(DELIVERY) == {"PENDING", "SENT", "DELIVERED", "DEAD"}


# one study


def test_study_page_tells_everything(studies: StoredStudies, browser: Browser) -> None:
    studies.receive(STAT, at=ago(20), patient_name="Meyer^Katharina", patient_id="P1")
    studies.receive(STAT, at=ago(20), series=2, description="Head Bone")
    studies.read(STAT, at=ago(19), suspicion=0.5)
    studies.receive(STAT, at=ago(18), series=3, description="Late")
    studies.reject(STAT, at=ago(17), reason=RejectionReason.WORKER_LOST, detail="first try")
    studies.receive(STAT, at=ago(16), series=4, description="Later")
    exclusion = SeriesExclusion(
        series_instance_uid=f"{STAT}.2", reason=RejectionReason.BONE_KERNEL, detail="kernel H70h sharpens"
    )
    reading = studies.read(
        STAT,
        at=ago(15),
        suspicion=0.973,
        caveats=("Gantry tilt of 12.5 degrees",),
        subtypes={IchSubtype.SUBDURAL: 0.93, IchSubtype.EPIDURAL: 0.004},
        exclusions=(exclusion,),
        destinations=("PACS", "Archive"),
    )
    studies.deliver(at=ago(14))
    studies.deliver(at=ago(14), destination="Archive", refusal="0xA700 Out of resources")
    html = browser.get(f"/studies/{STAT}").text
    page = Text(html)
    for part in (
        "STAT Suspected hemorrhage",
        "Meyer, Katharina",
        "97 %",
        "Gantry tilt of 12.5 degrees",
        "Subdural",
        "93 %",
        "<1 %",
        "PACS : Delivered, 3 of 3 objects",
        "Archive : Given up: a person must look, 0 of 3 objects",
        "0xA700 Out of resources",
        "6 slices; highest in slice 3 from below",
        f"Study Instance UID {STAT}",
        "Slice 3 of 6 from below",
    ):
        assert part in page.text
    assert "Not read: bone kernel kernel H70h sharpens" in page.row("Head Bone")
    assert "superseded" in page.row("50 %")
    assert "sets the priority" in page.row("vicar-attention-v1 1.0.0 abababababab STAT")
    assert "LOST: first try" in page.row("WORKER_LOST")
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    captures = [f"/results/{o.sop_instance_uid}.png" for o in reading.objects if o.kind == "SC"]
    assert len(captures) == 2
    for address in captures:
        assert address in images
        assert browser.get(address).status_code == 200
    assert f"/results/{reading.sr_sop_instance_uid}.dcm" in html


def test_study_page_without_pictures_says_that_this_means_nothing(
    studies: StoredStudies, browser: Browser
) -> None:
    fill(studies)
    page = Text(browser.get(f"/studies/{UNREAD}").text)
    assert "Because: localizer" in page.text
    assert "says nothing about hemorrhage" in page.text
    assert "localizers are all there is" in page.text


def test_study_page_lives_without_its_result_files(studies: StoredStudies, browser: Browser) -> None:
    fill(studies)
    for file in studies.results_dir.iterdir():
        file.unlink()
    page = browser.get(f"/studies/{STAT}")
    assert page.status_code == 200
    assert "Overlay 1" in page.text


def test_version_tells_an_open_page_that_it_is_old(studies: StoredStudies, browser: Browser) -> None:
    fill(studies)
    html = browser.get(f"/studies/{STAT}").text
    version = browser.get(f"/studies/{STAT}/version").json()["version"]
    assert f'data-version="{version}"' in html
    assert browser.get(f"/studies/{STAT}/version").json()["version"] == version
    studies.deliver(at=datetime.now(UTC))
    assert browser.get(f"/studies/{STAT}/version").json()["version"] != version


@pytest.mark.parametrize("uid", ["9.9.9", "abc", "1" * 65, "1.2%27%20OR%201=1", "..%2f..%2fetc"])
@pytest.mark.parametrize("path", ["/studies/{}", "/studies/{}/version", "/results/{}.png", "/results/{}.dcm"])
def test_an_unknown_uid_is_not_found(browser: Browser, path: str, uid: str) -> None:
    response = browser.get(path.format(uid))
    assert response.status_code == 404
    assert "is here" in response.text or "no DICOM UID" in response.text or "no such page" in response.text


def test_unknown_study_is_a_page_for_people_and_a_line_for_programs(browser: Browser) -> None:
    page = browser.get("/studies/9.9.9")
    assert page.headers["content-type"].startswith("text/html")
    assert DISCLAIMER in page.text
    assert "Back to the worklist" in page.text
    assert (
        browser.get("/studies/9.9.9/version", accept="application/json").text == "No study 9.9.9 is here.\n"
    )


# text from outside stays text


def test_script_in_headers_is_text(studies: StoredStudies, browser: Browser) -> None:
    studies.receive(
        STAT,
        at=ago(9),
        description=SCRIPT,
        patient_name=f"{SCRIPT}^{SCRIPT}",
        patient_id=SCRIPT,
        accession_number=SCRIPT,
        study_date=SCRIPT,
        study_time=SCRIPT,
        study_description=SCRIPT,
    )
    exclusion = SeriesExclusion(
        series_instance_uid=f"{STAT}.1", reason=RejectionReason.NOT_HEAD, detail=SCRIPT
    )
    studies.read(
        STAT, at=ago(8), suspicion=0.9, caveats=(SCRIPT,), exclusions=(exclusion,), destinations=(SCRIPT,)
    )
    studies.deliver(at=ago(7), destination=SCRIPT, refusal=SCRIPT)
    studies.receive(STAT, at=ago(6), series=2)
    studies.reject(STAT, at=ago(5), reason=RejectionReason.NOT_HEAD, detail=SCRIPT)
    for path in ("/", "/worklist", f"/studies/{STAT}"):
        page = Text(browser.get(path).text)
        assert page.text.count("<script>alert('x')</script>") >= 3
        assert_nothing_inline(page)


def assert_nothing_inline(page: Text) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("style", "iframe", "object")
        assert tag != "form" or (attributes.get("action") or "/")[:1] == "/"
        assert tag != "script" or (attributes.get("src") or "").startswith("/static/")
        assert not any(name == "style" or name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            address = attributes.get(name)
            assert not address or address[0] in "/#"
            assert not (address or "").startswith("//")


def test_every_page_is_free_of_inline_script_and_foreign_addresses(
    studies: StoredStudies, browser: Browser
) -> None:
    fill(studies)
    for path in (
        "/",
        "/worklist",
        f"/studies/{STAT}",
        f"/studies/{UNREAD}",
        "/operations",
        "/deliveries",
        "/nowhere",
    ):
        assert_nothing_inline(Text(browser.get(path).text))
    for name in ("style.css", "operations.css", "worklist.js", "study.js", "live.js", "operations.js"):
        text = browser.get(f"/static/{name}").text
        assert "http:" not in text
        assert "https:" not in text
        assert "innerHTML =" not in text


# headers


@pytest.mark.parametrize(
    "path",
    ["/", "/worklist", f"/studies/{STAT}", "/studies/9.9", "/nowhere", "/static/style.css", "/health/live"],
)
def test_security_headers_are_on_every_response(studies: StoredStudies, browser: Browser, path: str) -> None:
    fill(studies)
    headers = browser.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cache-control"] == ("no-cache" if path.startswith("/static") else "no-store")


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("127.0.0.1:8080", True),
        ("localhost:9000", True),
        ("[::1]:8080", True),
        ("evil.example:8080", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        ("[::1", False),
        ("10.0.0.5", False),
    ],
)
def test_only_loopback_names_are_answered(browser: Browser, host: str, is_ours: bool) -> None:
    assert is_loopback(host_name(host)) == is_ours
    if host:
        assert browser.get("/health/live", host=host).status_code == (200 if is_ours else 421)


# result objects


def test_png_shows_the_capture_pixel_by_pixel(studies: StoredStudies, browser: Browser) -> None:
    studies.receive(STAT, at=ago(9))
    reading = studies.read(STAT, at=ago(8), suspicion=0.9)
    uid = reading.objects[1].sop_instance_uid
    response = browser.get(f"/results/{uid}.png")
    assert response.headers["content-type"] == "image/png"
    assert "immutable" in response.headers["cache-control"]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(response.content))), picture(0))


def test_download_is_the_file_itself(studies: StoredStudies, browser: Browser) -> None:
    studies.receive(STAT, at=ago(9))
    reading = studies.read(STAT, at=ago(8), suspicion=0.9)
    for item in reading.objects:
        response = browser.get(f"/results/{item.sop_instance_uid}.dcm")
        assert response.content == (studies.results_dir / item.file_name).read_bytes()
        assert response.headers["content-type"] == "application/dicom"
        assert f'filename="{item.sop_instance_uid}.dcm"' in response.headers["content-disposition"]


def test_a_report_has_no_picture(studies: StoredStudies, browser: Browser) -> None:
    studies.receive(STAT, at=ago(9))
    reading = studies.read(STAT, at=ago(8), suspicion=0.9)
    assert browser.get(f"/results/{reading.sr_sop_instance_uid}.png").status_code == 404


def test_a_lost_or_broken_file_is_said_so(studies: StoredStudies, browser: Browser) -> None:
    studies.receive(STAT, at=ago(9))
    reading = studies.read(STAT, at=ago(8), suspicion=0.9)
    lost, broken = reading.objects[1], reading.objects[2]
    (studies.results_dir / lost.file_name).unlink()
    content = (studies.results_dir / broken.file_name).read_bytes()
    (studies.results_dir / broken.file_name).write_bytes(content[:-1000])
    assert browser.get(f"/results/{lost.sop_instance_uid}.png").status_code == 404
    assert browser.get(f"/results/{lost.sop_instance_uid}.dcm").status_code == 404
    response = browser.get(f"/results/{broken.sop_instance_uid}.png")
    assert response.status_code == 422
    assert "cannot be decoded" in response.text


def test_a_file_outside_the_results_folder_is_not_served(studies: StoredStudies, browser: Browser) -> None:
    studies.receive(STAT, at=ago(9))
    reading = studies.read(STAT, at=ago(8), suspicion=0.9)
    item = reading.objects[1]
    inside = studies.results_dir / item.file_name
    outside = studies.results_dir.parent / "elsewhere.dcm"
    inside.rename(outside)
    inside.symlink_to(outside)
    for suffix in ("png", "dcm"):
        assert browser.get(f"/results/{item.sop_instance_uid}.{suffix}").status_code == 404


def test_captures_of_the_report_are_shown_as_they_were_drawn(tmp_path: Path) -> None:
    captures = build_secondary_captures(make_report())
    assert len(captures) > 1
    for number, capture in enumerate(captures):
        path = tmp_path / f"{number}.dcm"
        capture.save_as(path, enforce_file_format=True)
        shown = np.asarray(Image.open(io.BytesIO(sc_to_png(path))))
        np.testing.assert_array_equal(shown, capture.pixel_array)
        source = picture_source(path)
        assert source is not None
        assert source.is_summary == (number == 0)
        named = [item.ReferencedSOPInstanceUID for item in capture.SourceImageSequence]
        assert list(source.source_slices) == [(uid, None) for uid in named]


@pytest.mark.parametrize("encoding", ["plain", "planar", "gray", "rle", "jpeg2000"])
def test_captures_are_decoded_however_they_are_encoded(tmp_path: Path, encoding: str) -> None:
    pixels = picture(3)[..., 0].copy() if encoding == "gray" else picture(3)
    dataset = secondary_capture("1.2.3", pixels)
    if encoding == "planar":
        dataset.PlanarConfiguration = 1
        dataset.PixelData = pixels.transpose(2, 0, 1).tobytes()
    elif encoding == "rle":
        dataset.compress(RLELossless, pixels, generate_instance_uid=False)
    elif encoding == "jpeg2000":
        dataset.compress(JPEG2000Lossless, pixels, generate_instance_uid=False)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    shown = np.asarray(Image.open(io.BytesIO(sc_to_png(tmp_path / "a.dcm"))))
    np.testing.assert_array_equal(shown, pixels)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("no dicom", RejectionReason.NOT_AN_IMAGE),
        ("no pixels", RejectionReason.CORRUPT_PIXEL_DATA),
        ("no rows", RejectionReason.NOT_AN_IMAGE),
        ("too large", RejectionReason.TOO_LARGE),
        ("16 bit", RejectionReason.NOT_AN_IMAGE),
        ("two frames", RejectionReason.NOT_AN_IMAGE),
        ("unknown syntax", RejectionReason.CORRUPT_PIXEL_DATA),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, fault: str, reason: RejectionReason) -> None:
    path = tmp_path / "a.dcm"
    dataset = secondary_capture("1.2.3", picture(1))
    match fault:
        case "no pixels":
            del dataset.PixelData
        case "no rows":
            del dataset.Rows
        case "too large":
            dataset.Rows, dataset.Columns = 65535, 1 + MAX_PIXELS // 65535
        case "16 bit":
            gray = picture(1)[..., 0].astype("<u2")
            dataset = secondary_capture("1.2.3", picture(1)[..., 0].copy())
            dataset.BitsAllocated = dataset.BitsStored = 16
            dataset.HighBit, dataset.PixelData = 15, gray.tobytes()
        case "two frames":
            dataset.NumberOfFrames = 2
            dataset.PixelData = dataset.PixelData * 2
        case "unknown syntax":
            dataset.file_meta.TransferSyntaxUID = MPEG2MPML
            dataset.PixelData = encapsulate([dataset.PixelData])
    if fault == "no dicom":
        path.write_bytes(b"no DICOM" * 100)
    else:
        dataset.save_as(path, enforce_file_format=True)
    with pytest.raises(StudyRejected) as caught:
        sc_to_png(path)
    assert caught.value.reason is reason


def test_source_of_a_file_that_is_none_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"no DICOM" * 100)
    assert picture_source(tmp_path / "a.dcm") is None
    assert picture_source(tmp_path / "b.dcm") is None


# health and faults


def test_live_and_ready(browser: Browser) -> None:
    assert browser.get("/health/live").json() == {"status": "live"}
    response = browser.get("/health/ready")
    assert response.status_code == 200
    assert response.json()["status"] == "ready"


def test_an_unmigrated_database_is_not_ready_and_the_page_says_what_to_do(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'new.sqlite'}")
    browser = Browser(create_app(Settings(data_dir=tmp_path), database))
    response = browser.get("/health/ready")
    assert response.status_code == 503
    assert response.json()["status"] == "not ready"
    assert "revision" in response.json()["reason"]
    page = browser.get("/")
    assert page.status_code == 503
    assert "ich-node db upgrade" in Text(page.text).text
    database.dispose()


def test_a_database_that_is_gone_is_said_so(studies: StoredStudies, browser: Browser, tmp_path: Path) -> None:
    studies.database.dispose()
    for file in tmp_path.glob("node.sqlite*"):
        file.unlink()
    (tmp_path / "node.sqlite").write_bytes(b"this is no database " * 500)
    assert browser.get("/health/live").status_code == 200
    assert browser.get("/health/ready").status_code == 503
    page = browser.get("/")
    assert page.status_code == 503
    assert DISCLAIMER in page.text
    assert browser.get("/worklist", accept="*/*").headers["content-type"].startswith("text/plain")


def test_a_fault_of_the_program_is_a_page_with_headers(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Meyer^Katharina")

    monkeypatch.setattr(ich_node.web.worklist_routes, "worklist", fail)
    page = browser.get("/")
    assert page.status_code == 500
    assert "This node has a fault" in page.text
    assert "Meyer" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-store"


def test_web_loads_neither_model_nor_report_nor_network(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from ich_node.database.engine import Database
from ich_node.settings import Settings
from ich_node.web import create_app
create_app(Settings(data_dir=Path("{tmp_path}")), Database("sqlite:///{tmp_path}/a.sqlite"))
print(sorted({{"torch", "highdicom", "pynetdicom", "celery", "skimage", "scipy"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


# values for people


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("Meyer^Katharina^Luise^Dr.^MD", "Meyer, Katharina Luise"),
        ("Meyer", "Meyer"),
        ("^Katharina", "Katharina"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada, Tarou (山田 太郎)"),
        ("=山田^太郎", "山田 太郎"),
        ("", ""),
        ("^^^^", ""),
        ("Mey\u202eer^K\x00at", "Meyer, Kat"),
        ("A^B^C^D^E^F^G", "A, B C"),
    ],
)
def test_patient_name(value: str, shown: str) -> None:
    assert display.patient_name(value) == shown


@given(st.text())
def test_text_for_people_has_no_controls(value: str) -> None:
    for shown in (display.plain_text(value), display.patient_name(value), display.dicom_date(value)):
        assert shown == shown.strip()
        assert not any(ord(c) < 32 or 0x202A <= ord(c) <= 0x202E or 0xD800 <= ord(c) <= 0xDFFF for c in shown)


@given(st.floats(min_value=0, max_value=1))
def test_percent_is_never_rounded_to_certainty(score: float) -> None:
    shown = display.percent(score)
    assert (shown == "0 %") == (score == 0)
    assert (shown == "100 %") == (score == 1)


@pytest.mark.parametrize("score", [None, float("nan"), float("inf"), "0.5"])
def test_percent_of_no_score_is_a_dash(score: object) -> None:
    assert display.percent(score) == "–"


@pytest.mark.parametrize(
    ("date", "shown"), [("20261121", "2026-11-21"), ("2026.11.21", "2026.11.21"), ("", "")]
)
def test_dicom_date(date: str, shown: str) -> None:
    assert display.dicom_date(date) == shown


@pytest.mark.parametrize(
    ("clock", "shown"),
    [("081530.123456", "08:15"), ("0815", "08:15"), ("08", "08:00"), ("", ""), ("8:15", "8:15")],
)
def test_dicom_time(clock: str, shown: str) -> None:
    assert display.dicom_time(clock) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "59 min"), (7500, "2 h 05 min"), (300000, "3 d")],
)
def test_age(seconds: float, shown: str) -> None:
    assert display.age(NOW - timedelta(seconds=seconds), now=NOW) == shown


def test_times_are_in_the_servers_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    moment, now = "2026-11-20T23:56:01.500+00:00", datetime(2026, 11, 21, 8, tzinfo=UTC)
    before = os.environ.get("TZ")
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()
    try:
        assert display.local_time(moment) == "2026-11-21 00:56:01 CET"
        assert display.clock_time(moment, now=now) == ("00:56 CET", "")
        assert display.clock_time(moment, now=now + timedelta(days=1)) == ("00:56 CET", "2026-11-21")
    finally:
        if before is None:
            monkeypatch.delenv("TZ")
        else:
            monkeypatch.setenv("TZ", before)
        time.tzset()
    assert display.local_time("soon") == "soon"


@given(st.lists(st.floats(min_value=0, max_value=1), min_size=1, max_size=300))
def test_slice_profile_stays_in_its_frame_and_names_the_highest(scores: list[float]) -> None:
    profile = slice_profile([{"probabilities": {"any": s}, "localizations": []} for s in scores])
    assert profile is not None
    assert len(profile.bars) == len(scores)
    for bar in profile.bars:
        assert 0 <= bar.x <= bar.x + bar.width <= WIDTH + 0.5
        assert 0 <= bar.y <= HEIGHT
        assert bar.y + bar.height == pytest.approx(HEIGHT, abs=0.02)
    assert f"highest in slice {1 + scores.index(max(scores))} " in profile.summary


def test_the_highest_of_a_slab_is_the_slice_that_shows_it() -> None:
    scores = [0.1, 0.1, 0.1, 0.9, 0.9, 0.9]
    profile = slice_profile(
        [
            {"probabilities": {"any": s}, "localizations": [], "shown_on": index // 3 * 3 + 1}
            for index, s in enumerate(scores)
        ]
    )
    assert profile is not None
    assert "highest in slice 5 from below" in profile.summary


def test_slice_profile_of_nothing_is_none() -> None:
    assert slice_profile([]) is None
