"""A connection gives what came, in its order, whatever the pieces in which it came."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_node.receive import paced_connection
from ich_node.receive.limits import Limits
from ich_node.receive.paced_connection import ConnectionEnded, LimitExceeded, PacedConnection, Silent

CAPACITY = 4096


@contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    with connected() as both:
        yield both


@given(st.lists(st.integers(1, CAPACITY), min_size=1, max_size=30))
def test_what_is_needed_comes_in_order(sizes: list[int]) -> None:
    content = b"".join(bytes([number % 251]) * size for number, size in enumerate(sizes))
    with connected() as (ours, theirs):
        sender = threading.Thread(target=theirs.sendall, args=(content,))
        sender.start()
        paced = PacedConnection(ours, Limits(), CAPACITY)
        paced.wait_at_most(5)
        got = b""
        for size in sizes:
            come = paced.need(size)
            assert len(come) >= size
            got += bytes(come[:size])
            paced.taken(size)
        sender.join()
    assert got == content


def test_what_was_read_ahead_is_not_read_again(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.sendall(b"abcdef")
    ours.recv(6, socket.MSG_WAITALL | socket.MSG_PEEK)
    paced = PacedConnection(ours, Limits(), CAPACITY)
    assert bytes(paced.need(1)) == b"abcdef"
    paced.taken(4)
    theirs.close()
    assert bytes(paced.need(2)) == b"ef"
    paced.taken(2)
    with pytest.raises(ConnectionEnded):
        paced.need(1)


def test_it_reads_no_more_than_its_buffer_holds(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.sendall(bytes(3 * CAPACITY))
    ours.recv(3 * CAPACITY, socket.MSG_WAITALL | socket.MSG_PEEK)  # everything is here
    paced = PacedConnection(ours, Limits(), CAPACITY)
    assert len(paced.need(1)) == CAPACITY
    assert len(ours.recv(3 * CAPACITY, socket.MSG_DONTWAIT | socket.MSG_PEEK)) == 2 * CAPACITY


def test_a_peer_that_is_silent(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    paced = PacedConnection(ours, Limits(), CAPACITY)
    paced.wait_at_most(0.1)
    theirs.sendall(b"abc")
    began = time.monotonic()
    with pytest.raises(Silent):
        paced.need(4)
    assert time.monotonic() - began < 5
    theirs.sendall(b"d")
    assert bytes(paced.need(4)) == b"abcd"  # nothing is lost by waiting in vain


def test_bytes_that_were_read_ahead_count_for_their_message(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = ends
    monkeypatch.setattr(paced_connection, "_GRACE_SECONDS", 0.05)
    paced = PacedConnection(ours, Limits(min_bytes_per_second=1000), CAPACITY)
    theirs.sendall(bytes(CAPACITY))  # four seconds' worth
    ours.recv(CAPACITY, socket.MSG_WAITALL | socket.MSG_PEEK)
    paced.need(1)
    paced.taken(1)
    paced.begin_message()
    paced.need(CAPACITY - 1)
    paced.taken(CAPACITY - 1)
    theirs.sendall(b"x")
    paced.need(1)
    time.sleep(0.2)
    theirs.sendall(b"y")
    paced.need(2)  # not too slow: most of this message came with the one before


def test_a_peer_that_drips(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = ends
    monkeypatch.setattr(paced_connection, "_GRACE_SECONDS", 0.05)
    paced = PacedConnection(ours, Limits(min_bytes_per_second=1000), CAPACITY)
    theirs.sendall(b"x")
    paced.need(1)
    time.sleep(0.2)
    theirs.sendall(b"y")
    with pytest.raises(LimitExceeded):
        paced.need(2)
