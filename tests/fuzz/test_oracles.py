"""The fuzzer finds what it is there to find: each kind of fault is made on purpose once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from ich_node.receive import message_reader, scp, spool
from ich_node.receive.arrival import Arrival
from ich_node.receive.paced_connection import PacedConnection
from ich_node.receive.register import AssociationRegister
from ich_node.receive.spool import Encoded
from tests.fuzz import receiver_under_test, wire
from tests.fuzz.conversations import seed_conversations
from tests.fuzz.expected import Finding, check_answers, read_answers, read_requests
from tests.fuzz.generators import seeds
from tests.fuzz.targets import Targets

STORING, _, _, _, COMMITTING, *_ = (
    b"".join(pdu for step in conversation for pdu in step.pdus()) for conversation in seed_conversations()
)
ACCEPT = wire.pdu(
    wire.ASSOCIATE_AC,
    bytes(68) + wire.item(0x21, bytes([1, 0, 0, 0]) + wire.item(0x40, b"1.2.840.10008.1.2")),
)


@contextmanager
def finding(words: str) -> Iterator[None]:
    with pytest.raises(Finding, match=words):
        yield


def test_nothing_is_found_where_nothing_is_wrong(targets: Targets) -> None:
    targets.receiver.converse(STORING)
    targets.receiver.check_node()


def test_other_bytes_in_the_spool(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Arrival.write

    def write_others(self: Arrival, *pieces: Encoded) -> None:
        write(self, *(bytes(piece).replace(b"CT", b"MR") for piece in pieces))

    monkeypatch.setattr(Arrival, "write", write_others)
    with finding("not as it was sent"):
        targets.receiver.converse(STORING)


def test_an_object_that_was_acknowledged_and_is_not_there(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets.receiver.spool, "files_of", lambda uid: ())
    with finding("acknowledged is not in the spool"):
        targets.receiver.converse(STORING)


def test_an_object_that_was_refused_and_is_there(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = Arrival.commit

    def refuse_afterwards(self: Arrival) -> None:
        commit(self)
        raise OSError("too late")

    monkeypatch.setattr(Arrival, "commit", refuse_afterwards)
    monkeypatch.setattr(scp, "log_without_values", lambda *arguments: None)
    with finding("that was not acknowledged"):
        targets.receiver.converse(STORING)


def test_an_unfinished_file(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool.SpoolWriter, "discard", lambda self: None)
    with finding("unfinished file"):
        targets.receiver.converse(STORING)


def test_a_place_that_is_not_given_back(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AssociationRegister, "leave", lambda self, place: None)
    with finding("keeps its place"):
        targets.receiver.converse(STORING)


def test_a_hang(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    need = PacedConnection.need

    def hang(self: PacedConnection, count: int) -> memoryview:
        if threading.current_thread().name == "association":
            over.wait()
        return need(self, count)

    monkeypatch.setattr(receiver_under_test, "DEADLINE_S", 0.2)
    monkeypatch.setattr(PacedConnection, "need", hang)
    try:
        with finding("hangs"):
            targets.receiver.converse(STORING)
    finally:
        over.set()
        for thread in threading.enumerate():
            if thread.name == "association":
                thread.join()


def test_an_exception(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(message_reader, "read_command_set", fail)
    with finding("an association failed"):
        targets.receiver.converse(STORING)


def test_an_identifying_value_in_the_log(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    received = Arrival.received

    def tell(self: Arrival) -> Any:
        instance = received(self)
        logging.getLogger("ich_node.receive").info("received %s", instance.study.patient_name)
        return instance

    monkeypatch.setattr(Arrival, "received", tell)
    with finding("identifying value is logged"):
        targets.receiver.converse(STORING)


def test_a_header_that_cannot_be_read_back(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    read = receiver_under_test.read_received

    def another(place: spool.Spool, path: Any) -> Any:
        again = read(place, path)
        return replace(again, instance=replace(again.instance, rows=7))

    monkeypatch.setattr(receiver_under_test, "read_received", another)
    with finding("another thing when it is read back"):
        targets.receiver.converse(STORING)


def test_a_claim_that_is_kept(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(targets.receiver.desk.folder), "release", lambda self, name: None)
    with finding("stays claimed"):
        targets.receiver.converse(COMMITTING)


def test_a_stray_file_in_the_spool(targets: Targets) -> None:
    stray = targets.receiver.spool.root / "00" / f"{'0' * 32}-{'0' * 64}.dcm"
    stray.write_bytes(b"")
    with finding("belong to no object"):
        targets.receiver.check_node()
    stray.unlink()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (wire.abort() + wire.abort(), "follows the last one"),
        (wire.RELEASE_REPLY, "before the association is accepted"),
        (ACCEPT + wire.RELEASE_REQUEST, "within an association"),
        (ACCEPT + wire.RELEASE_REPLY[:-1], "cut off"),
        (ACCEPT + wire.data_tf([wire.Value(context_id=3, control=3, fragment=b"")]), "not accepted"),
        (ACCEPT + wire.data_tf([wire.Value(context_id=1, control=3, fragment=b"xx")]), "malformed"),
    ],
)
def test_answers_that_are_not_legal(said: bytes, words: str) -> None:
    with finding(words):
        read_answers(said)


def test_a_missing_and_a_surplus_answer() -> None:
    request = wire.command_set(((0x0100, wire.us(0x30)), (0x0110, wire.us(7)), (0x0800, wire.us(0x0101))))
    asked = ACCEPT + wire.data_tf([wire.Value(context_id=1, control=3, fragment=request)])
    answer = wire.command_set(((0x0100, wire.us(0x8030)), (0x0120, wire.us(7)), (0x0900, wire.us(0))))
    said = wire.data_tf([wire.Value(context_id=1, control=3, fragment=answer)])
    requests, _ = read_requests(asked, {1: ""})
    check_answers(requests, read_answers(ACCEPT + said))
    with finding("is missing"):
        check_answers(requests, read_answers(ACCEPT))
    with finding("answers no request"):
        check_answers(requests, read_answers(ACCEPT + said + said))


def test_two_looks_at_a_data_set_that_differ(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    content = seeds("data_set")[0]
    targets.run("data_set", content)
    monkeypatch.setattr("tests.fuzz.targets.examine_beginning", lambda request, beginning: "another thing")
    with finding("other than the whole"):
        targets.run("data_set", content)
