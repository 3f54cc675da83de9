"""One association that this node opens to a peer to report storage commitments to it (PS3.4 J.3.3)."""

from __future__ import annotations

import socket
import ssl
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import cast

from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context, evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_role
from pynetdicom.transport import AssociationSocket

from ich_node.receive.commitment import CommitmentDesk, is_confirmed
from ich_node.receive.commitment_folder import PendingCommitment
from ich_node.receive.commitment_request import SOP_CLASS_UID, SOP_INSTANCE_UID
from ich_node.receive.limits import AllowedPeer, Limits
from ich_node.receive.tls import certificate_carries
from ich_node.receive.upper_layer import application_entity, configure_pynetdicom

_UNCOMPRESSED: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]


@dataclass(frozen=True, kw_only=True)
class CallTimeouts:
    """How long to wait for a peer that is called, in seconds."""

    connection_s: float = 10.0
    """For the TCP connection."""
    acse_s: float = 15.0
    """For the answer to the association request and to the release."""
    dimse_s: float = 30.0
    """For the answer to one report."""
    network_s: float = 30.0
    """For the next byte within a message."""


class CommitmentCall:
    """An association with a peer, opened with its first report and released on exit.

    This node proposes the SOP class with the SCP role for itself (SCP/SCU role selection, PS3.7 D.3.3.4).

    Parameters
    ----------
    peer
        Whom to call; its port is set.
    ae_title
        Ours.
    timeouts
        How long to wait.
    tls_context
        For a peer with TLS.
    """

    def __init__(
        self,
        peer: AllowedPeer,
        *,
        ae_title: str,
        timeouts: CallTimeouts,
        tls_context: ssl.SSLContext | None = None,
    ) -> None:
        self._peer = peer
        self._ae_title = ae_title
        self._timeouts = timeouts
        self._tls_context = tls_context
        self._association: Association | None = None
        self._connection: socket.socket | None = None
        self._failure = ""
        self._message_id = 0
        self._ending = threading.Lock()
        self._is_ending = False

    def __enter__(self) -> CommitmentCall:
        """Nothing is opened yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the association and close the connection."""
        with self._ending:
            aborted, self._is_ending = self._is_ending, True
        if self._association is not None and self._association.is_established and not aborted:
            self._association.release()
        # pynetdicom leaves it open when the peer aborts the negotiation.
        if self._connection is not None:
            self._connection.close()

    def report(self, desk: CommitmentDesk, pending: PendingCommitment) -> str:
        """Tell the peer what became of one request.

        Returns
        -------
        str
            Why it does not know now, for a log; empty: it has confirmed the report.
        """
        if self._association is None and not self._failure:
            self._failure = self._open()
        if self._failure:
            return self._failure
        association = cast(Association, self._association)
        event_type, information = desk.report(pending)
        self._message_id = self._message_id % 0xFFFF + 1
        try:
            answer, _ = association.send_n_event_report(
                information, event_type, SOP_CLASS_UID, SOP_INSTANCE_UID, msg_id=self._message_id
            )
        except RuntimeError:
            self._failure = "the association was lost"
            return self._failure
        if "Status" not in answer:
            self._failure = "it did not answer the report, or the association was lost"
            return self._failure
        return (
            "" if is_confirmed(answer.Status) else f"it refused the report with status 0x{answer.Status:04X}"
        )

    def abort(self) -> None:
        """Break off, from another thread; a release that has begun goes on until its timeout.

        pynetdicom's state machine ends with an error when a release follows an abort.
        """
        with self._ending:
            association = self._association
            if association is not None and association.is_established and not self._is_ending:
                self._is_ending = True
                association.abort(block=False)

    def _open(self) -> str:
        configure_pynetdicom()
        if self._peer.tls and self._tls_context is None:
            return "it must be called over TLS, and receiver.tls.certificate is not set"
        waits = self._timeouts
        limits = Limits(
            acse_timeout_s=waits.acse_s, dimse_timeout_s=waits.dimse_s, network_timeout_s=waits.network_s
        )
        entity = application_entity(self._ae_title, limits)
        entity.connection_timeout = waits.connection_s
        tls_args = (self._tls_context, self._peer.host) if self._peer.tls and self._tls_context else None
        try:
            self._association = entity.associate(
                self._peer.host,
                self._peer.port,
                contexts=[build_context(SOP_CLASS_UID, _UNCOMPRESSED)],
                ae_title=self._peer.ae_title,
                ext_neg=[build_role(SOP_CLASS_UID, scp_role=True)],
                tls_args=tls_args,
                evt_handlers=[(evt.EVT_CONN_OPEN, self._connected)],
            )
        except OSError as error:
            return f"it cannot be reached: {error.strerror or error}"
        failure = self._why_not(self._association)
        if failure and self._association.is_established:
            self._association.abort()
        return failure

    def _connected(self, event: evt.Event) -> None:
        connection = cast(socket.socket, cast(AssociationSocket, event.assoc.dul.socket).socket)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A peer that stops within a PDU would hold pynetdicom's thread, and with it ours, for ever.
        connection.settimeout(self._timeouts.network_s)
        self._connection = connection

    def _why_not(self, association: Association) -> str:
        if self._connection is None:
            return "no connection, or no TLS handshake" if self._peer.tls else "no connection"
        answer = association.acceptor.primitive
        if association.is_rejected and answer is not None:
            return f"it rejected the association: {answer.result_str}, {answer.reason_str}"
        if association.rejected_contexts:
            return "it does not accept the storage commitment SOP class"
        if not association.is_established:
            return "it ended the connection, or did not answer the association request in time"
        if self._peer.certificate and not self._is_bound():
            return "its certificate is not the one that it is bound to"
        role = association.acceptor.role_selection.get(SOP_CLASS_UID)
        # One that says nothing of roles often takes the report all the same; one that says no does not.
        if role is not None and not role.scp_role:
            return "it does not accept this node as the SCP of storage commitment"
        return ""

    def _is_bound(self) -> bool:
        connection = self._connection
        if not isinstance(connection, ssl.SSLSocket):
            return not self._peer.tls
        return certificate_carries(connection, self._peer.certificate)
