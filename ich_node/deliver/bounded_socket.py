"""The connection of an association that this node has opened, read within bounds."""

from __future__ import annotations

import socket
import time
from typing import cast

from pynetdicom.transport import AssociationSocket

_BLOCK = 2**16
_MAX_PDU_BYTES = 2**20
"""Eight times what this node says that it takes (`Limits.max_pdu_bytes`); some peers do not count their headers."""
_MAX_PDU_SECONDS = 60.0


class BoundedSocket(AssociationSocket):
    """Reads what a PDU claims to hold within bounds: of size, and of time, however often a byte of it comes.

    Upstream buffers up to 4 GiB, and waits anew for each byte; whoever waits for its thread waits with it.
    """

    def recv(self, nr_bytes: int) -> bytearray:
        """Read so many bytes, or fewer where the connection ends; `OSError` where a bound is met."""
        connection = cast(socket.socket, self.socket)
        if nr_bytes > _MAX_PDU_BYTES:
            raise OSError("a PDU claims to be longer than any that is taken")
        each_s = connection.gettimeout() or _MAX_PDU_SECONDS
        ends_at, received = time.monotonic() + each_s, bytearray()
        try:
            while len(received) < nr_bytes:
                connection.settimeout(max(0.001, ends_at - time.monotonic()))
                piece = connection.recv(min(nr_bytes - len(received), _BLOCK))
                if not piece:
                    break
                received += piece
                if time.monotonic() > ends_at:
                    raise TimeoutError
        finally:
            connection.settimeout(each_s)
        return received
