"""STOW-RS without a web server: parts, files, sessions and the answer."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
)
from pynetdicom import AllStoragePresentationContexts

from ich_node.receive import incoming_file, stow
from ich_node.receive.accepted import STORAGE_SOP_CLASS_UIDS, TRANSFER_SYNTAXES
from ich_node.receive.arrival import Gate
from ich_node.receive.incoming_file import NotPart10, read_file_meta
from ich_node.receive.limits import AllowedPeer, Limits
from ich_node.receive.multipart_related import MediaType, MultipartError, MultipartReader, is_boundary
from ich_node.receive.received import AssociationSummary, ReceivedInstance
from ich_node.receive.spool import Spool, SpoolWriter, part10_header
from ich_node.receive.store_response import ResponseType, StoreReport, choose_response_type
from ich_node.receive.stow import SOURCE_AE_TITLE, BodyTooLarge, StoreDesk, StoreSession
from tests.small_objects import PATIENT_ID, PATIENT_NAME, ROOT, data_set_of, encoded, small_object

BOUNDARY = "b-01"


def part10(dataset: FileDataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def part10_of(
    data_set: bytes,
    *,
    instance: str,
    transfer_syntax: str = ExplicitVRLittleEndian,
    sop_class: str = CTImageStorage,
) -> bytes:
    """A file whose File Meta Information says what it likes."""
    header = part10_header(
        sop_class_uid=sop_class,
        sop_instance_uid=instance,
        transfer_syntax_uid=transfer_syntax,
        source_ae_title="SENDER",
    )
    return header + data_set


def body_of(
    *files: bytes, boundary: str = BOUNDARY, header: str = "Content-Type: application/dicom\r\n"
) -> bytes:
    delimiter = b"--" + boundary.encode()
    parts = b"".join(delimiter + b"\r\n" + header.encode() + b"\r\n" + content + b"\r\n" for content in files)
    return parts + delimiter + b"--\r\n"


@dataclass
class Desk:
    """A desk on a folder, and what it has handed on."""

    spool: Spool
    handed_on: list[ReceivedInstance | AssociationSummary] = field(default_factory=list)
    gate: Gate = field(default_factory=Gate)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.desk = StoreDesk(
            spool=self.spool, hand_on=self.handed_on.append, gate=self.gate, limits=self.limits
        )

    def open(self, *, boundary: str | None = BOUNDARY, study: str | None = None) -> StoreSession:
        return self.desk.open(boundary=boundary, study_instance_uid=study, host="127.0.0.1")

    def store(self, body: bytes, *, pieces: int = 65536, study: str | None = None) -> StoreReport:
        session = self.open(study=study)
        for start in range(0, len(body), pieces):
            session.feed(body[start : start + pieces])
        return session.finish()

    @property
    def files(self) -> list[Path]:
        return list(self.spool.scan())

    @property
    def summary(self) -> AssociationSummary:
        summaries = [one for one in self.handed_on if isinstance(one, AssociationSummary)]
        assert len(summaries) == 1
        assert self.handed_on[-1] is summaries[0]
        return summaries[0]

    def is_clean(self) -> bool:
        return not list(self.spool.root.glob("incoming/*"))


@pytest.fixture
def open_desk(tmp_path: Path) -> Callable[..., Desk]:
    return lambda **options: Desk(spool=Spool(tmp_path / "spool"), **options)


@pytest.fixture
def desk(open_desk: Callable[..., Desk]) -> Desk:
    return open_desk()


# --- what is accepted ---------------------------------------------------------------------------------------


def test_accepted_sop_classes_are_those_that_pynetdicom_knows() -> None:
    assert set(STORAGE_SOP_CLASS_UIDS) == {str(c.abstract_syntax) for c in AllStoragePresentationContexts}
    assert len(set(STORAGE_SOP_CLASS_UIDS)) == len(STORAGE_SOP_CLASS_UIDS)


def test_a_process_that_serves_stow_loads_no_pynetdicom() -> None:
    code = "import sys, ich_node.web.stow; sys.exit('pynetdicom' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- media types and parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "name", "parameters"),
    [
        (
            'multipart/related; type="application/dicom"; boundary=abc',
            "multipart/related",
            {"type": "application/dicom", "boundary": "abc"},
        ),
        ("Multipart/Related;BOUNDARY=aBc ; Type=x", "multipart/related", {"boundary": "aBc", "type": "x"}),
        (r'multipart/related; boundary="a\"b;c=\\d"', "multipart/related", {"boundary": r'a"b;c=\d'}),
        ('multipart/related; boundary="with space"; start="<a@b>"', "multipart/related",
         {"boundary": "with space", "start": "<a@b>"}),
        ("application/dicom", "application/dicom", {}),
        ("", "", {}),
    ],
)  # fmt: skip
def test_media_type(header: str, name: str, parameters: dict[str, str]) -> None:
    assert MediaType.parse(header) == MediaType(name=name, parameters=parameters)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=200))
def test_any_media_type_can_be_read(header: str) -> None:
    MediaType.parse(header)
    MediaType.parse(f"multipart/related; {header}")
    choose_response_type(header)


@pytest.mark.parametrize("text", ["a", "a b", "'()+_,-./:=?", "a" * 70, 'a"b'])
def test_boundaries(text: str) -> None:
    assert is_boundary(text)


@pytest.mark.parametrize("text", ["", "a ", "a" * 71, "a\rb", "é"])
def test_no_boundaries(text: str) -> None:
    assert not is_boundary(text)


@dataclass
class Parts:
    """What a reader finds."""

    found: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    whole: int = 0

    def begin_part(self, headers: dict[str, str]) -> None:
        self.found.append((headers, b""))

    def take(self, fragment: memoryview) -> None:
        headers, content = self.found[-1]
        self.found[-1] = (headers, content + bytes(fragment))

    def end_part(self) -> None:
        self.whole += 1


def read_parts(body: bytes, *, boundary: str = BOUNDARY, cuts: list[int] | None = None) -> Parts:
    parts = Parts()
    reader = MultipartReader(boundary, parts)
    places = [0, *sorted(cut for cut in cuts or [] if cut < len(body)), len(body)]
    for start, end in itertools.pairwise(places):
        reader.feed(body[start:end])
    reader.close()
    assert parts.whole == len(parts.found)
    return parts


def contents(parts: Parts) -> list[bytes]:
    return [content for _, content in parts.found]


# Pieces that make it likely to meet what almost is a boundary.
_PIECES = [
    b"\r",
    b"\n",
    b"-",
    b"--",
    b"\r\n",
    b"\r\n--",
    b"\r\n--b-0",
    b"\r\n--b-01x",
    b"\r\n--b-01\rx",
    b"b-01",
    b"x",
]
_DELIMITER = re.compile(rb"\r\n--b-01(\r\n|--|[ \t])")


def _holds_no_delimiter(content: bytes) -> bool:
    found = _DELIMITER.search(content + b"\r\n--b-01\r\n")
    return found is not None and found.start() == len(content)


_CONTENT = st.lists(st.sampled_from(_PIECES), max_size=8).map(b"".join).filter(_holds_no_delimiter)


@settings(max_examples=300)
@given(files=st.lists(_CONTENT, min_size=1, max_size=4), cuts=st.lists(st.integers(0, 400), max_size=8))
def test_parts_come_out_as_they_went_in_wherever_the_network_cuts(
    files: list[bytes], cuts: list[int]
) -> None:
    assert contents(read_parts(body_of(*files), cuts=cuts)) == files


def test_every_cut_into_two_and_into_single_bytes() -> None:
    body = b"preamble\r\n" + body_of(b"one\r\n", b"", b"\r\n--b-0") + b"epilogue"
    for cut in range(len(body)):
        assert contents(read_parts(body, cuts=[cut])) == [b"one\r\n", b"", b"\r\n--b-0"]
    assert contents(read_parts(body, cuts=list(range(len(body))))) == [b"one\r\n", b"", b"\r\n--b-0"]


@pytest.mark.parametrize(
    "preamble",
    [
        b"",
        b"\r\n",
        b"This is a message in several parts.\r\n",
        b"--b-01x\r\nline\r\n",
        b"a --b-01\r\n\r\n\r\n",
    ],
)
def test_text_before_and_after_the_parts_is_passed_over(preamble: bytes) -> None:
    body = preamble + body_of(b"one", b"two") + b"epilogue\r\n--b-01\r\n\r\nnot a part\r\n--b-01--\r\n"
    assert contents(read_parts(body)) == [b"one", b"two"]
    assert contents(read_parts(body, cuts=list(range(len(body))))) == [b"one", b"two"]


@pytest.mark.parametrize(("before", "is_found"), [(8190, True), (8191, False), (20_000, False)])
@pytest.mark.parametrize("ending", [b"--\r\n", b" " * 64 + b"\r\n\r\none\r\n--b-01--"])
def test_a_first_boundary_that_comes_too_late_does_so_however_the_network_cuts(
    before: int, is_found: bool, ending: bytes
) -> None:
    body = b"x" * before + b"\r\n--b-01" + ending
    for cuts in ([], [before], [before + 4], [before + 8], [before + 12], list(range(0, len(body), 97))):
        if is_found:
            assert contents(read_parts(body, cuts=cuts)) == ([] if ending.startswith(b"--") else [b"one"])
        else:
            with pytest.raises(MultipartError, match="where the first part should begin"):
                read_parts(body, cuts=cuts)


def test_white_space_after_a_boundary() -> None:
    body = b"--b-01 \t\r\n\r\none\r\n--b-01  \r\n\r\ntwo\r\n--b-01--"
    assert contents(read_parts(body)) == [b"one", b"two"]


def test_headers_of_parts() -> None:
    headers = "CONTENT-type:  application/dicom; x=y \r\nContent-Location: a:b\r\n"
    ((found, _),) = read_parts(body_of(b"one", header=headers), cuts=[20, 21, 40]).found
    assert found == {"content-type": "application/dicom; x=y", "content-location": "a:b"}
    assert read_parts(body_of(b"one", header="")).found == [({}, b"one")]


@pytest.mark.parametrize("boundary", ['a"b', "a b", "(x)+*?[.", "a" * 70])
def test_odd_boundaries(boundary: str) -> None:
    assert contents(read_parts(body_of(b"one", b"two", boundary=boundary), boundary=boundary)) == [
        b"one",
        b"two",
    ]


def test_a_message_without_parts() -> None:
    assert read_parts(b"--b-01--\r\n").found == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no boundary at all",
        body_of(b"one")[:-4],
        body_of(b"one")[:-6] + b"\r\n",
        b"--b-01\r\nno header\r\n\r\none\r\n--b-01--",
        b"--b-01\r\n" + b"A: b\r\n" * 100 + b"\r\none\r\n--b-01--",
        b"--b-01\r\nA: " + b"b" * 100_000 + b"\r\n\r\none\r\n--b-01--",
        b"x" * 100_000 + b"\r\n" + body_of(b"one"),
    ],
)
def test_what_is_no_multipart_body(body: bytes) -> None:
    with pytest.raises(MultipartError):
        read_parts(body, cuts=list(range(0, len(body), 500)))


# --- DICOM files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transfer_syntax", TRANSFER_SYNTAXES)
def test_file_meta(transfer_syntax: UID) -> None:
    dataset = small_object(transfer_syntax_uid=ExplicitVRLittleEndian)
    content = part10_of(encoded(dataset), instance=dataset.SOPInstanceUID, transfer_syntax=transfer_syntax)
    meta = read_file_meta(content[:65536])
    assert (meta.sop_class_uid, meta.sop_instance_uid) == (CTImageStorage, dataset.SOPInstanceUID)
    assert meta.transfer_syntax_uid == transfer_syntax
    assert content[meta.data_set_at :] == encoded(dataset)


def test_file_meta_of_pydicom_with_long_and_private_elements() -> None:
    dataset = small_object()
    dataset.file_meta.PrivateInformationCreatorUID = "1.2.3"
    dataset.file_meta.PrivateInformation = b"\x02\x00" * 1000
    content = part10(dataset)
    assert content[read_file_meta(content).data_set_at :] == encoded(dataset)


def test_a_wrong_group_length_misleads_nobody() -> None:
    dataset = small_object()
    content = bytearray(part10(dataset))
    for wrong in (0, 7, 0xFFFFFFFF):
        content[140:144] = struct.pack("<I", wrong)
        assert content[read_file_meta(bytes(content)).data_set_at :] == encoded(dataset)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"DICM",
        bytes(128) + b"DIXM",
        b"\x89PNG" * 100,
        part10(small_object())[128:],
        part10(small_object())[:140],
        part10(small_object())[:200],
        bytes(128) + b"DICM" + struct.pack("<HHI", 2, 0x10, 4) + b"1.2\0",
        bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0x102, b"OB", 0, 0xFFFFFFFF) + bytes(1000),
    ],
)
def test_what_is_no_dicom_file(content: bytes) -> None:
    with pytest.raises(NotPart10):
        read_file_meta(content)


WHOLE_FILE = part10(small_object())


@settings(max_examples=300)
@given(st.data())
def test_damaged_file_meta_is_refused_or_read_within_bounds(data: st.DataObject) -> None:
    content = bytearray(WHOLE_FILE)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(128, 400))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        meta = read_file_meta(bytes(content))
    except NotPart10:
        return
    assert 132 <= meta.data_set_at <= len(content)


# --- sessions -----------------------------------------------------------------------------------------------


def test_the_bytes_received_are_the_bytes_kept(desk: Desk) -> None:
    datasets = [
        small_object(),
        small_object(transfer_syntax_uid=ImplicitVRLittleEndian),
        small_object(Rows=300, Columns=300, PixelData=bytes(180_000)),
    ]
    report = desk.store(body_of(*map(part10, datasets)))
    assert report.stored == [(CTImageStorage, d.SOPInstanceUID) for d in datasets]
    assert report.reasons == set()
    received = {r.instance.sop_instance_uid: r for r in desk.handed_on if isinstance(r, ReceivedInstance)}
    for dataset in datasets:
        path = received[dataset.SOPInstanceUID].spooled.path
        assert data_set_of(path) == encoded(dataset)
        meta = pydicom.dcmread(path).file_meta
        assert meta.SourceApplicationEntityTitle == SOURCE_AE_TITLE
        assert meta.TransferSyntaxUID == dataset.file_meta.TransferSyntaxUID
    assert len(desk.files) == 3
    assert desk.is_clean()


def test_a_request_is_an_association_of_its_own(desk: Desk) -> None:
    one, two = small_object(), small_object(SeriesInstanceUID=f"{ROOT}.9")
    desk.store(body_of(part10(one), b"nonsense", part10(two)))
    received = [r for r in desk.handed_on if isinstance(r, ReceivedInstance)]
    summary = desk.summary
    assert {r.association_id for r in received} == {summary.association_id} != {""}
    assert summary.released
    assert (summary.stored, summary.refused, summary.unrecorded) == (2, 1, 0)
    assert summary.series_instance_uids == (one.SeriesInstanceUID, two.SeriesInstanceUID)
    assert (summary.calling_ae_title, summary.peer_host) == (SOURCE_AE_TITLE, "127.0.0.1")
    assert {r.source_ae_title for r in received} == {SOURCE_AE_TITLE}


def test_two_requests_are_two_associations(desk: Desk) -> None:
    for _ in range(2):
        desk.store(body_of(part10(small_object())))
    assert len({one.association_id for one in desk.handed_on}) == 2


@pytest.mark.parametrize("pieces", [1, 2, 7, 131, 4096])
def test_objects_survive_any_cutting(desk: Desk, pieces: int) -> None:
    datasets = [small_object(), small_object()]
    report = desk.store(body_of(*map(part10, datasets)), pieces=pieces)
    assert [instance for _, instance in report.stored] == [d.SOPInstanceUID for d in datasets]
    assert sorted(map(data_set_of, desk.files)) == sorted(map(encoded, datasets))


def test_a_body_that_is_one_object(desk: Desk) -> None:
    dataset = small_object()
    session = desk.open(boundary=None)
    for byte in part10(dataset):
        session.feed(bytes([byte]))
    assert session.finish().stored == [(CTImageStorage, dataset.SOPInstanceUID)]
    assert [data_set_of(path) for path in desk.files] == [encoded(dataset)]


def test_the_same_object_twice_is_one(desk: Desk) -> None:
    content = part10(small_object())
    assert len(desk.store(body_of(content, content)).stored) == 2
    assert len(desk.files) == 1


def only_failure(report: StoreReport) -> int:
    assert not report.stored
    (reason,) = report.reasons
    return reason


@pytest.mark.parametrize(
    ("content", "reason", "is_identified"),
    [
        (part10_of(b"", instance="1.2.3", transfer_syntax=DeflatedExplicitVRLittleEndian), 0xC122, True),
        (part10_of(b"", instance="1.2.3", transfer_syntax=ExplicitVRBigEndian), 0xC122, True),
        (part10_of(b"", instance="1.2.3", transfer_syntax="1.2.840.10008.1.2.4.9999"), 0xC122, True),
        (part10_of(b"", instance="1.2.3", transfer_syntax="../../etc/passwd"), 0xC122, True),
        (part10_of(b"", instance="1.2.3", sop_class="1.2.840.10008.1.1"), 0x0122, True),
        (part10_of(b"", instance="1.2.3", sop_class="../x"), 0xC000, False),
        (part10_of(encoded(small_object()), instance="../../../../tmp/evil"), 0x0117, False),
        (part10_of(encoded(small_object()), instance=""), 0x0117, False),
        (part10_of(encoded(small_object()), instance="1.2.3"), 0xA900, True),
        (part10_of(encoded(small_object()), instance="1.2.3", sop_class="1.2.840.10008.5.1.4.1.1.4"), 0xA900, True),
        (part10(small_object(StudyInstanceUID=None)), 0xA900, True),
        (part10(small_object(SeriesInstanceUID="1.12.3")).replace(b"1.12.3", b"1.02.3"), 0xA900, True),
        (part10_of(b"", instance="1.2.3"), 0xC000, True),
        (part10_of(b"\xff" * 4000, instance="1.2.3"), 0xC000, True),
        (b"", 0xC000, False),
        (b"\x89PNG" * 50_000, 0xC000, False),
        (bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0x102, b"OB", 0, 200_000) + bytes(200_000), 0xC000, False),
    ],
)  # fmt: skip
def test_failures(desk: Desk, content: bytes, reason: int, is_identified: bool) -> None:
    report = desk.store(body_of(content))
    assert only_failure(report) == reason
    assert bool(report.failed) is is_identified
    assert bool(report.unidentified) is not is_identified
    assert desk.files == []
    assert desk.is_clean()
    assert (desk.summary.stored, desk.summary.refused) == (0, 1)


def test_a_failure_does_not_touch_its_neighbours(desk: Desk) -> None:
    before, after = small_object(), small_object()
    deflated = part10_of(bytes(500_000), instance="1.2.3", transfer_syntax=DeflatedExplicitVRLittleEndian)
    report = desk.store(body_of(part10(before), deflated, part10(after)))
    assert [uid for _, uid in report.stored] == [before.SOPInstanceUID, after.SOPInstanceUID]
    assert report.failed == [(CTImageStorage, "1.2.3", 0xC122)]


def test_another_study_than_the_path_names(desk: Desk) -> None:
    right, wrong = small_object(), small_object(StudyInstanceUID=f"{ROOT}.77")
    report = desk.store(body_of(part10(right), part10(wrong)), study=right.StudyInstanceUID)
    assert report.stored == [(CTImageStorage, right.SOPInstanceUID)]
    assert report.failed == [(CTImageStorage, wrong.SOPInstanceUID, 0xA900)]
    assert len(desk.files) == 1


def test_another_study_is_noticed_also_behind_a_long_header(desk: Desk) -> None:
    wrong = small_object(ImageComments="x" * 10_000, PatientComments="y" * 10_000)
    for number in range(12):  # more header than is looked at before the rest is here
        wrong.add_new((0x0009, 0x0010 + number), "LO", f"CREATOR {number}")
        wrong.add_new((0x0009, 0x1000 + 0x100 * number), "OB", bytes(8000))
    assert len(encoded(wrong)) > 2 * 65536 * 0.75
    report = desk.store(body_of(part10(wrong)), study="1.2.3")
    assert only_failure(report) == 0xA900
    assert desk.is_clean()
    assert desk.files == []


def test_parts_that_are_declared_as_something_else(desk: Desk) -> None:
    content = part10(small_object())
    assert only_failure(desk.store(body_of(content, header="Content-Type: application/json\r\n"))) == 0xC000
    assert desk.files == []


@pytest.mark.parametrize(
    "header",
    ["", "content-TYPE:application/DICOM\r\n", "Content-Type: application/dicom; transfer-syntax=1.2\r\n"],
)
def test_parts_that_are_declared_sparely_or_in_full(desk: Desk, header: str) -> None:
    assert len(desk.store(body_of(part10(small_object()), header=header)).stored) == 1


def test_a_low_disk_refuses_and_resumes(desk: Desk) -> None:
    low = [True]
    desk.gate.disk_is_low = lambda: low[0]
    assert only_failure(desk.store(body_of(part10(small_object())))) == 0xA700
    desk.handed_on.clear()
    low[0] = False
    assert len(desk.store(body_of(part10(small_object()))).stored) == 1


def test_a_study_that_is_full_is_not_asked_for_again(desk: Desk) -> None:
    dataset = small_object()
    desk.gate.full_studies = frozenset({dataset.StudyInstanceUID})
    report = desk.store(body_of(part10(dataset), part10(small_object(StudyInstanceUID="1.2.3"))))
    assert report.failed == [(CTImageStorage, dataset.SOPInstanceUID, 0xA701)]
    assert len(report.stored) == 1


def test_a_full_disk(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(writer: SpoolWriter, fragment: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(SpoolWriter, "write", full)
        assert only_failure(desk.store(body_of(part10(small_object())))) == 0xA700
    assert desk.is_clean()


def test_objects_and_requests_have_a_largest_size(open_desk: Callable[..., Desk]) -> None:
    small, large = part10(small_object()), part10(small_object(PixelData=bytes(300_000)))
    desk = open_desk(limits=Limits(max_object_bytes=200_000, max_association_bytes=1_000_000))
    report = desk.store(body_of(small, large, small))
    assert (len(report.stored), len(report.failed)) == (2, 1)
    assert only_failure(StoreReport(failed=report.failed)) == 0xA701
    session = desk.open()
    session.feed(body_of(small)[:-8])
    for _ in range(9):
        session.feed(bytes(100_000))
    with pytest.raises(BodyTooLarge):
        session.feed(bytes(100_000))
    session.break_off(0xA701)
    assert desk.is_clean()


def test_parts_are_counted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stow, "MAX_PARTS", 3)
    desk.store(body_of(b"a", b"b", b"c"))
    with pytest.raises(BodyTooLarge):
        desk.store(body_of(b"a", b"b", b"c", b"d"))


def test_ten_thousand_parts(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    dataset = small_object()
    report = desk.store(body_of(*[b"nothing"] * 9_999, part10(dataset)))
    assert len(report.unidentified) == 9_999
    assert report.stored == [(CTImageStorage, dataset.SOPInstanceUID)]


def test_a_request_that_breaks_off_within_an_object(desk: Desk) -> None:
    first, second = small_object(), small_object(PixelData=bytes(300_000))
    body = body_of(part10(first), part10(second))
    session = desk.open()
    session.feed(body[: len(body) // 2])
    assert not desk.is_clean()  # the second is being written
    report = session.break_off()
    assert report.stored == [(CTImageStorage, first.SOPInstanceUID)]
    assert report.failed == [(CTImageStorage, second.SOPInstanceUID, 0xC000)]
    assert desk.is_clean()
    assert [data_set_of(path) for path in desk.files] == [encoded(first)]
    assert not desk.summary.released
    session.feed(body[len(body) // 2 :])  # comes too late
    session.break_off()
    assert session.finish() is report
    assert len(desk.files) == 1
    assert desk.summary.series_instance_uids == (first.SeriesInstanceUID,)


def test_an_object_without_its_last_boundary_is_not_taken(desk: Desk) -> None:
    session = desk.open()
    session.feed(body_of(part10(small_object()), part10(small_object()))[:-10])
    with pytest.raises(MultipartError):
        session.finish()
    report = session.break_off()
    assert (len(report.stored), len(report.failed)) == (1, 1)
    assert len(desk.files) == 1
    assert desk.is_clean()


@pytest.mark.parametrize("boundary", [BOUNDARY, None])
def test_an_empty_body(desk: Desk, boundary: str | None) -> None:
    with pytest.raises(MultipartError):
        desk.open(boundary=boundary).finish()


def test_closing_the_desk_breaks_off_what_is_open(desk: Desk) -> None:
    session = desk.open()
    session.feed(body_of(part10(small_object(PixelData=bytes(300_000))))[:200_000])
    finished = desk.open()
    finished.feed(body_of(part10(small_object())))
    finished.finish()
    desk.desk.close()
    assert desk.is_clean()
    summaries = [one for one in desk.handed_on if isinstance(one, AssociationSummary)]
    assert [one.released for one in summaries] == [True, False]


def test_an_object_that_cannot_be_handed_on_is_stored_all_the_same(tmp_path: Path) -> None:
    handed_on: list[AssociationSummary] = []

    def fail(one: ReceivedInstance | AssociationSummary) -> None:
        if isinstance(one, ReceivedInstance):
            raise RuntimeError("no objects are taken any more")
        handed_on.append(one)

    desk = StoreDesk(spool=Spool(tmp_path), hand_on=fail)
    session = desk.open(boundary=BOUNDARY, study_instance_uid=None, host="::1")
    session.feed(body_of(part10(small_object())))
    assert len(session.finish().stored) == 1
    assert [one.unrecorded for one in handed_on] == [1]


def test_a_fault_of_ours_is_a_processing_failure(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(PATIENT_NAME)

    with monkeypatch.context() as patch:
        patch.setattr(SpoolWriter, "commit", fail)
        assert only_failure(desk.store(body_of(part10(small_object())))) == 0x0110
    desk.handed_on.clear()
    with monkeypatch.context() as patch:
        patch.setattr(incoming_file.Arrival, "write", fail)
        assert only_failure(desk.store(body_of(part10(small_object())))) == 0x0110
    assert desk.is_clean()


def test_nothing_that_identifies_is_logged(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    dataset = small_object()
    files = [
        part10(dataset),
        part10(small_object(StudyInstanceUID=None)),
        part10_of(b"\xff" * 99, instance="1.2.3"),
    ]
    desk.store(body_of(*files), study=dataset.StudyInstanceUID)
    session = desk.open()
    with pytest.raises(MultipartError):
        session.feed(b"--b-01\r\n" + PATIENT_NAME.encode() + b" x\r\n\r\n")
    session.break_off()
    assert "refused an object from 'STOW-RS': 0xA900" in caplog.text
    for value in (PATIENT_NAME, PATIENT_ID, ROOT, "1.2.3"):
        assert value not in caplog.text


@pytest.mark.parametrize(
    ("peers", "may_send"),
    [
        ([], True),
        ([AllowedPeer(ae_title="STOW-RS", host="127.0.0.1")], True),
        ([AllowedPeer(ae_title="STOW-RS", host="127.0.0.1", tls=True, certificate="x")], False),
        ([AllowedPeer(ae_title="STOW-RS", host="192.0.2.1")], False),
        ([AllowedPeer(ae_title="CT", host="127.0.0.1")], False),
    ],
)
def test_who_may_send(tmp_path: Path, peers: list[AllowedPeer], may_send: bool) -> None:
    desk = StoreDesk(spool=Spool(tmp_path), hand_on=lambda _: None, peers=peers)
    assert desk.may_send("127.0.0.1") is may_send


# --- the answer ---------------------------------------------------------------------------------------------

REPORT = StoreReport(
    stored=[(CTImageStorage, "1.2.3"), (CTImageStorage, "1.2.4")],
    failed=[(CTImageStorage, "1.2.5", 0xC122)],
    unidentified=[0xC000],
)


@pytest.mark.parametrize("response_type", [ResponseType.DICOM_JSON, ResponseType.JSON])
def test_the_answer_in_json(response_type: ResponseType) -> None:
    answer = Dataset.from_json(REPORT.encode(response_type).decode())
    assert [e.keyword for e in answer] == [
        "RetrieveURL", "FailedSOPSequence", "ReferencedSOPSequence", "OtherFailuresSequence",
    ]  # fmt: skip
    assert [e.keyword for e in answer.ReferencedSOPSequence[0]] == [
        "ReferencedSOPClassUID", "ReferencedSOPInstanceUID", "RetrieveURL",
    ]  # fmt: skip
    assert not answer.RetrieveURL
    assert [item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence] == ["1.2.3", "1.2.4"]
    (failed,) = answer.FailedSOPSequence
    assert (failed.ReferencedSOPClassUID, failed.FailureReason) == (CTImageStorage, 0xC122)
    assert [item.FailureReason for item in answer.OtherFailuresSequence] == [0xC000]


def test_the_answer_says_nothing_about_what_did_not_happen() -> None:
    answer = Dataset.from_json(StoreReport(stored=REPORT.stored).encode(ResponseType.DICOM_JSON).decode())
    assert "FailedSOPSequence" not in answer
    assert "OtherFailuresSequence" not in answer
    assert "ReferencedSOPSequence" not in Dataset.from_json(StoreReport().encode(ResponseType.JSON).decode())


def test_the_answer_in_xml_says_the_same() -> None:
    written = REPORT.encode(ResponseType.DICOM_XML)
    assert written.startswith(b"<?xml version='1.0' encoding='utf-8'?>")
    root = ElementTree.fromstring(written)
    namespace = "{http://dicom.nema.org/PS3.19/models/NativeDICOM}"
    assert root.tag == f"{namespace}NativeDicomModel"

    def read(element: ElementTree.Element) -> Dataset:
        dataset = Dataset()
        for attribute in element:
            assert attribute.tag == f"{namespace}DicomAttribute"
            tag = pydicom.tag.Tag(attribute.get("tag"))
            assert pydicom.datadict.keyword_for_tag(tag) == attribute.get("keyword")
            vr = attribute.get("vr")
            assert pydicom.datadict.dictionary_VR(tag) == vr
            values: list[object] = [
                read(value) if vr == "SQ" else (int(value.text or "") if vr == "US" else value.text)
                for value in attribute
            ]
            assert [value.get("number") for value in attribute] == [str(n + 1) for n in range(len(values))]
            dataset.add_new(tag, vr, values if vr == "SQ" else (values[0] if values else None))
        return dataset

    assert read(root).to_json_dict() == json.loads(REPORT.encode(ResponseType.DICOM_JSON))


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", ResponseType.DICOM_JSON),
        ("*/*", ResponseType.DICOM_JSON),
        ("application/*", ResponseType.DICOM_JSON),
        ("application/dicom+json", ResponseType.DICOM_JSON),
        ("Application/DICOM+XML", ResponseType.DICOM_XML),
        ("application/json", ResponseType.JSON),
        ("text/html, application/dicom+xml;q=0.9, */*;q=0.1", ResponseType.DICOM_XML),
        ("application/dicom+json;q=0.3, application/dicom+xml;q=0.4", ResponseType.DICOM_XML),
        ("application/dicom+xml, application/dicom+json", ResponseType.DICOM_JSON),
        ("application/dicom+json;q=0, */*;q=0.5", ResponseType.JSON),
        ('multipart/related; type="application/dicom+xml"', ResponseType.DICOM_XML),
        ("text/html", None),
        ("application/dicom", None),
        ("*/*;q=0", None),
        ("application/dicom+json;q=high", None),
    ],
)
def test_accept(accept: str, chosen: ResponseType | None) -> None:
    assert choose_response_type(accept) is chosen


def test_compressed_objects_are_kept_as_they_came(desk: Desk) -> None:
    dataset = small_object(transfer_syntax_uid=ExplicitVRLittleEndian)
    content = part10_of(encoded(dataset), instance=dataset.SOPInstanceUID, transfer_syntax=JPEGLosslessSV1)
    assert len(desk.store(body_of(content)).stored) == 1
    assert [data_set_of(path) for path in desk.files] == [encoded(dataset)]
