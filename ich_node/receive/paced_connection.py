"""A connection that is read exactly, in the time and at the pace that the limits allow."""

from __future__ import annotations

import contextlib
import mmap
import select
import socket
import ssl
import struct
import time

from ich_node.receive.limits import Limits

_GRACE_SECONDS = 30.0
"""A message may be slow for so long."""
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 2**20
"""How long and how much is read off a connection that is ended."""


class PeerFault(Exception):
    """What a peer does that ends its association with A-ABORT. The text holds no value of what it sent."""


class LimitExceeded(PeerFault):
    """A peer sends more, or more slowly, than the limits allow."""


class ProtocolViolation(PeerFault):
    """What came is no DICOM, or not at this point."""


class ConnectionEnded(Exception):
    """The peer is gone."""


class Silent(Exception):
    """Nothing came in the time that was allowed."""


class PacedConnection:
    """Reads a connection through a buffer of fixed size, so that many short PDUs come with one call.

    Parameters
    ----------
    connection
        In blocking mode; with TLS after its handshake.
    limits
        ``acse_timeout_s``, ``network_timeout_s`` and ``min_bytes_per_second`` are used.
    capacity
        Size of the buffer in bytes: the most that `need` can be asked for.
    """

    def __init__(self, connection: socket.socket, limits: Limits, capacity: int) -> None:
        self._buffer = memoryview(mmap.mmap(-1, capacity))  # takes no memory before it is used
        self._start = self._end = 0
        self._connection = connection
        self._limits = limits
        self._plain = type(connection) is socket.socket
        self._wait_s = -1.0
        self._since: float | None = None
        self._bytes = 0
        self.deadline = time.monotonic() + limits.acse_timeout_s
        """The association must be requested by then."""
        self._set_timeout(socket.SO_SNDTIMEO, limits.network_timeout_s)

    def wait_at_most(self, seconds: float) -> None:
        """Let `need` raise `Silent` after so long without a byte."""
        if seconds != self._wait_s:
            self._wait_s = seconds
            self._set_timeout(socket.SO_RCVTIMEO, seconds)

    def begin_message(self) -> None:
        """Count bytes and time of a message anew."""
        self._since = None
        self._bytes = self._end - self._start

    def need(self, count: int) -> memoryview:
        """Read until so many bytes are there.

        Returns
        -------
        memoryview
            All that has been read and not `taken`, valid until the next call: ``count`` bytes or more.

        Raises
        ------
        ConnectionEnded, Silent, LimitExceeded
            The peer is gone, says nothing, or drips.
        """
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start + count > len(self._buffer):
            rest = self._buffer[self._start : self._end]
            self._buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        while self._end - self._start < count:
            read = self._read(self._buffer[self._end :])
            if read == 0:
                raise ConnectionEnded
            self._end += read
            self._check_pace(read)
        return self._buffer[self._start : self._end]

    def has_more(self) -> bool:
        """Whether something has come that was not `taken`; waits for nothing."""
        if self._end > self._start:
            return True
        if isinstance(self._connection, ssl.SSLSocket) and self._connection.pending():
            return True
        poll = select.poll()  # select() fails for descriptors above 1023
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(0))

    def taken(self, count: int) -> None:
        """Of what `need` gave, so many bytes at the beginning are dealt with."""
        self._start += count

    def release(self) -> None:
        """Give the buffer's memory back: the association lives on until the garbage is collected."""
        self._buffer = memoryview(b"")

    def _read(self, buffer: memoryview) -> int:
        try:
            if self._plain:
                try:
                    return self._connection.recv_into(buffer, 0, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    pass
            # A sender with Nagle's algorithm on holds the end of each message back until we acknowledge what
            # came before. The kernel forgets the option, so it is set whenever we are about to wait.
            if hasattr(socket, "TCP_QUICKACK"):
                self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            return self._connection.recv_into(buffer)
        except (BlockingIOError, TimeoutError):
            raise Silent from None
        except OSError:
            raise ConnectionEnded from None

    def _check_pace(self, count: int) -> None:
        now = time.monotonic()
        if self._since is None:
            self._since = now
        self._bytes += count
        seconds = now - self._since
        if seconds > _GRACE_SECONDS and self._bytes < seconds * self._limits.min_bytes_per_second:
            raise LimitExceeded("the peer sends too slowly")
        if now > self.deadline:
            raise LimitExceeded("the association was not requested in time")

    def _set_timeout(self, option: int, seconds: float) -> None:
        if self._plain:  # by the kernel: Python's own timeout would poll before each read
            timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
            self._connection.setsockopt(socket.SOL_SOCKET, option, timeval)
        else:
            self._connection.settimeout(seconds)


def close_gently(connection: socket.socket) -> None:
    """Say that nothing more comes, and read on for a moment, so that the peer gets what was sent last.

    A connection that is closed with unread bytes waiting is reset, which takes our last words with it.
    """
    deadline = time.monotonic() + _LINGER_SECONDS
    taken = 0
    with contextlib.suppress(OSError):
        # Of the class: an SSLSocket's own would forget its encryption.
        socket.socket.shutdown(connection, socket.SHUT_WR)
        connection.settimeout(_LINGER_SECONDS)
        while taken < _LINGER_BYTES and time.monotonic() < deadline:
            count = len(socket.socket.recv(connection, 65536))
            if count == 0:
                return
            taken += count
