"""A receiver that several modules attack, and the look at whether it took harm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ich_node.receive.tls import TlsFiles
from tests.bare_peer import BarePeer
from tests.certificates import Authority
from tests.receiver_process import ReceiverProcess, Use, free_port, running_receiver, wait_until
from tests.small_objects import PATIENT_ID, PATIENT_NAME, ROOT, data_set_of, encoded, small_object

_MOST_GROWTH_MIB = 100.0
"""Of all processes together and over all attacks: what the allocator keeps, and garbage that is not due yet."""


@dataclass
class Attacked:
    """A receiver under attack, and what it held before."""

    process: ReceiverProcess
    tls_port: int
    authority: Authority
    idle: Use = field(init=False)
    seen: int = 0
    """Length of the log when the attack began."""

    def __post_init__(self) -> None:
        for peer in [BarePeer.associated(self.port) for _ in range(8)]:  # every process has served
            with peer:
                self.store_with(peer)
                assert peer.echo() == 0
                peer.release()
        self.idle = wait_until(self._is_settled, "the receiver is idle")

    @property
    def port(self) -> int:
        return self.process.port

    @property
    def log(self) -> str:
        """What was logged since the attack began."""
        return self.process.log[self.seen :]

    def logs(self, *texts: str) -> None:
        """Wait until these stand in the log."""
        for text in texts:
            wait_until(lambda text=text: text in self.log, f"the log says {text!r}: {self.log}", 10.0)

    def peer(self, request: bytes = b"") -> BarePeer:
        return BarePeer.associated(self.port, request)

    def store_with(self, peer: BarePeer) -> Path:
        """Send an object as any sender does; it must arrive whole."""
        dataset = small_object()
        before = set(self.process.objects())
        assert peer.store(dataset.SOPInstanceUID, encoded(dataset)) == 0x0000
        (path,) = set(self.process.objects()) - before
        assert data_set_of(path) == encoded(dataset)
        return path

    def assert_unharmed(self) -> None:
        """It holds no more than before, stores, answers, and has logged nothing that identifies anybody."""
        with self.peer() as peer:
            self.store_with(peer)
            assert peer.echo() == 0
            peer.release()
        wait_until(
            lambda: (
                self.process.use().descriptors <= self.idle.descriptors
                and self.process.use().threads <= self.idle.threads
            ),
            f"descriptors and threads are back: {self.process.use()}, before {self.idle}",
        )
        assert self.process.use().resident_mib < self.idle.resident_mib + _MOST_GROWTH_MIB
        assert self.process.unfinished() == []
        for identifying in (PATIENT_ID, PATIENT_NAME, ROOT):
            assert identifying not in self.log
        assert "Traceback" not in self.log

    def _is_settled(self) -> Use | None:
        use = self.process.use()
        return use if not self.process.unfinished() and use == self.process.use() else None


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def ct_certificate(authority: Authority) -> TlsFiles:
    return authority.issue("ct.example")


@pytest.fixture(scope="session")
def shared_attacked(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Attacked]:
    """With default limits, on a plain and on a TLS port; anybody on this machine may call."""
    tls_port = free_port()
    with running_receiver(
        tmp_path_factory.mktemp("attacked"), tls_settings(authority.issue("node.example"), tls_port)
    ) as process:
        yield Attacked(process=process, tls_port=tls_port, authority=authority)


@pytest.fixture
def attacked(shared_attacked: Attacked) -> Iterator[Attacked]:
    """A receiver that must be unharmed when the test has ended."""
    shared_attacked.seen = len(shared_attacked.process.log)
    children = shared_attacked.process.children()
    yield shared_attacked
    shared_attacked.assert_unharmed()
    assert shared_attacked.process.children() == children, "a process has died"


def tls_settings(files: TlsFiles, port: int) -> str:
    """The table of the configuration file."""
    return (
        f'[receiver.tls]\nport = {port}\ncertificate = "{files.certificate}"\n'
        f'key = "{files.key}"\nca = "{files.ca}"\n'
    )
