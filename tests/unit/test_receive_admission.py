from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
)

from ich_node.receive.admission import (
    Examined,
    Refusal,
    StorageStatus,
    StoreRequest,
    check_request,
    examine,
    examine_beginning,
)
from ich_node.study import Instance, StudyHeader
from tests.small_objects import PATIENT_ID, PATIENT_NAME, ROOT, encoded, small_object

UID = f"{ROOT}.3.9"


def request(
    *,
    sop_class_uid: str = CTImageStorage,
    sop_instance_uid: str = UID,
    abstract_syntax_uid: str = CTImageStorage,
    transfer_syntax_uid: str = ExplicitVRLittleEndian,
) -> StoreRequest:
    return StoreRequest(
        sop_class_uid=sop_class_uid,
        sop_instance_uid=sop_instance_uid,
        abstract_syntax_uid=abstract_syntax_uid,
        transfer_syntax_uid=transfer_syntax_uid,
    )


def outcome(judge: Callable[[], Examined | None]) -> Examined | Refusal | None:
    try:
        return judge()
    except Refusal as refused:
        return refused


def look(store_request: StoreRequest, data_set: bytes) -> Examined:
    """Examine a whole data set as the receiver does, and hold the quick look to the thorough one."""
    check_request(store_request)
    quickly = outcome(lambda: examine_beginning(store_request, data_set))
    thoroughly = outcome(lambda: examine(store_request, BytesIO(data_set)))
    assert thoroughly is not None
    if isinstance(thoroughly, Refusal):
        # The quick look passes over what is not asked for, also where pydicom cannot parse it.
        assert not isinstance(quickly, Refusal) or quickly.status is thoroughly.status
        raise thoroughly
    assert not isinstance(quickly, Refusal)
    if quickly is not None:
        assert quickly.header(Path()) == thoroughly.header(Path())
        assert quickly.study_instance_uid == thoroughly.study_instance_uid
    return thoroughly


def header(store_request: StoreRequest, data_set: bytes) -> tuple[Instance, StudyHeader]:
    return look(store_request, data_set).header(Path("a"))


def refusal(store_request: StoreRequest, data_set: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        look(store_request, data_set)
    assert len(caught.value.comment) <= 64
    assert PATIENT_NAME not in str(caught.value)
    assert PATIENT_ID not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_sound_object_is_admitted_with_its_header(syntax: str) -> None:
    dataset = small_object(SOPInstanceUID=UID, transfer_syntax_uid=syntax)
    instance, study = header(request(transfer_syntax_uid=syntax), encoded(dataset))
    assert instance.path == Path("a")
    assert instance.sop_instance_uid == UID
    assert instance.sop_class_uid == CTImageStorage
    assert instance.transfer_syntax_uid == syntax
    assert instance.series_instance_uid == f"{ROOT}.2"
    assert instance.rows == 8
    assert instance.has_pixel_data
    assert study.study_instance_uid == f"{ROOT}.1"
    assert study.patient_name == PATIENT_NAME


def test_encapsulated_pixel_data_is_seen_and_not_decoded() -> None:
    dataset = small_object(SOPInstanceUID=UID)
    dataset.compress(RLELossless, generate_instance_uid=False)
    content = encoded(dataset)
    instance, _ = header(request(transfer_syntax_uid=RLELossless), content[:-40])
    assert instance.has_pixel_data


def test_an_object_without_pixel_data_is_admitted_as_such() -> None:
    content = encoded(small_object(SOPInstanceUID=UID, PixelData=None))
    assert examine_beginning(request(), content) is None  # nothing says that it ends here
    instance, _ = header(request(), content)
    assert not instance.has_pixel_data
    empty = encoded(small_object(SOPInstanceUID=UID, PixelData=b""))
    assert not header(request(), empty)[0].has_pixel_data


@pytest.mark.parametrize("uid", ["../../../../tmp/evil", "1.02.3", "", "1." * 32 + "1", "None"])
def test_a_uid_against_the_rules_is_refused_before_the_data_set_is_parsed(uid: str) -> None:
    refused = refusal(request(sop_instance_uid=uid), b"\xff" * 100)
    assert refused.status is StorageStatus.INVALID_SOP_INSTANCE_UID


def test_a_request_that_differs_from_its_presentation_context_is_refused() -> None:
    content = encoded(small_object(SOPInstanceUID=UID))
    refused = refusal(request(abstract_syntax_uid=MRImageStorage), content)
    assert refused.status is StorageStatus.DOES_NOT_MATCH_SOP_CLASS


@pytest.mark.parametrize(
    "changes",
    [
        {"SOPInstanceUID": f"{UID}.1"},
        {"SOPInstanceUID": None},
        {"SOPClassUID": MRImageStorage},
        {"SOPClassUID": None},
        {"StudyInstanceUID": None},
        {"StudyInstanceUID": ""},
        {"SeriesInstanceUID": None},
    ],
)
def test_a_data_set_that_is_not_what_the_request_says_is_refused(changes: dict[str, str | None]) -> None:
    content = encoded(small_object(**{"SOPInstanceUID": UID, **changes}))
    assert refusal(request(), content).status is StorageStatus.DOES_NOT_MATCH_SOP_CLASS


@pytest.mark.parametrize("content", [b"", b"\0", b"not DICOM at all", b"\xff" * 1000, b"\0" * 1000])
def test_garbage_is_refused(content: bytes) -> None:
    assert refusal(request(), content).status is StorageStatus.CANNOT_UNDERSTAND


def test_a_data_set_that_breaks_off_in_its_header_is_refused() -> None:
    content = encoded(small_object(SOPInstanceUID=UID))
    for length in range(0, content.index(b"\x28\x00\x02\x00"), 3):
        try:
            look(request(), content[:length])
        except Refusal:
            continue
        # admitted: then everything that files it was there
        assert b"\x20\x00\x0e\x00" in content[:length]


@given(st.binary(max_size=600), st.integers(0, 400), st.booleans())
def test_no_bytes_make_it_fail_otherwise(noise: bytes, at: int, implicit: bool) -> None:
    syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    content = encoded(small_object(SOPInstanceUID=UID, transfer_syntax_uid=syntax))
    damaged = content[:at] + noise + content[at + len(noise) :]
    try:
        instance, _ = header(request(transfer_syntax_uid=syntax), damaged)
    except Refusal:
        return
    assert instance.sop_instance_uid == UID


def test_large_values_of_a_header_are_passed_over_and_not_loaded(tmp_path: Path) -> None:
    dataset = small_object(SOPInstanceUID=UID, SOPClassUID=CTImageStorage, PixelData=None)
    dataset.add_new(0x00211010, "OB", bytes(30_000_000))
    dataset.InstanceNumber = 7
    path = tmp_path / "data set"
    path.write_bytes(encoded(dataset))
    assert examine_beginning(request(), path.read_bytes()[:65536]) is None
    with path.open("rb") as file:
        tracemalloc.start()
        instance, _ = examine(request(), file).header(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert instance.instance_number == 7
    assert peak < 5_000_000
