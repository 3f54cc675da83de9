"""One object from its first byte until it is durable or refused."""

from __future__ import annotations

import errno
import os
import tracemalloc
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import FileDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage

from ich_node.receive.admission import Refusal, StorageStatus, StoreRequest
from ich_node.receive.arrival import Arrival, Gate
from ich_node.receive.spool import Encoded, Spool, SpoolWriter
from tests.small_objects import ROOT, data_set_of, encoded, small_object

STUDY = f"{ROOT}.1"
"""Of every small object."""


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Spool:
    return Spool(tmp_path_factory.mktemp("spool") / "spool")


@pytest.fixture
def spool(made_once: Spool) -> Spool:
    for path in made_once.scan():
        path.unlink()
    return made_once


def request(dataset: FileDataset, **changes: str) -> StoreRequest:
    values = {
        "sop_class_uid": str(dataset.SOPClassUID),
        "sop_instance_uid": str(dataset.SOPInstanceUID),
        "abstract_syntax_uid": str(dataset.SOPClassUID),
        "transfer_syntax_uid": str(dataset.file_meta.TransferSyntaxUID),
    }
    return StoreRequest(**{**values, **changes})


def arrival(spool: Spool, store_request: StoreRequest, gate: Gate | None = None, **options: Any) -> Arrival:
    return Arrival(
        spool, gate or Gate(), store_request, source_ae_title="CT1", association_id="a1", **options
    )


def unfinished(spool: Spool) -> list[Path]:
    return list((spool.root / "incoming").iterdir())


def refused(spool: Spool, arriving: Arrival, pieces: Iterable[Encoded]) -> Refusal:
    """Send it all, as its sender does; nothing of it may be left."""
    for piece in pieces:
        arriving.write(piece)
    with pytest.raises(Refusal) as caught:
        arriving.finish()
    assert unfinished(spool) == []
    return caught.value


def pieces_of(content: bytes, size: int) -> list[memoryview]:
    return [memoryview(content)[at : at + size] for at in range(0, len(content), size)]


# taken


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_an_object_is_kept_as_it_came_and_handed_on_with_its_header(spool: Spool, syntax: str) -> None:
    dataset = small_object(transfer_syntax_uid=syntax)
    arriving = arrival(spool, request(dataset))
    for piece in pieces_of(encoded(dataset), 100):
        arriving.write(piece)
    before = datetime.now(UTC)
    received = arriving.finish()
    assert before <= received.received_at <= datetime.now(UTC)
    assert data_set_of(received.spooled.path) == encoded(dataset)
    assert arriving.size_bytes == len(encoded(dataset))
    assert received.instance.path == received.spooled.path
    assert received.instance.sop_instance_uid == dataset.SOPInstanceUID
    assert received.instance.transfer_syntax_uid == syntax
    assert received.instance.has_pixel_data
    assert received.study.study_instance_uid == STUDY
    assert (received.source_ae_title, received.association_id) == ("CT1", "a1")
    assert unfinished(spool) == []


@given(st.data())
def test_however_it_is_cut_the_file_is_the_same(made_once: Spool, drawn: st.DataObject) -> None:
    dataset = small_object(SOPInstanceUID=f"{ROOT}.77")
    content = encoded(dataset)
    places = sorted(drawn.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    arriving = arrival(made_once, request(dataset))
    for begin, end in zip([0, *places], [*places, len(content)], strict=True):
        arriving.write(content[begin:end])
    received = arriving.finish()
    assert data_set_of(received.spooled.path) == content
    assert list(made_once.files_of(f"{ROOT}.77")) == [received.spooled.path]
    assert received.instance.instance_number == 1


def test_the_memory_of_a_piece_may_be_used_again(spool: Spool) -> None:
    dataset = small_object()
    content = encoded(dataset)
    buffer = bytearray(200)
    arriving = arrival(spool, request(dataset))
    for piece in pieces_of(content, len(buffer)):
        buffer[: len(piece)] = piece
        arriving.write(memoryview(buffer)[: len(piece)])
        buffer[:] = b"\xee" * len(buffer)
    received = arriving.finish()
    assert data_set_of(received.spooled.path) == content
    assert received.study.study_instance_uid == STUDY


def test_a_writer_opened_in_advance_is_used(spool: Spool) -> None:
    dataset = small_object()
    writer = spool.writer()
    arriving = arrival(spool, request(dataset), writer=writer)
    arriving.write(encoded(dataset))
    assert len(unfinished(spool)) == 1
    assert data_set_of(arriving.finish().spooled.path) == encoded(dataset)


def test_a_header_that_is_longer_than_what_is_kept_of_it_is_read_from_the_file(spool: Spool) -> None:
    dataset = small_object(SeriesDescription="behind")
    dataset.add_new(0x00090010, "LO", "PRIVATE")
    dataset.add_new(0x00091001, "OB", bytes(100_000))  # before the study's and the series' UID
    content = encoded(dataset)
    assert content.index(b"\x20\x00\x0d\x00") > 65536
    for size in (50_000, len(content)):
        arriving = arrival(spool, request(dataset))
        for piece in pieces_of(content, size):
            arriving.write(piece)
        received = arriving.finish()
        assert received.study.study_instance_uid == STUDY
        assert received.instance.series_description == "behind"
        assert received.instance.has_pixel_data
        assert data_set_of(received.spooled.path) == content


def test_an_object_without_pixel_data_is_taken_as_such(spool: Spool) -> None:
    dataset = small_object(PixelData=None)
    arriving = arrival(spool, request(dataset))
    arriving.write(encoded(dataset))
    assert not arriving.finish().instance.has_pixel_data


def test_memory_does_not_grow_with_the_object(spool: Spool) -> None:
    # Its value is said to be longer than what comes, so that nothing large has to be made for it.
    dataset = small_object(PixelData=bytes(4))
    beginning = encoded(dataset)[:-8] + (2**30).to_bytes(4, "little")
    fragment = bytes(131_072)
    arriving = arrival(spool, request(dataset))
    tracemalloc.start()
    try:
        arriving.write(beginning)
        for _ in range(600):
            arriving.write(fragment)
        received = arriving.finish()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert received.spooled.size_bytes > 75_000_000
    assert peak < 1_000_000


# refused


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"sop_instance_uid": "../../etc/passwd"}, StorageStatus.INVALID_SOP_INSTANCE_UID),
        ({"abstract_syntax_uid": MRImageStorage}, StorageStatus.DOES_NOT_MATCH_SOP_CLASS),
    ],
)
def test_what_the_request_alone_gives_away_is_refused_when_all_of_it_has_come(
    spool: Spool, changes: dict[str, str], status: StorageStatus
) -> None:
    dataset = small_object()
    content = encoded(dataset)
    arriving = arrival(spool, request(dataset, **changes))
    assert refused(spool, arriving, pieces_of(content, 100)).status is status
    assert arriving.size_bytes == len(content)  # counted all the same
    assert list(spool.scan()) == []


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (Gate(disk_is_low=lambda: True), "disk"),
        (Gate(spent_peers=frozenset({"CT1"})), "per peer"),
        (Gate(full_studies=frozenset({STUDY})), "study"),
    ],
)
def test_the_gate_keeps_objects_out(spool: Spool, gate: Gate, words: str) -> None:
    dataset = small_object()
    refusal = refused(spool, arrival(spool, request(dataset), gate), [encoded(dataset)])
    assert refusal.status is StorageStatus.OUT_OF_RESOURCES
    assert words in refusal.comment
    assert list(spool.scan()) == []


def test_the_gate_is_for_whom_and_what_it_names(spool: Spool) -> None:
    gate = Gate(full_studies=frozenset({"1.2.3"}), spent_peers=frozenset({"CT2"}))
    dataset = small_object()
    arriving = arrival(spool, request(dataset), gate)
    arriving.write(encoded(dataset))
    assert arriving.finish().spooled.path.exists()


def test_a_gate_that_opens_again_lets_the_next_object_in(spool: Spool) -> None:
    low = [True]
    gate = Gate(disk_is_low=lambda: low[0])
    dataset = small_object()
    refused(spool, arrival(spool, request(dataset), gate), [encoded(dataset)])
    low[0] = False
    arriving = arrival(spool, request(dataset), gate)
    arriving.write(encoded(dataset))
    assert arriving.finish().spooled.path.exists()


def test_what_is_refused_midway_is_written_no_further(spool: Spool) -> None:
    dataset = small_object()
    first, *rest = pieces_of(encoded(dataset), 100)
    arriving = arrival(spool, request(dataset))
    arriving.write(first)
    assert len(unfinished(spool)) == 1
    arriving.refuse(Refusal(StorageStatus.OUT_OF_RESOURCES, "enough"))
    assert unfinished(spool) == []
    assert refused(spool, arriving, rest).comment == "enough"


@pytest.mark.parametrize("pieces", [[], [b""], [b"", b""]])
def test_an_empty_data_set_is_refused(spool: Spool, pieces: list[bytes]) -> None:
    arriving = arrival(spool, request(small_object()))
    assert refused(spool, arriving, pieces).status is StorageStatus.CANNOT_UNDERSTAND


def test_a_writer_opened_in_advance_is_not_left_behind(spool: Spool) -> None:
    dataset = small_object()
    for changes, pieces in (({"sop_instance_uid": "x"}, [encoded(dataset)]), ({}, [])):
        refused(spool, arrival(spool, request(dataset, **changes), writer=spool.writer()), pieces)
    abandoned = arrival(spool, request(dataset), writer=spool.writer())
    abandoned.write(encoded(dataset)[:100])
    abandoned.discard()
    assert unfinished(spool) == []


def test_what_is_durable_survives_a_discard(spool: Spool) -> None:
    dataset = small_object()
    arriving = arrival(spool, request(dataset))
    arriving.write(encoded(dataset))
    arriving.commit()
    arriving.discard()
    assert data_set_of(arriving.received().spooled.path) == encoded(dataset)


# the disk and the code fail


def _full(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["open", "writev", "fsync", "rename"])
def test_a_full_disk_is_answered_when_all_of_it_has_come(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    dataset = small_object()
    arriving = arrival(spool, request(dataset))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, _full)
        for piece in pieces_of(encoded(dataset), 100):
            arriving.write(piece)
        with pytest.raises(Refusal, match="No space left") as caught:
            arriving.finish()
    assert caught.value.status is StorageStatus.OUT_OF_RESOURCES
    assert unfinished(spool) == []
    assert list(spool.scan()) == []


def test_a_disk_that_fills_up_midway_is_answered_when_all_of_it_has_come(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = small_object()
    first, *rest = pieces_of(encoded(dataset), 100)
    arriving = arrival(spool, request(dataset))
    arriving.write(first)
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", _full)
        arriving.write(rest[0])
    assert refused(spool, arriving, rest[1:]).status is StorageStatus.OUT_OF_RESOURCES


def test_a_disk_that_is_read_only_now_does_not_end_the_association(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    dataset = small_object()
    first, *rest = pieces_of(encoded(dataset), 100)
    arriving = arrival(spool, request(dataset))
    arriving.write(first)
    with monkeypatch.context() as patch:
        for call in ("writev", "unlink"):
            patch.setattr(os, call, read_only)
        for piece in rest:
            arriving.write(piece)
        with pytest.raises(Refusal) as caught:
            arriving.finish()
    assert caught.value.status is StorageStatus.OUT_OF_RESOURCES
    assert spool.remove_leftovers() == 1


@pytest.mark.parametrize("call", [SpoolWriter.begin, SpoolWriter.write])
def test_a_fault_of_ours_waits_for_the_end_of_the_data_set(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, call: Callable[..., None]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("a fault")

    dataset = small_object()
    arriving = arrival(spool, request(dataset))
    with monkeypatch.context() as patch:
        patch.setattr(SpoolWriter, call.__name__, broken)
        for piece in pieces_of(encoded(dataset), 100):
            arriving.write(piece)
    assert unfinished(spool) == []
    with pytest.raises(ValueError, match="a fault"):  # answered with 0xA701 by whoever answers
        arriving.finish()
    assert list(spool.scan()) == []


def test_no_descriptor_is_left_open_whatever_happens(spool: Spool) -> None:
    def open_descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    dataset, other = small_object(), small_object(sop_class_uid=MRImageStorage)
    before = open_descriptors()
    taken = arrival(spool, request(dataset))
    taken.write(encoded(dataset))
    taken.finish()
    for content in (b"\xff" * 500, encoded(other), encoded(dataset)[:60]):
        refused(spool, arrival(spool, request(dataset)), pieces_of(content, 50))
    assert open_descriptors() == before
    assert [data_set_of(path) for path in spool.scan()] == [encoded(dataset)]
