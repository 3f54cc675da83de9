"""One association with a PACS, as the user of a service: opened, used for requests one after the other, and ended."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AssociationSocket

from ich_node.client_tls import ClientTls, PeerCheck
from ich_node.deliver.bounded_socket import BoundedSocket
from ich_node.errors import ConfigurationError
from ich_node.receive.limits import Limits
from ich_node.receive.upper_layer import application_entity, configure_pynetdicom

_IS_RESPONSE = 0x8000
"""Of Command Field (0000,0100), PS3.7 table E.1-1."""
_PENDING = (0xFF00, 0xFF01)
_LAST_MESSAGE_ID = 0xFFFF


@dataclass(frozen=True, kw_only=True)
class Destination:
    """A PACS that results go to."""

    name: str
    """For people."""
    ae_title: str
    host: str
    port: int
    tls: ClientTls | None = None
    """``None``: not over TLS."""


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long to wait for a PACS, in seconds."""

    connection_s: float = 10.0
    """For the TCP connection, and again for the TLS handshake, however often the peer sends a byte of it."""
    acse_s: float = 30.0
    """For the answer to the association request and to the release."""
    dimse_s: float = 60.0
    """For the response to one object."""
    network_s: float = 60.0
    """For the next bytes to be taken, and for all of a PDU to come."""


class Call:
    """One association with a destination, opened on entry and ended on exit."""

    def __init__(
        self,
        destination: Destination,
        contexts: list[PresentationContext],
        calling_ae_title: str,
        timeouts: Timeouts,
    ) -> None:
        self._destination = destination
        self._contexts = contexts
        self._calling_ae_title = calling_ae_title
        self._timeouts = timeouts
        self._association: Association | None = None
        self._connection: socket.socket | None = None
        self._check = PeerCheck()
        self._is_unanswered = False
        self._message_id = 0
        self._is_answered = True
        self._is_astray = False
        self.failure = ""
        """Why there is no association at all; empty when there is one, or when no context was accepted."""

    def __enter__(self) -> Call:
        configure_pynetdicom()
        waits = self._timeouts
        limits = Limits(
            acse_timeout_s=waits.acse_s, dimse_timeout_s=waits.dimse_s, network_timeout_s=waits.network_s
        )
        entity = application_entity(self._calling_ae_title, limits)
        entity.connection_timeout = waits.connection_s
        to = self._destination
        try:
            context = to.tls.context(self._check) if to.tls else None
            self._association = entity.associate(
                to.host,
                to.port,
                contexts=self._contexts,
                ae_title=to.ae_title,
                tls_args=(context, to.host) if context else None,
                evt_handlers=[(evt.EVT_CONN_OPEN, self._connected), (evt.EVT_DIMSE_RECV, self._received)],
            )
        except ConfigurationError as error:
            self.failure = str(error)
            return self
        except (OSError, UnicodeError) as error:  # the name is none or not known, or no socket is to be had
            self.failure = f"cannot reach {to.host}: {getattr(error, 'strerror', None) or error}"
            return self
        self.failure = self._why_not(self._association)
        return self

    def __exit__(self, *_: object) -> None:
        if self._association is not None and self._association.is_established:
            if self._is_unanswered:
                self._association.abort()
            else:
                self._association.release()
        # pynetdicom leaves it open when the peer aborts the negotiation.
        if self._connection is not None:
            self._connection.close()

    @property
    def lost(self) -> str:
        """What to say of a request that was not answered."""
        if self._is_astray:
            return f"{self._destination.name} answered another request than it was sent"
        return f"{self._destination.name} did not answer, or the association was lost"

    @property
    def is_lost(self) -> bool:
        """Whether nothing more can be sent although there was an association."""
        # pynetdicom takes an association for established a while after it broke: another request would then wait
        # for its whole timeout.
        broken = self._is_unanswered or self._is_astray
        return broken or self._association is None or not self._association.is_established

    def accepts(self, sop_class_uid: str, transfer_syntaxes: Iterable[UID]) -> UID | None:
        """The first of the transfer syntaxes that the destination takes for a SOP class."""
        accepted = {
            (cx.abstract_syntax, cx.transfer_syntax[0])
            for cx in (self._association.accepted_contexts if self._association else ())
        }
        return next((syntax for syntax in transfer_syntaxes if (sop_class_uid, syntax) in accepted), None)

    def refusals(self, sop_class_uid: str) -> set[int]:
        """Why contexts of a SOP class were not accepted: results of PS3.8 table 9-18."""
        rejected = self._association.rejected_contexts if self._association else ()
        return {cx.result for cx in rejected if cx.abstract_syntax == sop_class_uid and cx.result is not None}

    def request(self, operation: Callable[[Association, int], Dataset]) -> Dataset | None:
        """Run one DIMSE operation; ``None`` when it was not answered.

        Parameters
        ----------
        operation
            From the association and the Message ID (0000,0110) to the status.
        """
        if self._association is None or self.is_lost:
            return None
        self._message_id = self._message_id % _LAST_MESSAGE_ID + 1
        self._is_answered = False
        try:
            status = operation(self._association, self._message_id)
        except RuntimeError:
            if self._association.is_established:
                raise
            status = Dataset()  # pynetdicom's word for an association that has ended meanwhile
        self._is_unanswered = "Status" not in status or self._is_astray
        return None if self._is_unanswered else status

    def _received(self, event: evt.Event) -> None:
        """Compare a response with the request: pynetdicom takes whatever comes next for its answer, and the verdict on
        one object would be taken for that on another.
        """
        command = event.message.command_set
        if not command.get("CommandField", 0) & _IS_RESPONSE:
            return  # a report of storage commitment
        if self._is_answered or command.get("MessageIDBeingRespondedTo") != self._message_id:
            self._is_astray = True
        self._is_answered = command.get("Status") not in _PENDING

    def _connected(self, event: evt.Event) -> None:
        transport = cast(AssociationSocket, event.assoc.dul.socket)
        transport.__class__ = BoundedSocket
        connection = cast(socket.socket, transport.socket)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Without it a peer that stops within a PDU would hold pynetdicom's thread, and with it ours, for
        # ever.
        connection.settimeout(self._timeouts.network_s)
        self._connection = connection

    def _why_not(self, association: Association) -> str:
        to = self._destination
        if association.is_established:
            return ""
        if self._check.refusal:
            return f"no TLS with {to.host} port {to.port}: {self._check.refusal}"
        if self._connection is None:
            return f"cannot connect to {to.host} port {to.port}"
        answer = association.acceptor.primitive
        if association.is_rejected and answer is not None:
            return f"{to.ae_title} rejected the association: {answer.result_str}, {answer.reason_str}"
        if association.rejected_contexts:  # pynetdicom aborts when every context was refused
            return ""
        return f"{to.ae_title} ended the connection, or did not answer the association request in time"
