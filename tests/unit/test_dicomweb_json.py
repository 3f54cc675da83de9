"""Data sets as DICOM JSON, media types, and how headers are read."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ImplicitVRLittleEndian
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ich_node.errors import StudyRejected
from ich_node.web import dicomweb_headers
from ich_node.web.dicomweb_frames import object_offers
from ich_node.web.dicomweb_headers import some_of_header, whole_header
from ich_node.web.dicomweb_json import element, texts, to_json
from ich_node.web.dicomweb_media_types import Choice, Offer, choose
from ich_node.web.dicomweb_retrieve import bulk_value
from tests.small_objects import saved, small_object

JPEG_2000, EXPLICIT = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.1"


def as_json(dataset: Dataset) -> dict[str, Any]:
    written = to_json(dataset, lambda place: f"bulk/{place}")
    read: dict[str, Any] = json.loads(json.dumps(written, allow_nan=False))
    return read


def read_back(dataset: FileDataset, folder: Path) -> Dataset:
    return dcmread(saved(dataset, folder))


@given(
    st.fixed_dictionaries(
        {
            "PatientID": st.text("aä *?^=[é", max_size=12),
            "PatientComments": st.text("aä\n\\é", max_size=12),
            "SliceThickness": st.floats(-1e5, 1e5).map(lambda value: f"{value:.6g}"),
            "InstanceNumber": st.integers(-(2**31), 2**31 - 1),
            "ExposureTimeInms": st.floats(allow_nan=False, allow_infinity=False),
            "Rows": st.integers(0, 65535),
        }
    )
)
def test_values_mean_what_pydicom_reads_from_them(values: dict[str, Any]):
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    told = Dataset.from_json(as_json(dataset))
    for keyword in values:
        stored = dataset[keyword].value
        assert told[keyword].value == stored or not stored, keyword


def test_odd_values_do_not_keep_the_others_back(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    dataset = small_object()
    dataset.add_new(0x00180050, "LO", "thin")  # a DS that is no number
    dataset.add_new(0x00200032, "DS", ["1", "2", "3"])
    dataset.ExposureTimeInms = float("nan")
    dataset.PatientName = "Groß^Jörg=山田"
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.FrameIncrementPointer = 0x00181063
    dataset.OtherPatientIDsSequence = Items([Dataset(), Dataset()])
    dataset.OtherPatientIDsSequence[1].PatientID = "X"
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    told = as_json(read_back(_implicit(dataset), tmp_path))
    assert told["00180050"] == {"vr": "DS", "Value": ["thin"]}
    assert caplog.text == ""  # pydicom would quote it
    assert told["00200032"]["Value"] == [1.0, 2.0, 3.0]
    assert told["00189328"] == {"vr": "FD", "Value": ["NaN"]}
    assert told["00100010"]["Value"] == [{"Alphabetic": "Groß^Jörg", "Ideographic": "山田"}]
    assert told["00280009"]["Value"] == ["00181063"]
    assert told["00101002"]["Value"] == [{}, {"00100020": {"vr": "LO", "Value": ["X"]}}]
    assert told["00080005"]["Value"] == ["ISO_IR 192"]


def _implicit(dataset: FileDataset) -> FileDataset:
    copy = FileDataset("", dataset, preamble=b"\0" * 128, file_meta=dataset.file_meta, is_implicit_VR=True)
    return copy


def test_long_values_become_addresses_wherever_they_stand():
    item = Dataset()
    item.add_new(0x00091001, "UN", b"x" * 2000)
    dataset = Dataset()
    dataset.add_new(0x00090010, "LO", "ME")
    dataset.add_new(0x00091001, "OB", b"ab")
    dataset.add_new(0x00091002, "OW", b"ab" * 1000)
    dataset.ReferencedImageSequence = Items([Dataset(), item])
    told = as_json(dataset)
    assert told["00091001"] == {"vr": "OB", "InlineBinary": "YWI="}
    assert told["00091002"] == {"vr": "OW", "BulkDataURI": "bulk/00091002"}
    assert told["00081140"]["Value"][1]["00091001"]["BulkDataURI"] == "bulk/00081140.2.00091001"


def test_long_values_stay_in_the_file_and_are_found_there(tmp_path: Path):
    value = bytes(range(256)) * 1000
    dataset = small_object()
    dataset.add_new(0x00090010, "LO", "ME")
    dataset.add_new(0x00091002, "OB", value)
    path = saved(dataset, tmp_path)
    header = whole_header(path)
    assert as_json(header.dataset)["00091002"] == {"vr": "OB", "BulkDataURI": "bulk/00091002"}
    assert dict(header.dataset.items())[0x00091002].value is None
    assert b"".join(bulk_value(path, "00091002")) == value
    with pytest.raises(HTTPException, match="no such value"):
        bulk_value(path, "00091003")


def test_empty_values_have_none():
    assert element("StudyDescription", [""]) == {"00081030": {"vr": "LO"}}
    assert element("SeriesNumber", [7]) == {"00200011": {"vr": "IS", "Value": [7]}}
    assert texts(element("PatientName", ["A^B==C"]), "00100010") == ["A^B==C"]
    assert texts({}, "00100010") == []


def test_a_file_that_was_cut_off_is_not_taken_for_a_whole_one(tmp_path: Path):
    path = saved(small_object(), tmp_path)
    content = path.read_bytes()
    assert whole_header(path).has_pixel_data
    header_ends = content.index(b"\xe0\x7f\x10\x00")
    for length in range(140, header_ends, 7):
        path.write_bytes(content[:length])
        try:
            header = whole_header(path)
        except StudyRejected:
            continue
        assert not header.has_pixel_data
        assert dcmread(io.BytesIO(content), stop_before_pixels=True).keys() >= header.dataset.keys()


def test_a_header_that_is_built_to_hurt_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dataset = small_object()
    dataset.ReferencedImageSequence = Items([Dataset() for _ in range(5000)])
    path = tmp_path / "many.dcm"
    dcmwrite(path, dataset, enforce_file_format=True)
    whole_header(path)
    for bound in ("_MOST_ITEMS", "_MOST_BYTES", "_MOST_READS"):
        with monkeypatch.context() as patch:
            patch.setattr(dicomweb_headers, bound, 50)
            with pytest.raises(StudyRejected, match="TOO_LARGE"):
                whole_header(path)
    assert some_of_header(path, [0x00080018]).SOPInstanceUID == dataset.SOPInstanceUID


@given(st.binary(max_size=400), st.integers(0, 600))
def test_a_damaged_file_is_refused_or_read_and_nothing_else(tmp_path_factory: Any, noise: bytes, at: int):
    path = tmp_path_factory.mktemp("damaged") / "a.dcm"
    content = saved(small_object(), path.parent).read_bytes()
    path.write_bytes(content[:at] + noise + content[at + len(noise) :])
    try:
        header = whole_header(path)
    except StudyRejected:
        return
    as_json(header.dataset)


# media types


def asked(*accept: str, query: str = "") -> Request:
    headers = [(b"accept", one.encode("latin-1", "replace")) for one in accept]
    return Request({"type": "http", "headers": headers, "query_string": query.encode()})


@given(st.lists(st.text(max_size=60), max_size=4))
def test_whatever_stands_in_accept_is_an_answer_or_406(accept: list[str]):
    offers = object_offers(JPEG_2000, can_be_decoded=True)
    status = 200
    try:
        assert choose(asked(*accept), offers, single=True).offer in offers
    except HTTPException as refusal:
        status = refusal.status_code
    assert status in (200, 406)


@pytest.mark.parametrize(
    ("accept", "syntax", "is_multipart"),
    [
        ("", EXPLICIT, True),
        ("*/*", EXPLICIT, True),
        ("application/dicom", EXPLICIT, False),
        ("application/*", EXPLICIT, False),
        ("application/dicom; transfer-syntax=*", JPEG_2000, False),
        (f"application/dicom; transfer-syntax={JPEG_2000}", JPEG_2000, False),
        ('multipart/related; type="application/dicom"; transfer-syntax=*', JPEG_2000, True),
        ("multipart/related; type=application/dicom", EXPLICIT, True),
        ("multipart/related", EXPLICIT, True),
        (f"application/dicom;transfer-syntax={JPEG_2000};q=0.2, application/dicom;q=0.1", JPEG_2000, False),
        ("text/html, */*;q=0.1", EXPLICIT, True),
        (f"application/dicom;q=0, application/dicom;transfer-syntax={JPEG_2000}", JPEG_2000, False),
    ],
)
def test_the_representation_that_is_wanted_most(accept: str, syntax: str, is_multipart: bool):
    chosen = choose(asked(accept), object_offers(JPEG_2000, can_be_decoded=True), single=True)
    assert (chosen.offer.transfer_syntax_uid, chosen.is_multipart) == (syntax, is_multipart)


@pytest.mark.parametrize(
    "accept",
    ["text/html", "application/dicom;q=0", "application/dicom;q=x", "image/jpeg", "*/*;q=0",
     "application/dicom; transfer-syntax=1.2.840.10008.1.2.4.50", 'multipart/related; type="image/jpeg"'],
)  # fmt: skip
def test_what_cannot_be_had_is_said(accept: str):
    with pytest.raises(HTTPException) as refusal:
        choose(asked(accept), object_offers(JPEG_2000, can_be_decoded=True), single=True)
    assert refusal.value.status_code == 406
    assert JPEG_2000 in refusal.value.detail


def test_the_query_parameter_goes_before_the_header():
    offers = (Offer(name="image/jpeg"), Offer(name="image/png"))
    chosen = choose(asked("image/jpeg", query="accept=image%2Fpng"), offers, single=True, prefer_single=True)
    assert chosen == Choice(offer=offers[1], is_multipart=False)
