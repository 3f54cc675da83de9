"""A web service that answers as a test tells it, well or badly: one answer for each connection."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

WAIT_S = 30.0

Reply = Callable[["Exchange"], None]


@dataclass
class Exchange:
    """One connection, of which the head of the request has been read."""

    connection: socket.socket
    method: str
    target: str
    headers: dict[str, str]
    first: bytes
    """What came with the head."""
    ended: threading.Event

    def body(self) -> bytes:
        """Read the rest of the request."""
        content = bytearray(self.first)
        while len(content) < int(self.headers.get("content-length", "0")):
            content += self.connection.recv(65536)
        return bytes(content)

    def answer(self, status: str, content: bytes = b"", **headers: str) -> None:
        """Send a whole answer."""
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + content)


def reply(status: str, content: bytes = b"", **headers: str) -> Reply:
    """Read all of the request, then answer."""

    def serve(exchange: Exchange) -> None:
        exchange.body()
        exchange.answer(status, content, **headers)

    return serve


@dataclass
class WebService:
    """What was asked of the service so far."""

    listening: socket.socket
    replies: Sequence[Reply]
    context: ssl.SSLContext | None
    asked: list[Exchange] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def port(self) -> int:
        return int(self.listening.getsockname()[1])

    @property
    def url(self) -> str:
        return f"{'https' if self.context else 'http'}://localhost:{self.port}/dicom-web"

    def serve(self) -> None:
        for number in range(1000):
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            with contextlib.suppress(OSError):  # a client that has gone, or will have no TLS
                self._serve(connection, self.replies[min(number, len(self.replies) - 1)])

    def _serve(self, connection: socket.socket, answer: Reply) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            connection.settimeout(WAIT_S)
            if self.context is not None:
                connection = self.context.wrap_socket(connection, server_side=True)
                stack.enter_context(connection)
            received = b""
            while b"\r\n\r\n" not in received:
                if not (more := connection.recv(65536)):
                    return
                received += more
            head, _, first = received.partition(b"\r\n\r\n")
            line, *lines = head.decode().split("\r\n")
            method, target, _ = line.split()
            headers = {key.lower(): value.strip() for key, _, value in (one.partition(":") for one in lines)}
            asked = Exchange(connection, method, target, headers, first, self.ended)
            self.asked.append(asked)
            answer(asked)


@contextmanager
def web_service(*replies: Reply, context: ssl.SSLContext | None = None) -> Iterator[WebService]:
    """Serve on a free port; the last answer is given for all later connections too."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        service = WebService(listening, replies, context)
        thread = threading.Thread(target=service.serve, daemon=True)
        thread.start()
        try:
            yield service
        finally:
            service.ended.set()
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            thread.join(WAIT_S)
            assert not thread.is_alive()
