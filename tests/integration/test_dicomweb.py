"""QIDO-RS and WADO-RS over real sockets: dicomweb-client and plain HTTP against a real server with real objects."""

from __future__ import annotations

import io
import json
import socket
import threading
import tracemalloc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from dicomweb_client import DICOMwebClient
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from sqlalchemy import select

from ich_node.database.access import AccessAction
from ich_node.database.tables import InstanceRow, SeriesRow, StudyRow
from ich_node.database.web_tables import AccessRow
from ich_node.report.compression import Compression
from ich_node.report.result_objects import ResultKind, Wish, build_result_objects
from ich_node.web import create_app
from tests.dicomweb_node import (
    DicomwebNode,
    dicomweb_node,
    frames_of,
    placed,
    slice_of,
    values_of,
)
from tests.report_builders import make_report
from tests.stored_studies import picture, secondary_capture
from tests.unit.encoded_images import frames_of as stored_frames_of
from tests.unit.encoded_images import multi_frame, smooth_hu

DEADLINE_S = 30.0
STUDY, OTHER, DAMAGED, PURGED = "1.2.3", "1.2.4", "1.2.5", "1.2.6"
COMPRESSED = {1: ExplicitVRLittleEndian, 2: JPEGLosslessSV1, 3: JPEG2000Lossless, 4: RLELossless, 5: JPEGLSLossless,
              6: ImplicitVRLittleEndian}  # fmt: skip
"""Series of STUDY by number."""
FRAMES, NATIVE_FRAMES, COLOR = 7, 8, 9
DECODED = (("application/dicom", str(ExplicitVRLittleEndian)),)
NAME = "Groß^Jörg=山田^太郎"


@dataclass
class Served:
    node: DicomwebNode
    url: str
    stored: dict[str, Path]
    """Files by SOP Instance UID."""
    http: httpx.Client

    def client(self) -> DICOMwebClient:
        return DICOMwebClient(self.url)

    def get(self, path: str, accept: str = "*/*", **parameters: str) -> httpx.Response:
        return self.http.get(f"{self.url}{path}", headers={"Accept": accept}, params=parameters)

    def uids(self, path: str, tag: str = "0020000D", **parameters: str) -> list[str]:
        answer = self.get(path, **parameters)
        assert answer.status_code in (200, 204), answer.text
        return [one[tag]["Value"][0] for one in answer.json()] if answer.content else []

    def accesses(self) -> list[tuple[str, str | None, str | None]]:
        with self.node.database.reading() as session:
            rows = session.scalars(select(AccessRow).order_by(AccessRow.id))
            return [(row.action, row.study_instance_uid, row.detail) for row in rows]


@contextmanager
def serving(node: DicomwebNode, stored: dict[str, Path]) -> Iterator[Served]:
    listener = socket.create_server(("127.0.0.1", 0))
    app = create_app(node.settings, node.database)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    with httpx.Client(timeout=DEADLINE_S) as client:
        yield Served(node, f"http://127.0.0.1:{listener.getsockname()[1]}/dicom-web", stored, client)
    server.should_exit = True
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with dicomweb_node(tmp_path_factory.mktemp("node")) as node, serving(node, fill(node)) as served:
        yield served


def fill(node: DicomwebNode) -> dict[str, Path]:
    stored = {}

    def receive(dataset: Any) -> None:
        stored[str(dataset.SOPInstanceUID)] = node.receive(dataset)

    header: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 192",
        "PatientName": NAME,
        "PatientID": "P-1",
        "AccessionNumber": "ACC-1",
        "StudyDate": "20260228",
        "StudyTime": "0815",
        "StudyID": "S77",
        "ReferringPhysicianName": "Haus^Gregor",
        "TimezoneOffsetFromUTC": "+0100",
    }
    for series, syntax in COMPRESSED.items():
        for number in (1, 2):
            receive(slice_of(STUDY, series, number, syntax=syntax, **header))
    receive(frames_of(STUDY, FRAMES, 4, syntax=JPEG2000Lossless))
    receive(frames_of(STUDY, NATIVE_FRAMES, 3))
    color = secondary_capture(f"{STUDY}.{COLOR}.1", picture(3))
    color.Modality, color.PatientID = "OT", "P-1"
    receive(placed(color, STUDY, COLOR))
    node.read(STUDY)
    wish = Wish(kinds=frozenset(ResultKind), sc_compression=Compression.JPEG_LOSSLESS)
    node.add_results(STUDY, build_result_objects(make_report(), {"PACS": wish}))
    receive(
        slice_of(OTHER, PatientID="P_1", PatientName="Doe^Jane", AccessionNumber="50%", StudyDate="20250101")
    )
    fill_badly(node, receive)
    return stored


def fill_badly(node: DicomwebNode, receive: Any) -> None:
    for number in (1, 2):
        receive(slice_of(DAMAGED, 1, number, syntax=JPEG2000Lossless, PatientID="P-5"))
    for number in (1, 2):
        receive(slice_of(PURGED, 1, number, PatientID="P-6"))
    with node.database.writing() as session:
        row = session.get_one(StudyRow, PURGED)
        row.purged_at = row.received_at
        session.get_one(SeriesRow, f"{PURGED}.1").purged_instances = 2
        for instance in session.scalars(
            select(InstanceRow).where(InstanceRow.series_instance_uid == f"{PURGED}.1")
        ):
            session.delete(instance)


def address(sop_instance_uid: str) -> str:
    study, series, _ = sop_instance_uid.rsplit(".", 2)
    return f"/studies/{study}/series/{study}.{series}/instances/{sop_instance_uid}"


def parts_of(answer: httpx.Response) -> list[tuple[str, bytes]]:
    """Content-Type and content of the parts, read without the node's or the client's code."""
    assert answer.status_code == 200, answer.text
    kind, _, boundary = answer.headers["content-type"].partition("; boundary=")
    assert kind.startswith("multipart/related; type=")
    found = []
    for piece in answer.content.split(f"--{boundary}".encode())[1:-1]:
        head, _, content = piece.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().strip().split("\r\n"))
        found.append((headers["Content-Type"], content[:-2]))
    assert answer.content.endswith(f"--{boundary}--\r\n".encode())
    return found


# searching


def test_studies_are_found_by_every_required_key(served: Served):
    assert served.uids("/studies") == [STUDY, OTHER, PURGED, DAMAGED]
    for key, value in (
        ("StudyInstanceUID", STUDY),
        ("0020000D", f"{STUDY},1.2.999"),
        ("StudyInstanceUID", f"{STUDY}\\1.2.999"),
        ("PatientID", "P-1"),
        ("00100020", "P-?"),
        ("PatientName", "groß^JÖRG"),
        ("PatientName", "Gro*"),
        ("AccessionNumber", "ACC-1"),
        ("StudyDate", "20260228"),
        ("StudyDate", "20260101-20260301"),
        ("StudyDate", "20260101-"),
        ("StudyTime", "08-09"),
        ("StudyTime", "0815"),
        ("ModalitiesInStudy", "SEG"),
        ("StudyID", "S77"),
        ("ReferringPhysicianName", "haus*"),
    ):
        assert served.uids("/studies", **{key: value})[:1] == [STUDY], (key, value)
    for key, value in (
        ("PatientID", "p-1"),
        ("PatientID", "P"),
        ("PatientName", "Jörg"),
        ("AccessionNumber", "ACC-2"),
        ("StudyDate", "-19991231"),
        ("StudyDate", "20270101-"),
        ("StudyTime", "09-"),
        ("ModalitiesInStudy", "MR"),
        ("StudyID", "S78"),
    ):
        found = served.get("/studies", **{key: value})
        assert STUDY not in served.uids("/studies", **{key: value}), (key, value)
        assert (found.status_code, found.content) == (204, b"") or found.json()
    assert served.uids("/studies", PatientName="") == served.uids("/studies", PatientName="*")


def test_what_is_searched_for_is_data(served: Served):
    assert served.uids("/studies", AccessionNumber="50%") == [OTHER]
    assert served.uids("/studies", AccessionNumber="50%*") == [OTHER]
    assert served.uids("/studies", PatientID="P_*") == [OTHER]
    assert served.uids("/studies", PatientName="D_e*") == []
    assert served.uids("/studies", PatientID="[P]_1*") == []
    for text in (
        "' OR 1=1 --",
        "P-1' OR 'a'='a",
        '"; DROP TABLE study; --',
        "\\",
        "%",
        "_",
        "[",
        "a\x00b",
        "*' --",
    ):
        for key in ("PatientID", "PatientName", "AccessionNumber", "ModalitiesInStudy", "StudyDescription"):
            assert served.uids("/studies", **{key: text}) == [], (key, text)


def test_a_study_is_described_as_the_standard_wants(served: Served):
    assert served.client().search_for_studies(search_filters={"StudyInstanceUID": STUDY})
    (one,) = served.get("/studies", StudyInstanceUID=STUDY).json()
    assert one["00100010"]["Value"] == [{"Alphabetic": "Groß^Jörg", "Ideographic": "山田^太郎"}]
    assert one["00080090"]["Value"] == [{"Alphabetic": "Haus^Gregor"}]
    assert one["00080201"]["Value"] == ["+0100"]
    assert one["00200010"]["Value"] == ["S77"]
    assert one["00080056"]["Value"] == ["ONLINE"]
    assert one["00080061"]["Value"] == ["CT", "KO", "OT", "PR", "SEG", "SR"]
    assert one["00081190"]["Value"] == [f"{served.url}/studies/{STUDY}"]
    for tag in (
        "00080020",
        "00080030",
        "00080050",
        "00100020",
        "00100030",
        "00100040",
        "00201206",
        "00201208",
    ):
        assert tag in one
    assert list(one) == sorted(one)
    series = served.client().search_for_series(STUDY)
    assert one["00201206"]["Value"] == [len(series)]
    assert one["00201208"]["Value"] == [sum(s["00201209"]["Value"][0] for s in series)]
    assert one["00201208"]["Value"] == [len(served.client().search_for_instances(STUDY))]


def test_series_and_objects_are_described_as_the_standard_wants(served: Served):
    client = served.client()
    (series,) = client.search_for_series(STUDY, search_filters={"SeriesNumber": "007"})
    assert series["0020000E"]["Value"] == [f"{STUDY}.{FRAMES}"]
    assert series["00080060"]["Value"] == ["CT"]
    assert "00100010" not in series
    (series, *_) = client.search_for_series(search_filters={"Modality": "SEG"})
    assert series["00100020"]["Value"] == ["P-1"]  # all series: with what describes their study
    assert len(client.search_for_instances(STUDY, f"{STUDY}.{FRAMES}")) == 1
    (one,) = served.get(f"/studies/{STUDY}/series/{STUDY}.{FRAMES}/instances").json()
    assert (one["00280008"]["Value"], one["00280010"]["Value"], one["00280100"]["Value"]) == ([4], [40], [16])
    assert one["00081190"]["Value"] == [f"{served.url}{address(f'{STUDY}.{FRAMES}.1')}"]
    assert "00080060" not in one
    (one,) = client.search_for_instances(search_filters={"SOPInstanceUID": f"{STUDY}.2.1"})
    assert (one["00100020"]["Value"], one["00080060"]["Value"]) == (["P-1"], ["CT"])
    made = str(dcmread(served.node.result_files()[0]).SOPInstanceUID)
    assert served.uids("/instances", "00080018", SOPInstanceUID=made) == [made]


def test_attributes_that_are_in_no_column_are_matched_and_included(served: Served):
    assert len(served.uids(f"/studies/{STUDY}/series", BodyPartExamined="HEAD", Modality="CT")) == 8
    assert served.uids("/series", **{"00400275.00400009": "SPS1"}) == []
    assert (
        len(served.uids(f"/studies/{STUDY}/instances", Rows="40", SOPClassUID="1.2.840.10008.5.1.4.1.1.2"))
        == 12
    )
    (one,) = served.get("/studies", StudyID="S77", includefield="PatientAge,00101030,StudyDescription").json()
    assert "00101010" not in one  # the study has none
    (one,) = served.get(
        f"/studies/{STUDY}/series/{STUDY}.1/instances", InstanceNumber="2", includefield="all"
    ).json()
    assert one["00180015"]["Value"] == ["HEAD"]
    assert one["00100020"]["Value"] == ["P-1"]


def test_pages_and_warnings(served: Served):
    whole = served.uids(f"/studies/{STUDY}/instances", "00080018")
    paged = [
        uid
        for offset in range(0, len(whole) + 5, 5)
        for uid in served.uids(f"/studies/{STUDY}/instances", "00080018", limit="5", offset=str(offset))
    ]
    assert paged == whole
    first = served.get("/studies", limit="1")
    assert first.headers["warning"] == (
        f'299 {served.url}: "There are 3 additional results that can be requested"'
    )
    assert "warning" not in served.get("/studies", limit="4").headers
    assert "additional results" in served.get("/series", limit="1").headers["warning"]
    fuzzy = served.get("/studies", fuzzymatching="true", PatientName="Gros*")
    assert (fuzzy.status_code, "Only literal matching" in fuzzy.headers["warning"]) == (204, True)
    assert len(served.client().search_for_instances(get_remaining=True, limit=7)) == len(whole) + 3
    assert served.get("/studies", limit="0").status_code == 204


def test_a_search_that_cannot_be_understood_is_refused_with_a_line(served: Served):
    for parameters, word in (
        ({"PatientNam": "x"}, "PatientNam"),
        ({"StudyDate": "2026-02-28"}, "YYYYMMDD"),
        ({"StudyTime": "25:00"}, "HHMMSS"),
        ({"limit": "-1"}, "limit"),
        ({"limit": "1e9"}, "limit"),
        ({"offset": "²"}, "offset"),
        ({"fuzzymatching": "maybe"}, "fuzzymatching"),
        ({"Modality": "CT"}, "series level"),
        ({"SOPInstanceUID": "1.2"}, "instance level"),
        ({"includefield": "Nonsense"}, "Nonsense"),
        ({"PatientName": "*a" * 9}, "asterisks"),
        ({"PatientID": "x" * 5000}, "too long"),
        ({"StudyInstanceUID": ",".join("1" * 9 for _ in range(400))}, "values"),
        ({"PixelData": "x"}, "instance level"),
        ({"<script>": "x"}, "<script>"),
        ({f"0040{n:04X}": "x" for n in range(40)}, "32 keys"),
    ):
        answer = served.get("/studies", **parameters)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "text/plain; charset=utf-8")
        assert word in answer.text
        assert answer.text.count("\n") == 1
    assert served.get("/studies", accept="application/dicom+xml").status_code == 406
    assert served.get("/studies", accept='multipart/related; type="application/dicom+xml"').status_code == 406
    assert served.get("/studies", accept="application/json").headers["content-type"] == "application/json"
    assert served.get("/studies/1.2.3%2f..%2f..%2fetc/series").status_code == 404
    assert served.get("/studies/../../etc/passwd").status_code == 404


# retrieving


@pytest.mark.parametrize("series", COMPRESSED)
def test_an_object_comes_with_the_bytes_that_were_stored(served: Served, series: int):
    uid = f"{STUDY}.{series}.1"
    asked = 'multipart/related; type="application/dicom"; transfer-syntax=*'
    ((content_type, content),) = parts_of(served.get(address(uid), asked))
    assert content == served.stored[uid].read_bytes()
    assert content_type == f"application/dicom; transfer-syntax={COMPRESSED[series]}"
    syntax = COMPRESSED[series]
    ((_, content),) = parts_of(served.get(address(uid), asked.replace("*", syntax)))
    assert content == served.stored[uid].read_bytes()
    single = served.get(address(uid), "application/dicom; transfer-syntax=*")
    assert single.content == served.stored[uid].read_bytes()


@pytest.mark.parametrize("series", [*COMPRESSED, FRAMES, NATIVE_FRAMES, COLOR])
def test_an_object_comes_decoded_where_nothing_else_is_asked_for(served: Served, series: int):
    uid = f"{STUDY}.{series}.1"
    decoded = served.client().retrieve_instance(STUDY, f"{STUDY}.{series}", uid, media_types=DECODED)
    stored = dcmread(served.stored[uid])
    assert decoded.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    np.testing.assert_array_equal(decoded.pixel_array, stored.pixel_array)
    del decoded.PixelData, stored.PixelData
    assert decoded.to_json_dict() == stored.to_json_dict()


def test_a_study_and_a_series_come_whole(served: Served):
    client = served.client()
    found = list(client.iter_study(STUDY, media_types=DECODED))
    assert len(found) == len(served.uids(f"/studies/{STUDY}/instances"))
    assert {one.file_meta.TransferSyntaxUID for one in found} == {ExplicitVRLittleEndian}
    assert len(client.retrieve_series(STUDY, f"{STUDY}.2")) == 2
    stored = parts_of(
        served.get(f"/studies/{STUDY}", 'multipart/related; type="application/dicom"; transfer-syntax=*')
    )
    by_uid = {str(dcmread(io.BytesIO(content)).SOPInstanceUID): content for _, content in stored}
    for uid, path in served.stored.items():
        if uid.startswith(f"{STUDY}."):
            assert by_uid[uid] == path.read_bytes()
    for path in served.node.result_files():
        assert by_uid[str(dcmread(path).SOPInstanceUID)] == path.read_bytes()


def test_results_come_as_they_were_made_and_decoded(served: Served):
    for path in served.node.result_files():
        made = dcmread(path)
        decoded = served.client().retrieve_instance(
            STUDY, str(made.SeriesInstanceUID), str(made.SOPInstanceUID), media_types=DECODED
        )
        assert decoded.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        if "PixelData" in made:
            np.testing.assert_array_equal(decoded.pixel_array, made.pixel_array)


def test_metadata_says_what_the_objects_say(served: Served):
    for uid in (f"{STUDY}.1.1", f"{STUDY}.6.1", f"{STUDY}.{FRAMES}.1"):
        study, series = STUDY, uid.rpartition(".")[0]
        (entry,) = served.get(f"{address(uid)}/metadata").json()
        assert served.client().retrieve_instance_metadata(study, series, uid).keys() == entry.keys()
        told = Dataset.from_json({tag: one for tag, one in entry.items() if "BulkDataURI" not in one})
        stored = dcmread(served.stored[uid])
        del stored.PixelData
        stored.SpecificCharacterSet = "ISO_IR 192"
        told.SpecificCharacterSet = "ISO_IR 192"
        assert told == Dataset.from_json(stored.to_json())
        assert entry["7FE00010"]["BulkDataURI"] == f"{served.url}{address(uid)}/bulkdata/7FE00010"
        assert "00020010" not in entry
    whole = served.client().retrieve_study_metadata(STUDY)
    assert len(whole) == len(served.uids(f"/studies/{STUDY}/instances"))
    assert len(served.client().retrieve_series_metadata(STUDY, f"{STUDY}.3")) == 2


def test_long_values_are_where_metadata_says(served: Served):
    uid = f"{STUDY}.{NATIVE_FRAMES}.1"
    (entry,) = served.get(f"{address(uid)}/metadata").json()
    (content,) = served.client().retrieve_bulkdata(entry["7FE00010"]["BulkDataURI"])
    assert content == dcmread(served.stored[uid]).PixelData
    compressed = served.client().retrieve_bulkdata(
        f"{served.url}{address(f'{STUDY}.{FRAMES}.1')}/bulkdata/7FE00010",
        media_types=(("image/jp2", JPEG2000Lossless),),
    )
    assert compressed == stored_frames_of(dcmread(served.stored[f"{STUDY}.{FRAMES}.1"]))
    for place in ("00091002", "7FE00010.1", "../../x", "00400275.1.00400007", "zz"):
        assert served.get(f"{address(uid)}/bulkdata/{place}").status_code == 404


@pytest.mark.parametrize("series", [*COMPRESSED, FRAMES, NATIVE_FRAMES])
def test_frames_come_decoded_and_as_they_are_stored(served: Served, series: int):
    uid = f"{STUDY}.{series}.1"
    stored = dcmread(served.stored[uid])
    values = np.atleast_3d(values_of(served.stored[uid]))
    count = int(stored.get("NumberOfFrames", 1))
    values = values_of(served.stored[uid]).reshape(count, stored.Rows, stored.Columns)
    numbers = [count, 1] if count > 1 else [1]
    got = served.client().retrieve_instance_frames(
        STUDY, f"{STUDY}.{series}", uid, numbers, media_types=("application/octet-stream",)
    )
    for number, content in zip(numbers, got, strict=True):
        assert content == values[number - 1].astype("<u2").tobytes()
    if stored.file_meta.TransferSyntaxUID.is_encapsulated:
        for asked in ('type="application/octet-stream"; transfer-syntax=*', 'type="image/*"'):
            parts = parts_of(served.get(f"{address(uid)}/frames/{count}", f"multipart/related; {asked}"))
            ((content_type, content),) = parts
            assert content == stored_frames_of(stored)[count - 1]
            assert content_type.endswith(f"; transfer-syntax={stored.file_meta.TransferSyntaxUID}")


def test_what_is_wanted_most_is_sent(served: Served):
    frame = f"{address(f'{STUDY}.3.1')}/frames/1"
    multi = "multipart/related"
    for accept, expected in (
        (
            f'{multi}; type="image/jp2"; q=0.5, {multi}; type="application/octet-stream"; q=0.9',
            "application/octet-stream",
        ),
        (f'{multi}; type="image/jp2"; q=0.9, {multi}; type="application/octet-stream"; q=0.1', "image/jp2"),
        (f'{multi}; type="image/jpeg", {multi}; type="image/jp2"; q=0.1', "image/jp2"),
        ("*/*", "application/octet-stream"),
        (f'{multi}; type="application/octet-stream"; q=0, {multi}', "image/jp2"),
    ):
        ((content_type, _),) = parts_of(served.get(frame, accept))
        assert content_type.partition(";")[0] == expected, accept
    single = served.get(frame, "image/jp2")
    assert (single.status_code, single.headers["content-type"].partition(";")[0]) == (200, "image/jp2")
    assert served.get(frame, "text/html").status_code == 406
    refused = served.get(frame, f'{multi}; type="image/jpeg"')
    assert refused.status_code == 406
    assert 'type="image/jp2"' in refused.text
    by_query = served.http.get(
        f"{served.url}{frame}", params={"accept": "image/jp2"}, headers={"Accept": "text/html"}
    )
    assert by_query.status_code == 200
    odd = f'{multi}; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.50'
    assert served.get(address(f"{STUDY}.3.1"), odd).status_code == 406


def test_frames_that_are_none_are_refused(served: Served):
    uid = f"{STUDY}.{FRAMES}.1"
    for frames, status in (("0", 400), ("-1", 400), ("a", 400), ("1,", 400), ("5", 404), ("1,5", 404), ("²", 400),
                           ("1" * 30, 400), (",".join(["1"] * 5000), 400)):  # fmt: skip
        assert served.get(f"{address(uid)}/frames/{frames}").status_code == status, frames
    report = next(p for p in served.node.result_files() if dcmread(p).Modality == "SR")
    made = dcmread(report)
    place = f"/studies/{STUDY}/series/{made.SeriesInstanceUID}/instances/{made.SOPInstanceUID}"
    assert served.get(f"{place}/frames/1").status_code == 406
    assert served.get(f"{place}/rendered").status_code == 406


# pictures


def picture_of(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)))


@pytest.mark.parametrize("series", [*COMPRESSED, NATIVE_FRAMES, FRAMES])
def test_a_frame_is_drawn_in_the_window_that_is_asked_for(served: Served, series: int):
    path = f"{address(f'{STUDY}.{series}.1')}/frames/1/rendered"
    shown = picture_of(served.get(path, "image/png", window="40,80,linear"))
    hu = smooth_hu(4)[0]
    expected = np.clip(((hu - 39.5) / 79 + 0.5) * 255, 0, 255)
    assert shown.shape == hu.shape
    assert np.abs(shown - expected).max() <= 1
    exact = picture_of(served.get(path, "image/png", window="40,80,linear-exact"))
    assert np.abs(exact - np.clip(((hu - 40) / 80 + 0.5) * 255, 0, 255)).max() <= 1
    sigmoid = picture_of(served.get(path, "image/png", window="40,80,sigmoid"))
    assert np.abs(sigmoid - 255 / (1 + np.exp(-4 * (hu.astype(float) - 40) / 80))).max() <= 1


def test_viewports_scale_crop_and_mirror(served: Served):
    path = f"{address(f'{STUDY}.1.1')}/rendered"
    whole = picture_of(served.get(path, "image/png"))
    assert whole.shape == (40, 32)
    assert picture_of(served.get(path, "image/png", viewport="64,64")).shape == (64, 51)
    region = picture_of(served.get(path, "image/png", viewport="8,10,4,6,8,10"))
    np.testing.assert_array_equal(region, whole[6:16, 4:12])
    mirrored = picture_of(served.get(path, "image/png", viewport="32,40,0,0,-32,-40"))
    np.testing.assert_array_equal(mirrored, whole[::-1, ::-1])
    small = served.get(path, "image/jpeg", quality="5").content
    assert len(small) < len(served.get(path, "image/jpeg", quality="100").content)
    for parameters in ({"viewport": "0,0"}, {"viewport": "9999,1"}, {"viewport": "8,8,100,0,4,4"}, {"window": "1"},
                       {"viewport": "8,8,nan,0,4,4"}, {"window": "40,0,linear"}, {"window": "1e99,80"},
                       {"window": "40,80,x"}, {"quality": "0"}, {"quality": "101"}):  # fmt: skip
        assert served.get(path, "image/png", **parameters).status_code == 400, parameters


def test_pictures_of_captures_and_thumbnails(served: Served):
    for path in served.node.result_files():
        made = dcmread(path)
        if made.Modality != "OT" or made.get("SamplesPerPixel") != 3:
            continue
        place = f"/studies/{STUDY}/series/{made.SeriesInstanceUID}/instances/{made.SOPInstanceUID}"
        np.testing.assert_array_equal(
            picture_of(served.get(f"{place}/rendered", "image/png")), made.pixel_array
        )
    color = served.client().retrieve_instance_rendered(
        STUDY, f"{STUDY}.{COLOR}", f"{STUDY}.{COLOR}.1", media_types=("image/png",)
    )
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(color))), picture(3))
    for path in (f"/studies/{STUDY}", f"/studies/{STUDY}/series/{STUDY}.{FRAMES}", address(f"{STUDY}.1.1")):
        answer = served.get(f"{path}/thumbnail")
        assert answer.headers["content-type"] == "image/jpeg"
        assert max(picture_of(answer).shape[:2]) == 128
    all_of_it = parts_of(
        served.get(f"/studies/{STUDY}/series/{STUDY}.{FRAMES}/rendered", "multipart/related; type=image/png")
    )
    assert len(all_of_it) == 4
    refused = served.get(f"{address(f'{STUDY}.{FRAMES}.1')}/rendered", "image/png")
    assert (refused.status_code, "frames/1/rendered" in refused.text) == (406, True)


# what is not there, not whole, not allowed


def test_what_is_not_here_and_what_was(served: Served):
    assert served.get("/studies/1.9").status_code == 404
    assert served.get(f"/studies/{STUDY}/series/1.9").status_code == 404
    assert served.get(f"/studies/{STUDY}/series/{STUDY}.1/instances/{STUDY}.2.1").status_code == 404
    assert served.get(f"/studies/{OTHER}/series/{STUDY}.1/instances/{STUDY}.1.1/metadata").status_code == 404
    for path in (
        "",
        f"/series/{PURGED}.1",
        f"/series/{PURGED}.1/instances/{PURGED}.1.1",
        "/metadata",
        "/thumbnail",
    ):
        gone = served.get(f"/studies/{PURGED}{path}")
        assert (gone.status_code, "purged" in gone.text) == (410, True)
    assert served.get(f"/studies/{PURGED}/series/1.9").status_code == 404
    (one,) = served.get("/studies", PatientID="P-6").json()
    assert (one["00080056"]["Value"], "00081190" in one) == (["UNAVAILABLE"], False)


def test_a_damaged_object_is_told_and_others_go_on(served: Served):
    damaged, whole = served.stored[f"{DAMAGED}.1.1"], served.stored[f"{DAMAGED}.1.2"]
    content = damaged.read_bytes()
    try:
        damaged.write_bytes(content[: len(content) // 2])
        place = address(f"{DAMAGED}.1.1")
        for path in (place, f"{place}/frames/1", f"{place}/rendered", f"{place}/thumbnail"):
            assert served.get(path).status_code in (406, 422), path
        stored = served.get(place, "application/dicom; transfer-syntax=*")
        assert stored.content == damaged.read_bytes()
        damaged.write_bytes(b"nothing of this is DICOM" * 50)
        assert served.get(f"{place}/metadata").status_code == 422
        entries = served.get(f"/studies/{DAMAGED}/metadata").json()
        assert len(entries) == 2
        assert list(entries[0]) == ["00080016", "00080018", "0020000D", "0020000E"]
        damaged.unlink()
        assert served.get(place).status_code == 410
        assert served.get(address(f"{DAMAGED}.1.2")).status_code == 200
        assert whole.exists()
    finally:
        damaged.write_bytes(content)


def test_an_answer_that_breaks_off_does_not_look_whole(served: Served):
    second = served.stored[f"{DAMAGED}.1.2"]
    content = second.read_bytes()
    stream = stored_frames_of(dcmread(second))[0]
    try:
        second.write_bytes(content.replace(stream[40:], bytes(len(stream) - 40)))
        with pytest.raises(httpx.HTTPError):
            served.get(f"/studies/{DAMAGED}")
    finally:
        second.write_bytes(content)


def test_every_look_is_in_the_access_log_once_a_request(served: Served):
    before = len(served.accesses())
    served.get(f"/studies/{STUDY}")
    served.get(f"/studies/{STUDY}/metadata")
    served.get("/studies", PatientID="P*")
    served.get(f"/studies/{STUDY}/series")
    served.get("/studies")
    seen = [(action, study) for action, study, _ in served.accesses()[before:]]
    assert seen[:2] == [(AccessAction.RETRIEVE, STUDY)] * 2
    assert seen[2:6] == [(AccessAction.QUERY, uid) for uid in (STUDY, OTHER, PURGED, DAMAGED)]
    assert seen[6:] == [(AccessAction.QUERY, STUDY), (AccessAction.QUERY, None)]
    assert not any("P*" in (detail or "") for _, _, detail in served.accesses()[before:])


def test_the_openapi_names_every_address(served: Served):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of addresses that are not published
        described = create_app(served.node.settings, served.node.database).openapi()["paths"]
    ours = {path: one for path, one in described.items() if path.startswith("/dicom-web/")}
    for path in (
        "/dicom-web/studies",
        "/dicom-web/studies/{study_instance_uid}/series/{series_instance_uid}/instances/{sop_instance_uid}/frames/{frames}",
    ):
        operation = ours[path]["get"]
        assert {"200", "400", "404", "406", "410"} <= set(operation["responses"])
        named = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
        assert all(f"{{{name}}}" in path for name in named)
    assert json.dumps(ours)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_memory_does_not_grow_with_the_study(tmp_path: Path, syntax: str):
    with dicomweb_node(tmp_path) as node:
        whole = multi_frame(np.zeros((8, 256, 256)), syntax)  # 1 MiB each
        for number in range(1, 25):
            node.receive(placed(whole, "1.2.8", 1, number))
        with serving(node, {}) as served:
            served.get("/studies/1.2.8/thumbnail")  # whatever is loaded once is loaded
            tracemalloc.start()
            try:
                with served.http.stream("GET", f"{served.url}/studies/1.2.8") as answer:
                    size = sum(len(piece) for piece in answer.iter_bytes())
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    assert size > 24 * 2**20
    assert peak < 8 * 2**20
