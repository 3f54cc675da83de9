"""Headers that are built to cost much: they are refused early, or cost little."""

from __future__ import annotations

import contextlib
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest

from ich_node.errors import RejectionReason, StudyRejected
from ich_node.receive.admission import Refusal, StorageStatus, StoreRequest, examine, examine_beginning
from ich_node.receive.header import read_header
from tests.fuzz.data_sets import (
    SeedDataSet,
    element,
    empty_items,
    nested_sequences,
    part10,
    seed_data_sets,
)

EXPLICIT, IMPLICIT = seed_data_sets()[:2]
BOTH = pytest.mark.parametrize("seed", [EXPLICIT, IMPLICIT], ids=["explicit VR", "implicit VR"])
SECONDS_AT_MOST = 30.0
"""Of processor time, on a machine that does other things too."""


def with_element(seed: SeedDataSet, hostile: bytes) -> bytes:
    """Put an element where its tag belongs, so that tags still ascend."""
    elements = [*seed.elements, hostile]
    elements.sort(key=lambda one: (one[1], one[0], one[3], one[2]))
    return b"".join(elements)


def request_for(seed: SeedDataSet) -> StoreRequest:
    return StoreRequest(
        sop_class_uid=seed.sop_class_uid,
        sop_instance_uid=seed.sop_instance_uid,
        abstract_syntax_uid=seed.sop_class_uid,
        transfer_syntax_uid=seed.transfer_syntax_uid,
    )


@contextmanager
def cheap(mebibytes: int) -> Iterator[None]:
    began = time.thread_time()
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mebibytes * 2**20
    finally:
        tracemalloc.stop()
    assert time.thread_time() - began < SECONDS_AT_MOST


@BOTH
def test_sequences_that_are_nested_ten_thousand_deep(seed: SeedDataSet, tmp_path: Path) -> None:
    encoded = with_element(seed, nested_sequences(10_000, implicit_vr=seed.implicit_vr))
    path = tmp_path / "file.dcm"
    path.write_bytes(part10(seed, encoded))
    with cheap(16):
        assert examine_beginning(request_for(seed), encoded[:65536]) is None
        with pytest.raises(Refusal) as refused:
            examine(request_for(seed), BytesIO(encoded))
        with pytest.raises(StudyRejected) as rejected:
            read_header(path)
    assert refused.value.status is StorageStatus.CANNOT_UNDERSTAND
    assert rejected.value.reason is RejectionReason.NOT_AN_IMAGE


@BOTH
@pytest.mark.parametrize("vr", [b"OB", b"UN", b"UT", b"SQ"])
@pytest.mark.parametrize("length", [0xFFFFFFFE, 0x80000000])
def test_elements_that_claim_gigabytes(seed: SeedDataSet, vr: bytes, length: int, tmp_path: Path) -> None:
    hostile = element(0x00091010, vr, b"short", implicit_vr=seed.implicit_vr, length=length)
    encoded = with_element(seed, hostile)
    path = tmp_path / "file.dcm"
    path.write_bytes(part10(seed, encoded))
    with cheap(4):
        assert examine_beginning(request_for(seed), encoded) is None
        with pytest.raises(Refusal):
            examine(request_for(seed), BytesIO(encoded))
        with pytest.raises(StudyRejected):
            read_header(path)


@BOTH
def test_a_hundred_thousand_empty_items(seed: SeedDataSet) -> None:
    """They may be accepted, at a price that is known; the quick look does not pay it."""
    encoded = with_element(seed, empty_items(100_000, implicit_vr=seed.implicit_vr))
    began = time.thread_time()
    assert examine_beginning(request_for(seed), encoded[:65536]) is None
    assert time.thread_time() - began < 1.0
    with contextlib.suppress(Refusal):
        examine(request_for(seed), BytesIO(encoded))
    assert time.thread_time() - began < SECONDS_AT_MOST


@BOTH
def test_ten_million_empty_items_are_not_read_to_the_end(seed: SeedDataSet) -> None:
    data_set = BytesIO(with_element(seed, empty_items(10_000_000, implicit_vr=seed.implicit_vr)))
    began = time.thread_time()
    with pytest.raises(Refusal) as refused:
        examine(request_for(seed), data_set)
    assert refused.value.status is StorageStatus.CANNOT_UNDERSTAND
    assert data_set.tell() < 4 * 2**20  # of 80 MB: memory goes with what was read
    assert time.thread_time() - began < SECONDS_AT_MOST


@BOTH
def test_a_private_element_of_undefined_length_is_not_loaded(seed: SeedDataSet) -> None:
    vr = b"UN" if seed.implicit_vr else b"OB"
    value = bytes(10_000_000) + b"\xfe\xff\xdd\xe0\0\0\0\0"
    encoded = with_element(seed, element(0x00091010, vr, value, implicit_vr=seed.implicit_vr, length=-1))
    with cheap(4):
        found = examine(request_for(seed), BytesIO(encoded))
    assert found.has_pixel_data


@BOTH
@pytest.mark.parametrize(
    ("tag", "value"),
    [(0x00080005, b"\\" * 60_000), (0x00100010, b"\x1b$B" * 20_000), (0x00081030, b"\x1b" * 60_000)],
    ids=["character sets", "escapes in a name", "escapes in a text"],
)
def test_text_that_is_costly_to_decode(seed: SeedDataSet, tag: int, value: bytes, tmp_path: Path) -> None:
    names = element(0x00080005, b"CS", b"ISO 2022 IR 6\\ISO 2022 IR 87", implicit_vr=seed.implicit_vr)
    vr = {0x00080005: b"CS", 0x00100010: b"PN", 0x00081030: b"LO"}[tag]
    kept = [one for one in seed.elements if one[:4] != b"\x10\x00\x10\x00"]
    changed = [*kept, element(tag, vr, value, implicit_vr=seed.implicit_vr)]
    if tag != 0x00080005:
        changed.append(names)
    encoded = b"".join(sorted(changed, key=lambda one: (one[1], one[0], one[3], one[2])))
    path = tmp_path / "file.dcm"
    path.write_bytes(part10(seed, encoded))
    with cheap(16):
        examine(request_for(seed), BytesIO(encoded)).header(path)
        read_header(path)
