"""Connections are handed on when they speak; those that do not cost next to nothing, and not for long."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from ich_node.errors import ConfigurationError
from ich_node.receive import listener as listening
from ich_node.receive.limits import Limits
from ich_node.receive.listener import Endpoint, Listener

DEADLINE_S = 30.0
LOCAL = Endpoint(host="127.0.0.1", port=0)


@dataclass
class Door:
    """A listener and what it has handed on."""

    listener: Listener
    connections: list[tuple[socket.socket, bool]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def port(self) -> int:
        return self.listener.ports[0]

    def knock(self, port: int | None = None, host: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection((host, port or self.port), DEADLINE_S)

    def wait_for(self, count: int) -> tuple[socket.socket, bool]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.connections) >= count, DEADLINE_S)
            return self.connections[-1]


OpenDoor = Callable[..., Door]


@pytest.fixture
def open_door() -> Iterator[OpenDoor]:
    doors: list[Door] = []

    def start(endpoints: Sequence[Endpoint] = (LOCAL,), **limits: Any) -> Door:
        def take(connection: socket.socket, over_tls: bool) -> None:
            with door.changed:
                door.connections.append((connection, over_tls))
                door.changed.notify_all()

        door = Door(Listener(endpoints, take, Limits(**limits)))
        doors.append(door)
        door.listener.start()
        return door

    yield start
    for door in doors:
        door.listener.stop()
        for connection, _ in door.connections:
            connection.close()


def silent(door: Door) -> int:
    return len(door.listener._silent)


def test_a_connection_that_speaks_is_handed_on_as_it_came(open_door: OpenDoor) -> None:
    door = open_door()
    with door.knock() as caller:
        caller.sendall(b"hello")
        connection, over_tls = door.wait_for(1)
        assert not over_tls
        assert connection.getblocking()
        assert connection.gettimeout() is None
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert connection.recv(100) == b"hello"  # nothing was taken from it
        connection.sendall(b"good day")
        assert caller.recv(100) == b"good day"
    assert silent(door) == 0


def test_a_silent_one_holds_up_nobody(open_door: OpenDoor) -> None:
    door = open_door()
    with door.knock(), door.knock(), door.knock() as third:
        third.sendall(b"x")
        door.wait_for(1)
        assert silent(door) == 2


def test_one_that_speaks_late_is_handed_on(open_door: OpenDoor) -> None:
    door = open_door()
    with door.knock() as early, door.knock() as late:
        early.sendall(b"1")
        door.wait_for(1)
        late.sendall(b"2")
        assert door.wait_for(2)[0].recv(1) == b"2"


def test_silent_ones_are_closed_when_their_time_is_over(
    open_door: OpenDoor, caplog: pytest.LogCaptureFixture
) -> None:
    door = open_door(acse_timeout_s=0.2)
    began = time.monotonic()
    with door.knock() as caller, door.knock() as other:
        assert caller.recv(1) == b""
        assert other.recv(1) == b""
    assert 0.2 <= time.monotonic() - began < 10
    assert silent(door) == 0
    assert door.connections == []


def test_the_oldest_silent_one_makes_room(open_door: OpenDoor) -> None:
    door = open_door(max_silent=3)
    callers = [door.knock() for _ in range(5)]
    assert callers[0].recv(1) == b""
    assert callers[1].recv(1) == b""
    callers[2].sendall(b"x")
    door.wait_for(1)
    assert silent(door) == 2
    for caller in callers:
        caller.close()


def test_five_hundred_silent_ones_keep_nobody_out(open_door: OpenDoor) -> None:
    door = open_door(max_silent=100)
    before = threading.active_count()
    callers = [door.knock() for _ in range(500)]
    with door.knock() as one:
        one.sendall(b"x")
        door.wait_for(1)
    assert silent(door) <= 100
    assert threading.active_count() == before
    for caller in callers:
        caller.close()


def test_there_are_never_so_many_silent_ones_that_descriptors_run_out(
    open_door: OpenDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening.resource, "getrlimit", lambda _: (40, 40))
    door = open_door(max_silent=1000)
    callers = [door.knock() for _ in range(21)]
    assert callers[0].recv(1) == b""
    for caller in callers:
        caller.close()


@pytest.mark.parametrize("reset", [False, True])
def test_one_that_ends_without_a_word_is_not_handed_on(open_door: OpenDoor, reset: bool) -> None:
    door = open_door()
    caller = door.knock()
    if reset:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    caller.close()
    with door.knock() as next_one:  # came after it, so that it has been seen when this one is handed on
        next_one.sendall(b"x")
        assert door.wait_for(1)[0].recv(1) == b"x"
    assert len(door.connections) == 1


def test_several_addresses_and_which_of_them_is_for_tls(open_door: OpenDoor) -> None:
    door = open_door([LOCAL, Endpoint(host="127.0.0.1", port=0, tls=True)])
    plain, secure = door.listener.ports
    assert plain != secure
    for count, (port, is_secure) in enumerate(((secure, True), (plain, False)), start=1):
        with door.knock(port) as caller:
            caller.sendall(b"x")
            assert door.wait_for(count)[1] is is_secure


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_ipv6(open_door: OpenDoor) -> None:
    door = open_door([Endpoint(host="::1", port=0), LOCAL])
    for count, host in enumerate(("::1", "127.0.0.1"), start=1):
        with door.knock(door.listener.ports[count - 1], host) as caller:
            caller.sendall(b"x")
            assert door.wait_for(count)[0].getpeername()[0] == host


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_every_address_of_ipv6_is_every_address_of_ipv4_too(open_door: OpenDoor) -> None:
    door = open_door([Endpoint(host="::", port=0)])
    with door.knock(host="127.0.0.1") as caller:
        caller.sendall(b"x")
        assert door.wait_for(1)[0].getpeername()[0] == "::ffff:127.0.0.1"


def test_an_address_that_is_taken_is_said_plainly_and_leaves_no_other_open(open_door: OpenDoor) -> None:
    taken = open_door().port
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    with pytest.raises(ConfigurationError, match=f"127.0.0.1 port {taken}"):
        Listener(
            [Endpoint(host="127.0.0.1", port=free), Endpoint(host="127.0.0.1", port=taken)],
            lambda *_: None,
            Limits(),
        )
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", free), DEADLINE_S)


@pytest.mark.parametrize("host", ["no such host", "203.0.113.77"])
def test_an_address_that_is_not_of_this_machine_is_said_plainly(host: str) -> None:
    with pytest.raises(ConfigurationError, match=host):
        Listener([Endpoint(host=host, port=0)], lambda *_: None, Limits())


def test_stopping_closes_what_is_silent_and_listens_no_more(open_door: OpenDoor) -> None:
    door = open_door()
    port = door.port
    with door.knock() as caller, door.knock() as speaker:
        speaker.sendall(b"x")
        door.wait_for(1)
        door.listener.stop()
        assert caller.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), DEADLINE_S)
        door.connections[0][0].sendall(b"still here")  # whoever got it has it
        assert speaker.recv(100) == b"still here"
    door.listener = Listener([LOCAL], lambda *_: None, Limits())  # never started, and stopped all the same


def test_it_goes_on_when_no_connection_can_be_accepted_for_a_while(
    open_door: OpenDoor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failed = threading.Event()

    class Selector(listening.selectors.DefaultSelector):  # type: ignore[misc, valid-type]
        def select(self, timeout: float | None = None) -> list[Any]:
            ready: list[Any] = super().select(timeout)
            if ready and not failed.is_set():
                failed.set()
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return ready

    monkeypatch.setattr(listening.selectors, "DefaultSelector", Selector)
    monkeypatch.setattr(listening, "_SWEEP_SECONDS", 0.05)
    door = open_door()
    with door.knock() as caller:
        caller.sendall(b"x")
        door.wait_for(1)
    assert failed.is_set()
    assert "Too many open files" in caplog.text
