"""Accesses told to a real syslog receiver over TLS, well and badly."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import pytest

from ich_node.database.access import AccessAction, AccessLog, unsent_accesses
from ich_node.database.engine import Database
from ich_node.web.audit_export import AuditExport, NotTold, exporting_accesses
from ich_node.web_settings import AuditSettings
from tests.certificates import Authority
from tests.stored_studies import StoredStudies
from tests.unit.test_audit_export import an_access

DEADLINE_S = 60.0
STUDY = "1.2.3.1"
Manner = Literal["closes TLS", "closes TCP", "resets", "says nothing"]


@dataclass
class Repository:
    """Takes syslog messages by octet counting (RFC 5425) from whoever shows a certificate."""

    context: ssl.SSLContext
    manner: Manner = "closes TLS"
    listening: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    messages: list[bytes] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def port(self) -> int:
        return int(self.listening.getsockname()[1])

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), connection:
                connection.settimeout(DEADLINE_S)
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        with self.context.wrap_socket(connection, server_side=True, suppress_ragged_eofs=False) as secured:
            received = bytearray()
            while piece := secured.recv(65536):
                received += piece
            with self.changed:
                self.messages += list(split(bytes(received)))
                self.changed.notify_all()
            if self.manner == "closes TLS":
                secured.unwrap()
            elif self.manner == "resets":
                secured.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif self.manner == "says nothing":
                self.over.wait(DEADLINE_S)

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.messages) >= count, DEADLINE_S)

    def xml(self) -> list[ElementTree.Element]:
        return [ElementTree.fromstring(m.partition("\ufeff".encode())[2]) for m in self.messages]


def split(received: bytes) -> Iterator[bytes]:
    while received:
        length, _, rest = received.partition(b" ")
        yield rest[: int(length)]
        assert len(rest) >= int(length)
        received = rest[int(length) :]


@contextmanager
def repository(
    authority: Authority, manner: Manner = "closes TLS", name: str = "localhost"
) -> Iterator[Repository]:
    files = authority.issue(name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(authority.file)
    context.verify_mode = ssl.CERT_REQUIRED
    receiver = Repository(context, manner)
    thread = threading.Thread(target=receiver.serve, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.over.set()
        with contextlib.suppress(OSError):
            receiver.listening.shutdown(socket.SHUT_RDWR)
        receiver.listening.close()
        thread.join(DEADLINE_S)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'node.sqlite'}")
    database.upgrade()
    StoredStudies(database=database, results_dir=tmp_path).receive(
        STUDY, at=datetime.now(UTC), patient_id="P1"
    )
    yield database
    database.dispose()


def settings(authority: Authority, port: int) -> AuditSettings:
    own = authority.issue("ich-node")
    return AuditSettings(
        host="localhost",
        port=port,
        ca=str(authority.file),
        certificate=str(own.certificate),
        key=str(own.key),
        audit_source_id="ICH",
    )


def unsent(database: Database) -> int:
    with database.reading() as session:
        return len(unsent_accesses(session, limit=10_000))


def fill(database: Database, count: int) -> None:
    log = AccessLog(database, export=True)
    for number in range(count):
        log.add(an_access(caller=f"user{number}", study_instance_uid=STUDY))


@pytest.mark.parametrize("manner", ["closes TLS", "closes TCP"])
def test_every_access_is_told_once_in_order(database: Database, authority: Authority, manner: Manner) -> None:
    fill(database, 30)
    with repository(authority, manner) as receiver:
        export = AuditExport(database, settings(authority, receiver.port))
        assert export.send_some() == 30
        assert export.send_some() == 0
    assert unsent(database) == 0
    roots = receiver.xml()
    assert [root[1].get("UserID") for root in roots] == [f"user{number}" for number in range(30)]
    assert roots[0][-1].get("ParticipantObjectID") == "P1"
    assert all(message.startswith(b"<85>1 ") for message in receiver.messages)


def test_an_access_that_is_not_for_export_is_not_told(database: Database, authority: Authority) -> None:
    AccessLog(database).add(an_access(action=AccessAction.LOGIN))
    with repository(authority) as receiver:
        assert AuditExport(database, settings(authority, receiver.port)).send_some() == 0


def test_what_was_perhaps_lost_is_told_again(database: Database, authority: Authority) -> None:
    fill(database, 3)
    with repository(authority, "resets") as receiver:
        export = AuditExport(database, settings(authority, receiver.port))
        with pytest.raises(NotTold, match="localhost:"):
            export.send_some()
        assert unsent(database) == 3
        receiver.manner = "closes TLS"
        assert export.send_some() == 3
    assert len(receiver.messages) in (3, 6)  # what was taken before the reset is heard twice
    assert unsent(database) == 0


def test_a_repository_that_hangs_holds_nothing_up_for_ever(
    database: Database, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ich_node.web.audit_export._EXCHANGE_S", 0.5)
    fill(database, 1)
    with repository(authority, "says nothing") as receiver:
        with pytest.raises(NotTold, match="timed out"):
            AuditExport(database, settings(authority, receiver.port)).send_some()
        assert unsent(database) == 1


def test_nothing_is_told_to_somebody_else(database: Database, authority: Authority, tmp_path: Path) -> None:
    fill(database, 1)
    for receiver_is, why in (
        (repository(authority, name="other.example"), "not for the host that is called"),
        (repository(Authority(tmp_path / "stranger")), "localhost:"),
    ):
        with receiver_is as receiver, pytest.raises(NotTold, match=why):
            AuditExport(database, settings(authority, receiver.port)).send_some()
        assert receiver.messages == []
    assert unsent(database) == 1


def test_a_wrong_file_is_named(database: Database, authority: Authority, tmp_path: Path) -> None:
    fill(database, 1)
    wrong = AuditSettings(host="localhost", ca=str(tmp_path / "none.pem"))
    with pytest.raises(NotTold, match=re.escape("[web.audit] ca")):
        AuditExport(database, wrong).send_some()


def test_what_happens_while_the_repository_is_away_is_told_when_it_is_back(
    database: Database, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    fill(database, 2)
    caplog.set_level(logging.WARNING)
    export = AuditExport(database, settings(authority, port), look_every_s=0.01)
    with export:
        failed = threading.Event()
        while "is not told" not in caplog.text:
            failed.wait(0.02)
        fill(database, 2)
        with repository(authority) as receiver:
            export._settings = export._settings.model_copy(update={"port": receiver.port})
            receiver.wait_for(4)
    assert caplog.text.count("is not told") == 1
    assert "user0" not in caplog.text
    assert [root[1].get("UserID") for root in receiver.xml()][:2] == ["user0", "user1"]


def test_without_a_repository_there_is_no_thread(database: Database) -> None:
    before = threading.active_count()
    with exporting_accesses(database, AuditSettings()):
        assert threading.active_count() == before
