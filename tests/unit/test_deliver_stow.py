"""What STOW-RS sends, and how its answers are read; the conversation itself is in the integration tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_node.deliver.scu import OutgoingFile, inspect_file
from ich_node.deliver.store_answer import StoreAnswer, UnreadableAnswer, read_store_answer
from ich_node.deliver.stow import multipart
from ich_node.deliver.web_client import MAX_WORDS, WebDestination, shortened
from ich_node.receive.multipart_related import MultipartReader
from ich_node.receive.store_response import ResponseType, StoreReport
from tests.small_objects import saved, small_object

UIDS = st.from_regex(r"[12](\.[1-9][0-9]{0,8}){1,5}", fullmatch=True)
SOP_CLASS = "1.2.840.10008.5.1.4.1.1.7"


class Parts:
    """Takes the parts of a body."""

    def __init__(self) -> None:
        self.headers: list[dict[str, str]] = []
        self.contents: list[bytes] = []
        self.ended = 0

    def begin_part(self, headers: dict[str, str]) -> None:
        self.headers.append(headers)
        self.contents.append(b"")

    def take(self, fragment: memoryview) -> None:
        self.contents[-1] += bytes(fragment)

    def end_part(self) -> None:
        self.ended += 1


def outgoing(path: Path) -> OutgoingFile:
    item = inspect_file(path)
    assert isinstance(item, OutgoingFile)
    return item


@pytest.mark.parametrize("count", [1, 3])
def test_the_body_has_one_part_for_each_file_with_its_bytes(tmp_path: Path, count: int) -> None:
    paths = [saved(small_object(PixelData=bytes(200_000 + number)), tmp_path) for number in range(count)]
    parts = Parts()
    reader = MultipartReader("b-01", parts)
    blocks = list(multipart([outgoing(path) for path in paths], "b-01"))
    for block in blocks:
        reader.feed(block)
    reader.close()
    assert parts.contents == [path.read_bytes() for path in paths]
    assert parts.headers == [{"content-type": "application/dicom"}] * count
    assert parts.ended == count
    assert max(map(len, blocks)) <= 2**16


# the answer


@given(
    stored=st.lists(UIDS, unique=True, max_size=4),
    failed=st.dictionaries(UIDS, st.integers(0, 0xFFFF), max_size=4),
    form=st.sampled_from(ResponseType),
)
def test_an_answer_says_of_each_object_whether_it_is_stored(
    stored: list[str], failed: dict[str, int], form: ResponseType
) -> None:
    report = StoreReport(
        stored=[(SOP_CLASS, uid) for uid in stored],
        failed=[(SOP_CLASS, uid, reason) for uid, reason in failed.items()],
        unidentified=[0x0110],
    )
    expected = StoreAnswer(stored=dict.fromkeys(stored), failed=dict(failed))
    assert read_store_answer(report.encode(form)) == expected


WITH_A_WARNING = {
    "00081199": {
        "vr": "SQ",
        "Value": [
            {
                "00081155": {"vr": "UI", "Value": ["1.2.3\0"]},
                "00081196": {"vr": "US", "Value": ["45063"]},
            }
        ],
    }
}


def test_a_warning_is_read_from_numbers_and_from_text() -> None:
    expected = StoreAnswer(stored={"1.2.3": 0xB007}, failed={})
    assert read_store_answer(json.dumps(WITH_A_WARNING).encode()) == expected
    assert read_store_answer(json.dumps([WITH_A_WARNING]).encode()) == expected


def test_xml_without_a_namespace_and_with_a_prefix_is_read() -> None:
    plain = """<?xml version="1.0"?><NativeDicomModel><DicomAttribute tag="00081198" vr="SQ"><Item number="1">
        <DicomAttribute tag="00081155" vr="UI"><Value number="1"> 1.2.3 </Value></DicomAttribute>
        <DicomAttribute tag="00081197" vr="US"><Value number="1">272</Value></DicomAttribute>
        <DicomAttribute tag="0008119B" vr="SQ"/></Item></DicomAttribute></NativeDicomModel>"""
    prefixed = plain.replace("<D", "<n:D").replace("</D", "</n:D").replace("<Item", "<n:Item")
    prefixed = prefixed.replace("</Item", "</n:Item").replace("<V", "<n:V").replace("</V", "</n:V")
    prefixed = (
        prefixed.replace("</N", "</n:N").replace("<N", "<n:N").replace("Model>", 'Model xmlns:n="u">', 1)
    )
    for text in (plain, prefixed):
        assert read_store_answer(text.encode()) == StoreAnswer(stored={}, failed={"1.2.3": 272})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"OK",
        b"7",
        b"[]",
        b"[1]",
        b"[" * 100_000,
        b"{",
        b"<html><body>It works!</body></html>",
        b"<NativeDicomModel>",
        b'<!DOCTYPE a [<!ENTITY b "cc"><!ENTITY d "&b;&b;">]><NativeDicomModel>&d;</NativeDicomModel>',
        b'<?xml version="1.0" encoding="klingon"?><NativeDicomModel/>',
        b"\xff\xfe{\0}\0\0",
    ],
)
def test_anything_else_is_no_answer(content: bytes) -> None:
    with pytest.raises(UnreadableAnswer):
        read_store_answer(content)


@given(st.binary() | st.binary().map(lambda tail: b"<NativeDicomModel>" + tail))
def test_no_bytes_do_harm(content: bytes) -> None:
    try:
        read_store_answer(content)
    except UnreadableAnswer:
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["00081198", "00081199", "00081155", "00081197", "00081196", "Value", "vr"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=25,
)


@given(JSON)
def test_no_json_does_harm(value: object) -> None:
    try:
        told = read_store_answer(json.dumps(value).encode())
    except UnreadableAnswer:
        return
    assert all(isinstance(uid, str) for uid in (*told.failed, *told.stored))


# words


@given(st.text())
def test_words_are_one_printable_line(text: str) -> None:
    words = shortened(text)
    assert len(words) <= MAX_WORDS
    assert words.isprintable()
    assert words == " ".join(words.split()) or len(words) == MAX_WORDS


def test_a_destination_shows_nobody_its_secrets() -> None:
    to = WebDestination(
        name="PACS", url="https://pacs.example", token="t0ken", user="node", password="s3cret"
    )
    assert "t0ken" not in repr(to)
    assert "s3cret" not in repr(to)
