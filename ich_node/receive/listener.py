"""Accepts TCP connections and hands each on when its peer has said something.

A connection without a word costs one descriptor here: no thread, no place among the associations, and no
wait for anybody else. On a TLS port the first word is the client's hello, so the handshake too is the
business of whoever the connection is handed to.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ich_node.errors import ConfigurationError
from ich_node.receive.limits import Limits

_LOG = logging.getLogger(__name__)

_BACKLOG = 512
_SWEEP_SECONDS = 1.0
_ACCEPTED_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An address to listen on."""

    host: str
    port: int
    """0 takes a free one."""
    tls: bool = False


class Listener:
    """Listens on several addresses in one thread.

    Parameters
    ----------
    endpoints
        Where to listen.
    on_connection
        Gets each connection whose peer has sent something, in blocking mode, and whether it came over a TLS
        endpoint. It owns the connection from then on and must return quickly.
    limits
        ``acse_timeout_s`` and ``max_silent`` are used.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        on_connection: Callable[[socket.socket, bool], None],
        limits: Limits,
    ) -> None:
        self._on_connection = on_connection
        self._limits = limits
        self._silent: dict[socket.socket, tuple[float, bool]] = {}
        # Half of the descriptors that this process may have: the rest is for its files and its database.
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_silent = min(limits.max_silent, descriptors // 2)
        self._stopped = threading.Event()
        self._listening = _bind_all(endpoints)
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = socket.socketpair()
        for waited_for in (*self._listening, self._woken):
            self._selector.register(waited_for, selectors.EVENT_READ)
        self.ports = tuple(int(server.getsockname()[1]) for server in self._listening)
        """In the order of the endpoints."""
        self._thread = threading.Thread(target=self._run, name="dicom-listener", daemon=True)

    def start(self) -> None:
        """Accept connections from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Accept no more and close the silent ones."""
        self._stopped.set()
        self._wake.send(b"\0")
        if self._thread.is_alive():
            self._thread.join()
        for connection in [*self._listening, *self._silent, self._woken, self._wake]:
            connection.close()
        self._silent.clear()
        self._selector.close()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                for key, _ in self._selector.select(_SWEEP_SECONDS):
                    ready = key.fileobj
                    if ready in self._listening:
                        self._accept(ready, self._listening[ready])
                    elif ready in self._silent:
                        self._speaks(ready)
            except OSError as error:  # out of descriptors, for example
                _LOG.error("cannot accept connections: %s", error.strerror)
                self._drop_oldest()
                self._stopped.wait(_SWEEP_SECONDS)
            self._close_silent()

    def _accept(self, server: socket.socket, tls: bool) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                connection, _ = server.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if len(self._silent) >= self._most_silent:
                self._drop_oldest()
            self._selector.register(connection, selectors.EVENT_READ)
            self._silent[connection] = (time.monotonic(), tls)

    def _speaks(self, connection: socket.socket) -> None:
        try:
            gone = connection.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return
        except OSError:
            gone = True
        if gone:
            self._drop(connection)
            return
        self._selector.unregister(connection)
        _, tls = self._silent.pop(connection)
        connection.setblocking(True)
        self._on_connection(connection, tls)

    def _close_silent(self) -> None:
        too_old = time.monotonic() - self._limits.acse_timeout_s
        closed = 0
        while self._silent and next(iter(self._silent.values()))[0] <= too_old:
            self._drop_oldest()
            closed += 1
        if closed:
            _LOG.info("closed %d connections that said nothing", closed)

    def _drop_oldest(self) -> None:
        if self._silent:
            self._drop(next(iter(self._silent)))

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._silent[connection]
        with contextlib.suppress(OSError):
            connection.close()


def _bind_all(endpoints: Sequence[Endpoint]) -> dict[socket.socket, bool]:
    listening: dict[socket.socket, bool] = {}
    try:
        for endpoint in endpoints:
            listening[_bound(endpoint)] = endpoint.tls
    except ConfigurationError:
        for server in listening:
            server.close()
        raise
    return listening


def _bound(endpoint: Endpoint) -> socket.socket:
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setblocking(False)
        server.bind((endpoint.host, endpoint.port))
        server.listen(_BACKLOG)
    except OSError as error:
        server.close()
        raise ConfigurationError(
            f"cannot listen on {endpoint.host} port {endpoint.port}: {error.strerror}"
        ) from None
    return server
