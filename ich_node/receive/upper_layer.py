"""pynetdicom, set up for this process and guarded: the only module that changes how it behaves.

Each override below says which behaviour of pynetdicom 3.0.4 it replaces and why.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
from collections.abc import Callable
from typing import Any, cast

from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from ich_node.codes import IMPLEMENTATION_CLASS_UID
from ich_node.receive.limits import Limits
from ich_node.receive.received import log_without_values
from ich_node.receive.spool import IMPLEMENTATION_VERSION_NAME

_LOG = logging.getLogger(__name__)

_PDU_HEADER_BYTES = 6
_PDU_TOLERANCE_BYTES = 1024
"""Some senders count the PDU or PDV headers differently and exceed the negotiated length by a few bytes."""
_COMMAND_ALLOWANCE_BYTES = 2**20
"""What a message may hold beside its data set."""
_LISTEN_BACKLOG = 128


def configure_pynetdicom() -> None:
    """Set pynetdicom's process-wide options; every process that speaks DICOM calls this first.

    Its loggers stay at WARNING: below that it logs whole identifiers, presentation contexts and data sets.
    """
    _config.LOG_HANDLER_LEVEL = "none"
    _config.LOG_REQUEST_IDENTIFIERS = False
    _config.LOG_RESPONSE_IDENTIFIERS = False
    # A UID that breaks the rules is answered with a status, not with an abort, so it must reach our own
    # check.
    _config.ENFORCE_UID_CONFORMANCE = False
    # A file is sent with the bytes it has, never decoded and encoded anew.
    _config.STORE_SEND_CHUNKED_DATASET = True
    # The spool writes received data sets itself, in its own file system.
    _config.STORE_RECV_CHUNKED_DATASET = False
    _config.UNRESTRICTED_STORAGE_SERVICE = False
    AssociationSocket._shutdown_socket = _shut_down_and_close  # type: ignore[method-assign,assignment]
    logger = logging.getLogger("pynetdicom")
    logger.setLevel(max(logger.level, logging.WARNING))


def application_entity(ae_title: str, limits: Limits) -> AE:
    """Make an application entity that names this software and obeys the limits."""
    entity = AE(ae_title=ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.maximum_associations = limits.max_associations
    entity.maximum_pdu_size = limits.max_pdu_bytes
    entity.acse_timeout = limits.acse_timeout_s
    entity.dimse_timeout = limits.dimse_timeout_s
    entity.network_timeout = limits.network_timeout_s
    return entity


class LimitExceeded(Exception):
    """A peer sends more than the limits allow. Raised inside pynetdicom, which answers it with A-ABORT."""


class GuardedSocket(AssociationSocket):
    """Reads no PDU and no message that is longer than the limits allow."""

    _limits: Limits
    _message_bytes: int

    @classmethod
    def guard(cls, original: AssociationSocket, limits: Limits) -> GuardedSocket:
        """Take over an association's socket. Upstream offers no place to name another class for it."""
        guarded = cls.__new__(cls)
        guarded.__dict__.update(original.__dict__)
        guarded._limits = limits
        guarded._message_bytes = 0
        return guarded

    def message_ended(self) -> None:
        """Count anew: a whole message has been read."""
        self._message_bytes = 0

    def recv(self, nr_bytes: int) -> bytearray:
        """Read ``nr_bytes``, or fewer when the peer closes.

        Upstream buffers whatever length a PDU claims, 4 GiB included, in steps of 4 KiB that are copied
        twice.
        """
        self._admit(nr_bytes)
        received = bytearray(nr_bytes)
        have = 0
        connection = cast(socket.socket, self.socket)
        with memoryview(received) as view:
            while have < nr_bytes:
                count = connection.recv_into(view[have:])
                if count == 0:
                    break
                have += count
                _acknowledge_at_once(connection)
        del received[have:]
        return received

    def _admit(self, nr_bytes: int) -> None:
        if nr_bytes == _PDU_HEADER_BYTES:
            return
        if nr_bytes > self._limits.max_pdu_bytes + _PDU_TOLERANCE_BYTES:
            raise LimitExceeded("the PDU is longer than the Maximum Length that was offered")
        self._message_bytes += nr_bytes
        if self._message_bytes > self._limits.max_object_bytes + _COMMAND_ALLOWANCE_BYTES:
            raise LimitExceeded("the object is larger than this node accepts")


class _Connection(RequestHandler):
    """One connection, from its acceptance until its association's threads have ended."""

    server: AssociationServer

    def handle(self) -> None:
        """Run the association to its end.

        Upstream starts its threads and returns, and its events of release, abort and closed connection come
        from two threads, before the last object may have been handled. After the join nothing of it runs
        any more.
        """
        association = self._create_association()
        unguarded = cast(AssociationSocket, association.dul.socket)
        association.dul.socket = GuardedSocket.guard(unguarded, self.server.limits)
        evt.trigger(association, evt.EVT_CONN_OPEN, {"address": self.client_address})
        association.start()
        association.join()
        self.server.on_end(association)


class AssociationServer(ThreadedAssociationServer):
    """Accepts connections."""

    request_queue_size = _LISTEN_BACKLOG
    """Upstream keeps the default of `socketserver`, 5: further callers would wait for a second or more."""
    daemon_threads = True

    def __init__(
        self,
        entity: AE,
        address: tuple[str, int],
        handlers: list[Any],
        limits: Limits,
        on_end: Callable[[Association], None],
    ) -> None:
        self.limits = limits
        self.on_end = on_end
        super().__init__(
            entity,
            address,
            entity.ae_title,
            entity.supported_contexts,
            evt_handlers=[*handlers, (evt.EVT_DIMSE_RECV, _message_ended)],
            request_handler=_Connection,
        )
        # `AE.start_server` would do so; `shutdown` takes it out again.
        entity._servers.append(self)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection that answers without delay and cannot block a thread for ever.

        Upstream leaves accepted sockets without a timeout, so a peer that stops within a PDU holds its
        thread.
        """
        connection, address = super().get_request()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(self.limits.network_timeout_s)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log; upstream prints the error with its values to the standard error stream."""
        error = sys.exception()
        if error is not None:
            log_without_values(_LOG, "a connection failed", error)


def _shut_down_and_close(association_socket: AssociationSocket) -> None:
    """Close a socket in any case; upstream leaves it to the garbage collector when the peer was quicker."""
    connection = association_socket.socket
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


def _message_ended(event: evt.Event) -> None:
    association_socket = event.assoc.dul.socket
    if isinstance(association_socket, GuardedSocket):
        association_socket.message_ended()


def _acknowledge_at_once(connection: socket.socket) -> None:
    # A sender with Nagle's algorithm on holds the end of each message back until we acknowledge what came
    # before; the kernel forgets the option, so it is set after each read.
    if hasattr(socket, "TCP_QUICKACK"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
