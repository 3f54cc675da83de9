"""Does a PACS have what it accepted: Orthanc asked by C-FIND and by QIDO-RS, and peers that misbehave."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt

from ich_node.deliver import stow
from ich_node.deliver.query import (
    STUDY_ROOT_FIND_SOP_CLASS_UID,
    Confirmation,
    Presence,
    StoredObject,
    stored,
)
from ich_node.deliver.scu import Destination, Timeouts
from ich_node.deliver.web_client import WebDestination
from ich_node.receive.upper_layer import configure_pynetdicom
from tests.integration.test_deliver import destination, free_port, running
from tests.integration.test_deliver_stow import orthanc_with_dicomweb
from tests.small_objects import saved, small_object
from tests.web_service import Exchange, Reply, reply, web_service

PRESENT, ABSENT, CANNOT_TELL = Presence.PRESENT, Presence.ABSENT, Presence.CANNOT_TELL
SHORT = Timeouts(connection_s=2.0, acse_s=2.0, dimse_s=2.0, network_s=2.0)
SLACK_S = 10.0
A, B, C = (
    StoredObject(study_instance_uid="1.2.1", series_instance_uid="1.2.2", sop_instance_uid=f"1.2.3.{number}")
    for number in (1, 2, 3)
)


def presences(confirmations: tuple[Confirmation, ...]) -> list[Presence]:
    return [confirmation.presence for confirmation in confirmations]


# Orthanc

Asked = WebDestination | Destination


@pytest.fixture(scope="module")
def orthanc(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[dict[str, Asked], list[StoredObject]]]:
    """How it can be asked, and five objects in two series that it has."""
    folder = tmp_path_factory.mktemp("orthanc")
    series = "1.2.826.0.1.3680043.8.498.1.9"
    datasets = [small_object() for _ in range(3)] + [small_object(SeriesInstanceUID=series) for _ in range(2)]
    with orthanc_with_dicomweb(folder) as (web, dicom):
        outcomes = stow.send([saved(dataset, folder) for dataset in datasets], web)
        assert all(outcome.is_delivered for outcome in outcomes)
        ways: dict[str, Asked] = {"QIDO-RS": web, "C-FIND": destination(dicom, "ORTHANC")}
        yield ways, [place_of(dataset) for dataset in datasets]


def place_of(dataset: Dataset) -> StoredObject:
    return StoredObject(
        study_instance_uid=dataset.StudyInstanceUID,
        series_instance_uid=dataset.SeriesInstanceUID,
        sop_instance_uid=dataset.SOPInstanceUID,
    )


@pytest.mark.parametrize("way", ["QIDO-RS", "C-FIND"])
def test_orthanc_says_what_it_has_and_what_not(
    orthanc: tuple[dict[str, Asked], list[StoredObject]], way: str
) -> None:
    ways, there = orthanc
    lost = dataclasses.replace(there[0], sop_instance_uid="1.2.3.4")
    another_study = dataclasses.replace(there[0], study_instance_uid="1.2.3.5")
    asked = [there[4], lost, *there[:4], another_study, there[0]]
    confirmations = stored(asked, ways[way])
    assert [confirmation.stored_object for confirmation in confirmations] == asked
    assert presences(confirmations) == [PRESENT, ABSENT, *[PRESENT] * 4, ABSENT, PRESENT]
    assert presences(stored([lost], ways[way])) == [ABSENT]
    assert presences(stored([there[0]], ways[way])) == [PRESENT]
    assert stored([], ways[way]) == ()


def test_a_refused_query_tells_nothing(
    orthanc: tuple[dict[str, Asked], list[StoredObject]],
) -> None:
    ways, there = orthanc
    web = ways["QIDO-RS"]
    assert isinstance(web, WebDestination)
    (confirmation,) = stored(there[:1], dataclasses.replace(web, password="another one"))
    assert confirmation.presence is CANNOT_TELL
    assert confirmation.detail == "the query failed: HTTP 401 Unauthorized"


# C-FIND

Answer = Callable[[evt.Event], Iterator[Any]]


@contextmanager
def archive(answer: Answer) -> Iterator[Destination]:
    configure_pynetdicom()
    entity = AE(ae_title="PACS")
    entity.add_supported_context(
        STUDY_ROOT_FIND_SOP_CLASS_UID, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
    )
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, answer)])
    try:
        yield destination(server.server_address[1])
    finally:
        server.shutdown()


def match(item: StoredObject) -> Dataset:
    dataset = Dataset()
    dataset.QueryRetrieveLevel = "IMAGE"
    dataset.SOPInstanceUID = item.sop_instance_uid
    return dataset


def test_one_series_is_asked_for_once_with_its_hierarchical_keys() -> None:
    asked: list[Dataset] = []

    def answer(event: evt.Event) -> Iterator[Any]:
        asked.append(event.identifier)
        yield 0xFF00, match(A)
        yield 0xFF01, match(C)

    elsewhere = dataclasses.replace(B, series_instance_uid="1.2.9")
    with archive(answer) as to:
        confirmations = stored([A, elsewhere, B, C], to)
    assert presences(confirmations) == [PRESENT, ABSENT, ABSENT, PRESENT]
    keys = [
        (one.QueryRetrieveLevel, one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID)
        for one in asked
    ]
    assert keys == [("IMAGE", "1.2.1", "1.2.2", ""), ("IMAGE", "1.2.1", "1.2.9", "1.2.3.2")]


@pytest.mark.parametrize("status", [0xA700, 0xA900, 0xC001, 0xFE00, 0x0122])
def test_a_failure_tells_nothing_of_what_was_not_found(status: int) -> None:
    def answer(_: evt.Event) -> Iterator[Any]:
        yield 0xFF00, match(A)
        said = Dataset()
        said.Status = status
        said.ErrorComment = "because of the moon"
        yield said, None

    with archive(answer) as to:
        confirmations = stored([A, B], to)
    assert presences(confirmations) == [PRESENT, CANNOT_TELL]
    assert f"0x{status:04X}" in confirmations[1].detail
    if status != 0xFE00:
        assert confirmations[1].detail.endswith("because of the moon")


def test_matches_without_their_uid_tell_nothing() -> None:
    def answer(_: evt.Event) -> Iterator[Any]:
        nameless = match(A)
        del nameless.SOPInstanceUID
        yield 0xFF00, nameless

    with archive(answer) as to:
        (confirmation,) = stored([A], to)
    assert confirmation.presence is CANNOT_TELL
    assert "without SOP Instance UID" in confirmation.detail


def test_an_answer_without_end_is_broken_off() -> None:
    pause = threading.Event()

    def answer(event: evt.Event) -> Iterator[Any]:
        while not pause.wait(0.05) and event.assoc.is_established:
            yield 0xFF00, match(A)

    with archive(answer) as to:
        began = time.monotonic()
        other_series = dataclasses.replace(C, series_instance_uid="1.2.9")
        confirmations = stored([A, B, other_series], to, timeouts=SHORT)
        assert time.monotonic() - began < SHORT.dimse_s + SLACK_S
    pause.set()
    assert presences(confirmations) == [PRESENT, CANNOT_TELL, CANNOT_TELL]
    assert "did not end within 2 s" in confirmations[1].detail
    assert "association was lost" in confirmations[2].detail


@pytest.mark.parametrize("aborts", [True, False])
def test_no_answer_tells_nothing(aborts: bool) -> None:
    done = threading.Event()

    def answer(event: evt.Event) -> Iterator[Any]:
        if aborts:
            event.assoc.abort()
        else:
            done.wait(30.0)
        return
        yield

    with archive(answer) as to:
        (confirmation,) = stored([A], to, timeouts=SHORT)
        done.set()
    assert confirmation.presence is CANNOT_TELL
    assert "did not answer" in confirmation.detail


def test_a_destination_without_queries_says_so(tmp_path: Path) -> None:
    program = shutil.which("storescp")
    if program is None:
        pytest.skip("DCMTK's storescp is not installed")
    port = free_port()
    with running([program, "-od", str(tmp_path), str(port)], port, tmp_path / "log"):
        (confirmation,) = stored([A], destination(port))
    assert confirmation.presence is CANNOT_TELL
    assert "does not support the query" in confirmation.detail


def test_nobody_there_tells_nothing() -> None:
    nowhere = WebDestination(name="gone", url=f"http://127.0.0.1:{free_port()}")
    for to in (destination(free_port()), nowhere):
        (confirmation,) = stored([A], to, timeouts=SHORT)
        assert confirmation.presence is CANNOT_TELL
        assert "cannot connect to 127.0.0.1" in confirmation.detail


# QIDO-RS


def page(*items: StoredObject) -> bytes:
    return json.dumps(
        [{"00080018": {"vr": "UI", "Value": [item.sop_instance_uid]}, "00080060": {}} for item in items]
    ).encode()


def asked_of(*replies: Reply, items: list[StoredObject]) -> tuple[list[Presence], list[str], str]:
    """What it says of the objects, what it was asked, and the last detail."""
    with web_service(*replies) as service:
        confirmations = stored(items, WebDestination(name="the PACS", url=service.url), timeouts=SHORT)
    targets = [exchange.target.removeprefix("/dicom-web") for exchange in service.asked]
    return presences(confirmations), targets, confirmations[-1].detail


def test_one_object_is_asked_for_by_its_uid() -> None:
    found, targets, _ = asked_of(reply("200 OK", page(A)), items=[A])
    assert found == [PRESENT]
    assert targets == ["/studies/1.2.1/series/1.2.2/instances?SOPInstanceUID=1.2.3.1"]
    assert asked_of(reply("200 OK", page(B)), items=[A])[0] == [ABSENT]


def test_a_service_that_answers_little_at_once_is_asked_again() -> None:
    pages = [reply("200 OK", page(A)), reply("200 OK", page(B)), reply("204 No Content")]
    found, targets, _ = asked_of(*pages, items=[A, B, C])
    assert found == [PRESENT, PRESENT, ABSENT]
    assert [target.partition("offset=")[2] for target in targets] == ["0", "1", "2"]


def test_a_service_that_answers_the_same_again_is_not_asked_for_ever() -> None:
    found, targets, _ = asked_of(reply("200 OK", page(A)), items=[A, B])
    assert found == [PRESENT, ABSENT]
    assert len(targets) == 2


def test_what_has_been_found_is_not_looked_for_further() -> None:
    found, targets, _ = asked_of(reply("200 OK", page(C, B, A)), items=[A, B])
    assert found == [PRESENT, PRESENT]
    assert len(targets) == 1


@pytest.mark.parametrize("content", [b"[]", b""])
def test_nothing_found_is_absent(content: bytes) -> None:
    status = "200 OK" if content else "204 No Content"
    assert asked_of(reply(status, content), items=[A])[0] == [ABSENT]


@pytest.mark.parametrize(
    ("status", "content"),
    [
        ("200 OK", b""),
        ("200 OK", b"{"),
        ("200 OK", b"7"),
        ("200 OK", b"{}"),
        ("200 OK", b'["1.2.3.1"]'),
        ("200 OK", b'[{"00080018": {"vr": "UI"}}]'),
        ("200 OK", b'[{"00080018": {"vr": "UI", "Value": []}}]'),
        ("200 OK", b"<html>It works!</html>"),
        ("302 Found", b""),
        ("400 Bad Request", b"because of the moon"),
        ("404 Not Found", b""),
        ("501 Not Implemented", b""),
        ("503 Service Unavailable", b""),
    ],
)
def test_other_answers_tell_nothing(status: str, content: bytes) -> None:
    found, _, detail = asked_of(reply(status, content), items=[A])
    assert found == [CANNOT_TELL]
    assert detail
    if not status.startswith("200"):
        assert detail.startswith(f"the query failed: HTTP {status}")
        assert detail.endswith(content.decode())


def test_an_endless_number_of_pages_is_not_read() -> None:
    numbers = iter(range(10_000))

    def another(exchange: Exchange) -> None:
        number = next(numbers)
        exchange.answer("200 OK", page(dataclasses.replace(A, sop_instance_uid=f"1.2.99.{number}")))

    found, targets, detail = asked_of(another, items=[A, B])
    assert found == [CANNOT_TELL, CANNOT_TELL]
    assert len(targets) <= 50
    assert "end" in detail


def test_a_slow_service_holds_nobody_up() -> None:
    def silent(exchange: Exchange) -> None:
        exchange.ended.wait(60.0)

    began = time.monotonic()
    found, _, detail = asked_of(silent, items=[A])
    assert time.monotonic() - began < SHORT.dimse_s + SLACK_S
    assert found == [CANNOT_TELL]
    assert "in time" in detail
