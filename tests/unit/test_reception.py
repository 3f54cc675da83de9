"""What an installation chooses for its receiver arrives where it has an effect."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import count, repeat
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from ich_node import reception
from ich_node.database.engine import Database
from ich_node.database.tables import InstanceRow
from ich_node.errors import ConfigurationError
from ich_node.receive.limits import AllowedPeer, Limits
from ich_node.receive.listener import Endpoint
from ich_node.receive.receiving_process import ScpOptions
from ich_node.receive.tls_files import TlsFiles
from ich_node.reception import endpoints, open_receiver, scp_options
from ich_node.settings import PeerSettings, ReceiverSettings, Settings
from tests.bare_peer import BarePeer
from tests.database_cases import sqlite_database
from tests.small_objects import ROOT, encoded, small_object

DEADLINE_S = 30.0
TLS = {"certificate": "node.pem", "key": "node.key", "ca": "ca.pem", "port": 2763}
PEERS = (
    PeerSettings(name="plain", ae_title="CT1", host="192.0.2.1", port=104),
    PeerSettings(name="secured", ae_title="CT2", host="2001:db8::2", tls=True, certificate="ct2.example"),
)
CHOSEN: dict[str, Any] = {
    "host": "192.0.2.50",
    "port": 104,
    "ae_title": "STROKE",
    "max_associations": 31,
    "max_associations_per_peer": 7,
    "max_object_mib": 12,
    "max_association_gib": 1.5,
    "idle_seconds": 33.5,
    "min_bytes_per_second": 99,
    "tls": TLS,
}
"""Settings of the receiver that the receiving processes must obey, none of them with its default."""
ELSEWHERE = {
    "allow_any_peer",  # decides whether the settings are accepted at all
    "processes",
    "max_study_gib",
    "max_peer_gib_per_day",
    "settle_seconds",
    "quiet_seconds",
    "stalled_seconds",
}
"""Settings of the receiver that the listening process or the intake obeys."""


def settings(folder: Path = Path("/data"), **receiver: Any) -> Settings:
    values = {**CHOSEN, **receiver}
    return Settings(data_dir=folder, receiver=values, peers=PEERS, disk={"min_free_gib": 2.5})


def test_every_setting_of_the_receiver_has_its_place() -> None:
    assert set(CHOSEN) | ELSEWHERE == set(ReceiverSettings.model_fields)
    defaults = ReceiverSettings()
    assert all(getattr(defaults, name) != value for name, value in CHOSEN.items())


def test_the_receiving_processes_are_told_what_was_chosen() -> None:
    told = scp_options(settings())
    assert told == ScpOptions(
        ae_title="STROKE",
        spool_dir=Path("/data/spool"),
        commitment_dir=Path("/data/commitment"),
        limits=Limits(
            max_associations=31,
            max_associations_per_peer=7,
            max_object_bytes=12 * 2**20,
            max_association_bytes=3 * 2**29,
            network_timeout_s=33.5,
            min_bytes_per_second=99,
        ),
        peers=(
            AllowedPeer(ae_title="CT1", host="192.0.2.1", port=104),
            AllowedPeer(ae_title="CT2", host="2001:db8::2", tls=True, certificate="ct2.example"),
        ),
        min_free_bytes=5 * 2**29,
        tls=TlsFiles(certificate=Path("node.pem"), key=Path("node.key"), ca=Path("ca.pem")),
    )


def test_without_a_certificate_there_is_no_tls_and_without_peers_there_are_none() -> None:
    told = scp_options(Settings(data_dir=Path("/data")))
    assert told.tls is None
    assert told.peers == ()
    # The defaults of the settings and of the code are the same.
    assert told.limits == Limits()


def test_the_bounds_that_no_setting_names_keep_their_defaults() -> None:
    chosen = dataclasses.asdict(scp_options(settings()).limits)
    untouched = {name for name, value in dataclasses.asdict(Limits()).items() if chosen[name] == value}
    assert untouched == {
        "max_opening",
        "max_opening_per_host",
        "max_silent",
        "max_pdu_bytes",
        "acse_timeout_s",
        "dimse_timeout_s",
    }


@pytest.mark.parametrize(
    ("tls", "expected"),
    [
        ({}, [(104, False)]),
        (TLS, [(104, False), (2763, True)]),
        ({**TLS, "only": True}, [(2763, True)]),
    ],
)
def test_where_it_listens(tls: dict[str, Any], expected: list[tuple[int, bool]]) -> None:
    receiver = ReceiverSettings(host="192.0.2.50", port=104, tls=tls)
    assert endpoints(receiver) == [
        Endpoint(host="192.0.2.50", port=port, tls=secured) for port, secured in expected
    ]


# with real processes


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with sqlite_database(tmp_path) as opened:
        yield opened


def rows(database: Database) -> int:
    with database.reading() as session:
        return session.execute(select(func.count()).select_from(InstanceRow)).scalar_one()


def store(peer: BarePeer, study: int, **changes: Any) -> int:
    dataset = small_object(
        StudyInstanceUID=f"{ROOT}.1.{study}", SeriesInstanceUID=f"{ROOT}.2.{study}", **changes
    )
    return peer.store(str(dataset.SOPInstanceUID), encoded(dataset))


def stored_until_refused(peer: BarePeer, studies: Iterable[int]) -> int:
    """Send small objects of these studies, one now and then; gives how many were taken."""
    until = time.monotonic() + DEADLINE_S
    for taken, study in enumerate(studies):
        status = store(peer, study)
        if status == 0xA700:
            return taken
        assert status == 0
        assert time.monotonic() < until
        threading.Event().wait(0.02)  # what is kept out is known a moment later
    raise AssertionError("never refused")


def test_what_is_received_gets_rows_and_shares_are_kept(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "_LOOK_SECONDS", 0.05)
    chosen = Settings(
        data_dir=tmp_path,
        receiver={
            "port": 0,
            "processes": 1,
            "max_study_gib": 1000 / 2**30,  # one small object and a bit
            "max_peer_gib_per_day": 2**20 / 2**30,
        },
        disk={"min_free_gib": 0},
    )
    with open_receiver(chosen, database) as receiving:
        assert len(receiving._children) == 1
        with BarePeer.associated(receiving.ports[0]) as peer:
            taken = stored_until_refused(peer, repeat(1))
            assert taken >= 2
            assert store(peer, 2) == 0  # another study is not full
            assert store(peer, 3, PixelData=bytes(2**20)) == 0
            taken += 2 + stored_until_refused(peer, count(4))
            peer.release()
    assert rows(database) == taken


def test_a_port_that_is_taken_is_said_plainly_and_nothing_goes_on(tmp_path: Path, database: Database) -> None:
    threads = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        chosen = Settings(data_dir=tmp_path, receiver={"port": port}, disk={"min_free_gib": 0})
        with pytest.raises(ConfigurationError, match=f"port {port}"), open_receiver(chosen, database):
            pass
    assert set(threading.enumerate()) <= threads
