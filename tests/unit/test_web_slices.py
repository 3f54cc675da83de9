"""Frames for the browser: as stored, in HU, one at a time, within limits."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from sqlalchemy import select, update

from ich_node.database.tables import InstanceRow
from ich_node.database.web_tables import AccessRow
from ich_node.decoding import DecodeLimits, DecoderProcess
from ich_node.errors import RejectionReason, StudyRejected
from ich_node.findings import IchSubtype
from ich_node.pixels import AIR_HU, read_frames, read_pixels
from ich_node.study import Instance
from ich_node.testing.enhanced import enhanced_phantom
from ich_node.testing.phantom import HeadPhantom, head_phantom
from ich_node.testing.series import phantom_series
from ich_node.web import create_app
from ich_node.web.caller import Caller, Role
from ich_node.web.recent_views import SAME_LOOK_S, RecentViews
from ich_node.web.slice_images import slice_hu, stored_frame
from ich_node.web.slice_viewer import edge_letters
from tests.read_studies import MappingPredictor, ReadStudies, read_studies
from tests.unit.encoded_images import COMPRESSED, image, multi_frame, save, smooth_hu

LOSSLESS = (ExplicitVRLittleEndian, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless)


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess() as process:
        yield process


class _NoDecoder(DecoderProcess):
    def decode(self, *_: object, **__: object) -> Iterator[object]:  # type: ignore[override]
        raise AssertionError("nothing is to be decoded")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, *COMPRESSED])
def test_a_slice_is_what_the_reading_saw(syntax: str, tmp_path: Path, decoder: DecoderProcess) -> None:
    path = save(image(smooth_hu()[0], syntax), tmp_path)
    hu = slice_hu(path, None, decoder)
    assert hu.dtype == np.dtype("<i2")
    assert np.array_equal(hu, np.rint(read_pixels(path, None, decoder).hu))


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_any_frame_of_a_multi_frame_object(syntax: str, tmp_path: Path, decoder: DecoderProcess) -> None:
    hu = smooth_hu(3)
    path = save(multi_frame(hu, syntax, [(1, -1024), (2, -1024), (1, -1000)]), tmp_path)
    expected = [frame.hu for frame in read_frames(path, None, decoder)]
    for number in (3, 1, 2):
        assert np.array_equal(slice_hu(path, number, decoder), np.rint(expected[number - 1]))
        frame = stored_frame(path, number, decoder)
        assert np.array_equal(frame.rescaled(), expected[number - 1])
    assert stored_frame(path, 2, decoder).meaning.rescale_slope == 2


def test_only_the_frame_that_is_asked_for_is_decoded(
    tmp_path: Path, decoder: DecoderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    decode = DecoderProcess.decode

    def counted(
        self: DecoderProcess, file: int, kind: object, frames: list[object], **options: float
    ) -> object:
        asked.append(len(frames))
        return decode(self, file, kind, frames, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(DecoderProcess, "decode", counted)
    stored_frame(save(multi_frame(smooth_hu(9), RLELossless), tmp_path), 9, decoder)
    assert asked == [1]


def test_the_header_says_how_it_is_shown(tmp_path: Path) -> None:
    dataset = image(smooth_hu()[0])
    dataset.WindowCenter, dataset.WindowWidth = [40, 300], [80, 1500]
    frame = stored_frame(save(dataset, tmp_path), None, _NoDecoder())
    assert frame.pixels.dtype == np.uint16
    assert (frame.meaning.window_center, frame.meaning.window_width) == (40, 80)
    assert (frame.meaning.rescale_slope, frame.meaning.rescale_intercept) == (1, -1024)
    assert frame.photometric_interpretation == "MONOCHROME2"
    assert frame.is_padding is None


def test_windows_of_frames(tmp_path: Path) -> None:
    dataset = multi_frame(smooth_hu(2))
    for group, center in zip(dataset.PerFrameFunctionalGroupsSequence, (40, 60), strict=True):
        window = Dataset()
        window.WindowCenter, window.WindowWidth = center, 80
        group.FrameVOILUTSequence = Items([window])
    path = save(dataset, tmp_path)
    assert [stored_frame(path, n).meaning.window_center for n in (1, 2)] == [40, 60]


def test_absent_and_damaged_meaning_is_lived_with(tmp_path: Path) -> None:
    dataset = image(smooth_hu()[0])
    del dataset.RescaleSlope, dataset.RescaleIntercept
    dataset.WindowCenter, dataset.WindowWidth = 40, 0
    meaning = stored_frame(save(dataset, tmp_path), None).meaning
    assert (meaning.rescale_slope, meaning.rescale_intercept) == (1, 0)
    assert (meaning.window_center, meaning.window_width) == (None, None)


def test_padding_is_air_and_old_overlays_are_dropped(tmp_path: Path) -> None:
    dataset = multi_frame(smooth_hu(1))
    pixels = np.frombuffer(dataset.PixelData, "<u2").reshape(40, 32).copy()
    pixels[0, 0] = 3000
    pixels[5, 5] |= 0x8000  # an overlay plane in an unused bit
    dataset.PixelData, dataset.PixelPaddingValue = pixels.tobytes(), 3000
    path = save(dataset, tmp_path)
    frame = stored_frame(path, 1)
    assert frame.is_padding is not None
    assert np.argwhere(frame.is_padding).tolist() == [[0, 0]]
    assert frame.pixels[5, 5] == pixels[5, 5] & 0x0FFF
    hu = slice_hu(path, 1)
    assert hu[0, 0] == AIR_HU
    assert hu[5, 5] == smooth_hu()[0, 5, 5]


@pytest.mark.parametrize(
    ("number", "reason"), [(4, RejectionReason.NO_IMAGES), (-1, RejectionReason.NO_IMAGES)]
)
def test_a_frame_that_is_not_there(number: int, reason: RejectionReason, tmp_path: Path) -> None:
    path = save(multi_frame(smooth_hu(3)), tmp_path)
    with pytest.raises(StudyRejected) as rejected:
        stored_frame(path, number)
    assert rejected.value.reason is reason


def test_limits_hold_before_anything_is_decoded(tmp_path: Path) -> None:
    path = save(image(smooth_hu()[0], RLELossless), tmp_path)
    for ask in (stored_frame, slice_hu):
        with pytest.raises(StudyRejected) as rejected:
            ask(path, None, _NoDecoder(), limits=DecodeLimits(max_image_bytes=100))
        assert rejected.value.reason is RejectionReason.TOO_LARGE


def test_damage_is_named(tmp_path: Path, decoder: DecoderProcess) -> None:
    dataset = image(smooth_hu()[0], JPEG2000Lossless)
    path = save(dataset, tmp_path)
    content = bytearray(path.read_bytes())
    content[-200:] = b"\xff" * 200
    path.write_bytes(content)
    with pytest.raises(StudyRejected) as rejected:
        stored_frame(path, None, decoder)
    assert rejected.value.reason is RejectionReason.CORRUPT_PIXEL_DATA
    del dataset.BitsStored
    with pytest.raises(StudyRejected) as rejected:
        stored_frame(save(dataset, tmp_path), None, decoder)
    assert rejected.value.reason is RejectionReason.MISSING_ATTRIBUTE
    with pytest.raises(StudyRejected) as rejected:
        stored_frame(tmp_path / "absent.dcm", None, decoder)
    assert rejected.value.reason is RejectionReason.CORRUPT_PIXEL_DATA


# over HTTP


@dataclass
class Browser:
    """Asks the application without sockets."""

    app: FastAPI

    def get(self, path: str, **headers: str) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.get(path, headers=headers)

        return asyncio.run(ask())

    def facts(self, study: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/studies/{study}/viewer").json()
        return found

    def slice_address(self, study: str, index: int) -> str:
        facts = self.facts(study)
        return f"{facts['slices_at']}{index}?of={facts['of']}"


@pytest.fixture(scope="module")
def phantom() -> HeadPhantom:
    return head_phantom(seed=5, slices=20, rows=128, columns=120)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReadStudies]:
    with read_studies(tmp_path_factory.mktemp("node")) as studies:
        yield studies


@pytest.fixture(scope="module")
def single(node: ReadStudies, phantom: HeadPhantom) -> str:
    """Slices sent from the top down; what was read is from below."""
    return node.read(list(reversed(phantom_series(phantom, name="single"))), MappingPredictor([8, 9, 14]))


@pytest.fixture(scope="module")
def enhanced(node: ReadStudies, phantom: HeadPhantom) -> str:
    images = enhanced_phantom(phantom, name="enhanced", transfer_syntax_uid=str(RLELossless))
    return node.read(images, MappingPredictor([3]))


@pytest.fixture
def browser(node: ReadStudies) -> Browser:
    return Browser(create_app(node.node.settings, node.node.database))


def test_facts_of_the_slices(browser: Browser, single: str) -> None:
    facts = browser.facts(single)
    assert [s["suspicious"] for s in facts["slices"]].count(True) == 3
    assert facts["slices"][8]["percents"] == {"any": "82 %", "subdural": "70 %"}
    assert facts["slices"][8]["places"] == [
        {"kind": "point", "code": "subdural", "at": [40.5, 60.5], "percent": "70 %"}
    ]
    assert [(c["letters"], c["fills"]) for c in facts["classes"]] == [("ANY", False), ("SDH", True)]
    assert [s["shown_on"] for s in facts["slices"]] == list(range(20))
    geometry = facts["geometry"]
    assert (geometry["rows"], geometry["columns"]) == (128, 120)
    assert geometry["edges"] == {"right": "L", "left": "R", "bottom": "P", "top": "A"}


def test_facts_of_slabs_say_which_slice_shows_them(
    browser: Browser, node: ReadStudies, phantom: HeadPhantom
) -> None:
    study = node.read(phantom_series(phantom, name="slabs"), MappingPredictor([9], together=4))
    slices = browser.facts(study)["slices"]
    assert [s["shown_on"] for s in slices] == [index // 4 * 4 + 1 for index in range(20)]
    assert [index for index, s in enumerate(slices) if s["suspicious"]] == [8, 9, 10, 11]
    assert [index for index, s in enumerate(slices) if s["places"]] == [9]


@pytest.mark.parametrize("kind", ["single", "enhanced"])
def test_slices_come_from_below_in_hu(
    kind: str, browser: Browser, phantom: HeadPhantom, request: pytest.FixtureRequest
) -> None:
    study = request.getfixturevalue(kind)
    for index in (0, 11, 19):
        answer = browser.get(browser.slice_address(study, index))
        hu = np.frombuffer(answer.content, "<i2").reshape(128, 120)
        assert np.abs(hu - np.clip(phantom.hu[index], -1024, 3071)).max() <= 0.5
        assert answer.headers["content-encoding"] == "gzip"


def test_a_slice_is_kept_by_the_browser_and_not_decoded_twice(browser: Browser, single: str) -> None:
    address = browser.slice_address(single, 4)
    first = browser.get(address)
    assert "immutable" in first.headers["cache-control"]
    again = browser.get(address, **{"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert browser.get(browser.slice_address(single, 5)).headers["etag"] != first.headers["etag"]


def test_who_takes_no_gzip_gets_none(browser: Browser, single: str) -> None:
    address = browser.slice_address(single, 4)
    for coding in ("identity", "gzip;q=0"):
        plain = browser.get(address, **{"accept-encoding": coding})
        assert "content-encoding" not in plain.headers
        assert len(plain.content) == 2 * 128 * 120


def test_what_is_no_slice(browser: Browser, single: str, enhanced: str) -> None:
    facts = browser.facts(single)
    for path in (
        f"{facts['slices_at']}20?of={facts['of']}",
        f"{facts['slices_at']}-1?of={facts['of']}",
        f"{facts['slices_at']}0?of=0000000000000000",
        f"{facts['slices_at'].replace(single, enhanced)}0?of={facts['of']}",
        "/studies/..%2f..%2fetc/viewer",
        "/studies/9.9/viewer",
    ):
        assert browser.get(path).status_code == 404, path


def test_likelihood_maps_as_they_were_written(browser: Browser, single: str) -> None:
    address = browser.facts(single)["maps_at"]
    packed, plain = browser.get(address), browser.get(address, **{"accept-encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == plain.content
    head, _, cells = plain.content.partition(b"\n")
    assert len(json.loads(head)["maps"]) == 6
    assert len(cells) == 6 * json.loads(head)["rows"] * json.loads(head)["columns"]
    assert browser.get(address.replace(single, "1.2.3")).status_code == 404
    for number in (0, 2**31, 10**30):
        assert browser.get(f"/studies/{single}/readings/{number}/maps").status_code == 404


def test_one_look_is_one_line_in_the_access_log(node: ReadStudies, single: str) -> None:
    browser = Browser(create_app(node.node.settings, node.node.database))
    before = _looks(node, single)
    for index in range(5):
        assert browser.get(browser.slice_address(single, index)).status_code == 200
    assert _looks(node, single) == before + 1


def _looks(node: ReadStudies, study: str) -> int:
    with node.node.database.reading() as session:
        return len(session.scalars(select(AccessRow).where(AccessRow.study_instance_uid == study)).all())


def test_looks_are_told_apart_by_who_and_when() -> None:
    now = 0.0
    views = RecentViews(clock=lambda: now)
    one, other = (Caller(name=name, role=Role.VIEWER, source="10.0.0.1") for name in ("a", "b"))
    assert views.is_new(one, "1.2")
    assert not views.is_new(one, "1.2")
    assert views.is_new(other, "1.2")
    assert views.is_new(one, "1.3")
    now = SAME_LOOK_S
    assert views.is_new(one, "1.2")


def test_images_that_are_gone_or_broken_are_said_so(tmp_path: Path, phantom: HeadPhantom) -> None:
    with read_studies(tmp_path) as node:
        study = node.read(phantom_series(phantom, name="gone"), MappingPredictor([8]))
        browser = Browser(create_app(node.node.settings, node.node.database))
        address = browser.slice_address(study, 3)
        names = {path.name: path for path in node.node.settings.spool_dir.rglob("*.dcm")}
        with node.node.database.reading() as session:
            found = session.scalars(select(InstanceRow).order_by(InstanceRow.instance_number)).all()
        path = node.node.settings.spool_dir / found[3].file_name
        path.write_bytes(path.read_bytes()[:2000])
        broken = browser.get(address)
        assert broken.status_code == 422
        assert "cannot be shown" in broken.text
        path.unlink()
        assert browser.get(address).status_code == 410
        assert len(names) == 20
        with node.node.database.writing() as session:
            session.execute(update(InstanceRow).values(file_name="../../../etc/passwd"))
        assert browser.get(address).status_code == 410
        with node.node.database.writing() as session:
            for row in session.scalars(select(InstanceRow)):
                session.delete(row)
        assert browser.get(address).status_code == 410
        page = browser.get(f"/studies/{study}", accept="text/html").text
        assert 'id="slices"' not in page
        assert "The images that were read are not here" in page


@pytest.mark.parametrize(
    ("orientation", "letters"),
    [
        ((1, 0, 0, 0, 1, 0), "LRPA"),
        ((-1, 0, 0, 0, -1, 0), "RLAP"),
        ((1, 0, 0, 0, 0, -1), "LRFH"),
        ((0.9, 0.436, 0, -0.436, 0.9, 0), "LPRAPRAL"),
    ],
)
def test_edges_of_the_image(orientation: tuple[float, ...], letters: str) -> None:
    image = Instance(
        path=Path("unused"),
        sop_instance_uid="1",
        sop_class_uid="1",
        transfer_syntax_uid="1",
        series_instance_uid="1",
        study_instance_uid="1",
        image_orientation_patient=orientation,  # type: ignore[arg-type]
    )
    edges = edge_letters(image)
    assert "".join(edges[side] for side in ("right", "left", "bottom", "top")) == letters


def test_subtypes_and_letters_of_every_class() -> None:
    from ich_node.report.drawing import CLASS_COLOR
    from ich_node.report.wording import ABBREVIATION
    from ich_node.web.slice_viewer import COLORS, LETTERS

    assert {str(k): v for k, v in ABBREVIATION.items()} == LETTERS
    assert {str(k): f"#{r:02x}{g:02x}{b:02x}" for k, (r, g, b) in CLASS_COLOR.items()} == COLORS
    assert set(LETTERS) == {str(code) for code in IchSubtype}


def test_no_heavy_package_is_loaded(tmp_path: Path) -> None:
    path = save(multi_frame(smooth_hu(2), RLELossless), tmp_path)
    program = (
        "import sys, importlib.util, pathlib, types\n"
        "import ich_node\n"
        "package = types.ModuleType('ich_node.web'); package.__path__ = [ich_node.__path__[0] + '/web']\n"
        "sys.modules['ich_node.web'] = package  # without the application, for others answer for that\n"
        "from ich_node.web.slice_images import slice_hu\n"
        f"slice_hu(pathlib.Path({str(path)!r}), 2)\n"
        "print(sorted({'torch', 'highdicom', 'pynetdicom', 'skimage', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
