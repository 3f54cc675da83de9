"""Connections that have sent something and are no association yet."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading

_LOG = logging.getLogger(__name__)


class OpeningConnections:
    """Lets no address have more than its share: one more cuts its oldest. Used by several threads.

    The allow-list of peers applies when an association is requested; until then anyone who reaches the port
    could take every place by sending one byte over each of many connections.

    Parameters
    ----------
    most_per_host
        Connections of one address that may be opening at once.
    """

    def __init__(self, most_per_host: int) -> None:
        self._most = most_per_host
        self._by_host: dict[str, dict[socket.socket, None]] = {}
        self._host_of: dict[socket.socket, str] = {}
        self._lock = threading.Lock()

    def add(self, connection: socket.socket, host: str) -> None:
        """Take note of a connection; the oldest of its address is cut where there are too many."""
        with self._lock:
            of_host = self._by_host.setdefault(host, {})
            oldest = next(iter(of_host)) if len(of_host) >= self._most else None
            of_host[connection] = None
            self._host_of[connection] = host
            if oldest is not None:
                self._forget(oldest)
                # With TLS its socket may have been taken over already; then the deadline of the handshake cuts it.
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
        if oldest is not None:
            _LOG.warning("cut a connection from %s: too many of them request no association", host)

    def remove(self, connection: socket.socket) -> None:
        """Forget a connection that has become an association or has ended."""
        with self._lock:
            self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        host = self._host_of.pop(connection, None)
        if host is None:
            return
        del self._by_host[host][connection]
        if not self._by_host[host]:
            del self._by_host[host]
