"""Connections that request no association take no more than their address's share."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ich_node.receive.opening import OpeningConnections


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    with ExitStack() as stack:
        made = [socket.socketpair() for _ in range(4)]
        for ends in made:
            for end in ends:
                stack.enter_context(end)
                end.settimeout(5)
        yield made


def test_one_more_cuts_the_oldest_of_its_address(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    opening = OpeningConnections(2)
    for ours, _ in pairs[:3]:
        opening.add(ours, "192.0.2.1")
    assert pairs[0][1].recv(1) == b""
    for _, theirs in pairs[1:3]:
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


def test_other_addresses_and_associations_do_not_count(
    pairs: list[tuple[socket.socket, socket.socket]],
) -> None:
    opening = OpeningConnections(1)
    opening.add(pairs[0][0], "192.0.2.1")
    opening.add(pairs[1][0], "192.0.2.2")
    opening.remove(pairs[0][0])
    opening.add(pairs[2][0], "192.0.2.1")
    opening.remove(pairs[3][0])  # never added: nothing to forget
    for _, theirs in pairs[:3]:
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
