"""What worker and decoder process say to each other: JSON with its length before it, and open files beside it."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

_LENGTH = struct.Struct("<L")
_MOST_BYTES = 64 * 2**20


def send_message(connection: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send a message, and duplicates of open files with it.

    Raises
    ------
    OSError
        The other side is gone, or does not read in time (`TimeoutError`).
    """
    body = json.dumps(message, separators=(",", ":")).encode()
    socket.send_fds(connection, [_LENGTH.pack(len(body))], descriptors)
    connection.sendall(body)


def receive_message(connection: socket.socket, most_descriptors: int = 0) -> tuple[dict[str, Any], list[int]]:
    """Receive a message, and the open files that came with it: the caller closes them.

    Raises
    ------
    EOFError
        The other side is gone.
    OSError
        The same, or it does not write in time (`TimeoutError`).
    ValueError
        What came is no message.
    """
    head, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, most_descriptors)
    try:
        head += _receive(connection, _LENGTH.size - len(head))
        (length,) = _LENGTH.unpack(head)
        if length > _MOST_BYTES:
            raise ValueError("a message is too long")
        message = json.loads(_receive(connection, length))
        if not isinstance(message, dict):
            raise ValueError("a message is no object")
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return message, descriptors


def _receive(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(min(count - len(parts), 2**16))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
