"""The service class provider for storage, verification, storage commitment and the worklist.

Success is answered when the object is durable in the spool. The spool alone is the truth: an object is
handed on after its answer, and where that fails `ich_node.receive.received.rebuild` mends it.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any, cast

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RJ

from ich_node.receive.accepted import STORAGE_SOP_CLASS_UIDS, TRANSFER_SYNTAXES, UNCOMPRESSED
from ich_node.receive.admission import Refusal, StorageStatus, StoreRequest
from ich_node.receive.arrival import Arrival, Gate
from ich_node.receive.command_set import CommandSet
from ich_node.receive.commitment import CommitmentDesk
from ich_node.receive.commitment_association import CommitmentProvider
from ich_node.receive.commitment_event import ReportReception
from ich_node.receive.commitment_request import SOP_CLASS_UID as COMMITMENT_SOP_CLASS_UID
from ich_node.receive.commitment_results import CommitmentResults
from ich_node.receive.limits import AllowedPeer, Limits, find_peer
from ich_node.receive.opening import OpeningConnections
from ich_node.receive.received import AssociationSummary, ReceivedInstance, log_without_values
from ich_node.receive.register import AssociationRegister
from ich_node.receive.spool import Spool, SpoolWriter
from ich_node.receive.tls import ServerIdentity, TlsRefused, certificate_carries, handshake
from ich_node.receive.upper_layer import StorageAssociation, application_entity, configure_pynetdicom
from ich_node.receive.worklist_association import WorklistAnswers
from ich_node.receive.worklist_find import SOP_CLASS_UID as WORKLIST_SOP_CLASS_UID
from ich_node.receive.worklist_find import LookUp

_LOG = logging.getLogger(__name__)

VERIFICATION_SOP_CLASS_UID = "1.2.840.10008.1.1"
_APPLICATION_CONTEXT_NAME = "1.2.840.10008.3.1.1.1"
"""PS3.7 annex A.2.1; the only one there is."""
_STOP_SECONDS = 10.0


class Rejection(Enum):
    """Why an association is rejected: result, source and reason of PS3.8 table 9-21."""

    APPLICATION_CONTEXT_NAME_NOT_SUPPORTED = (0x01, 0x01, 0x02)
    CALLING_AE_TITLE_NOT_RECOGNIZED = (0x01, 0x01, 0x03)
    """The caller is not among the peers, or calls from another address, or not over TLS as it must, or with the
    certificate of another."""
    CALLED_AE_TITLE_NOT_RECOGNIZED = (0x01, 0x01, 0x07)
    PROTOCOL_VERSION_NOT_SUPPORTED = (0x01, 0x02, 0x02)
    """Answered by pynetdicom's state machine."""
    LOCAL_LIMIT_EXCEEDED = (0x02, 0x03, 0x02)
    """Too many associations are open, in all or of this peer."""


@dataclass
class _Open:
    """A connection that is being served. Only its own thread changes it."""

    association_id: str
    accepted: socket.socket
    """As it was accepted, before its TLS handshake where it has one."""
    place: int | None = None
    """In the register, once its caller is known."""
    arrival: Arrival | None = None
    """Stored and answered, to be handed on."""
    writer: SpoolWriter | None = None
    """Opened in advance, while the sender prepares its next object."""
    series_instance_uids: dict[str, None] = field(default_factory=dict)
    stored: int = 0
    refused: int = 0
    unrecorded: int = 0


class StorageScp:
    """Serves associations over connections that it is given, each in a thread of its own.

    Parameters
    ----------
    ae_title
        Callers must name it; others are rejected with "called AE title not recognized".
    spool
        Where objects go.
    on_instance
        Called once for every acknowledged object, duplicates and conflicts too, in the thread of its
        association and after the answer was sent; the association waits for it. Must be safe to call from
        several threads at once.
    on_association_end
        Called once for every association that was established, after its last object was handed on.
    peers
        Who may call, by AE title and address; empty: anyone who can reach the address.
    limits
        Bounds on sizes, times and numbers.
    gate
        What keeps objects out whatever they are.
    register
        Of open associations, where several processes share their number.
    tls
        For connections over TLS.
    commitment
        Takes storage commitment requests; without it the SOP class is not accepted.
    results
        Keep what a PACS reports on this node's own requests. Only with ``commitment``.
    worklist
        Finds what is asked for by C-FIND; without it the SOP class is not accepted.
    """

    def __init__(
        self,
        *,
        ae_title: str,
        spool: Spool,
        on_instance: Callable[[ReceivedInstance], None],
        on_association_end: Callable[[AssociationSummary], None],
        peers: Sequence[AllowedPeer] = (),
        limits: Limits | None = None,
        gate: Gate | None = None,
        register: AssociationRegister | None = None,
        tls: ServerIdentity | None = None,
        commitment: CommitmentDesk | None = None,
        results: CommitmentResults | None = None,
        worklist: LookUp | None = None,
    ) -> None:
        configure_pynetdicom()
        self._limits = limits or Limits()
        self._spool = spool
        self._on_instance = on_instance
        self._on_association_end = on_association_end
        self._peers = tuple(peers)
        self._gate = gate or Gate()
        self._register = register or AssociationRegister(self._limits)
        self._tls = tls
        self.commitment = CommitmentProvider(commitment) if commitment else None
        self._reports = ReportReception(results) if results else None
        self._worklist = WorklistAnswers(worklist, anyone_may_call=not peers) if worklist else None
        self._entity = self._application_entity(ae_title)
        self._contexts = self._entity.supported_contexts
        self._open: dict[StorageAssociation, _Open] = {}
        self._connections = 0
        self._opening = OpeningConnections(self._limits.max_opening_per_host)
        self._stopping = False
        self._changed = threading.Condition()

    def serve(self, connection: socket.socket, *, over_tls: bool = False) -> bool:
        """Serve a connection in a thread of its own; returns at once.

        Returns
        -------
        bool
            False where too many are being opened; the connection is closed then.
        """
        with self._changed:
            if (
                self._stopping
                or self._connections >= self._limits.max_associations + self._limits.max_opening
            ):
                connection.close()
                return False
            self._connections += 1
        try:
            threading.Thread(
                target=self._run, args=(connection, over_tls), name="association", daemon=True
            ).start()
        except RuntimeError:  # the system has no more threads; who is being served goes on
            _LOG.error("closed a connection: no thread can be started for it")
            connection.close()
            with self._changed:
                self._connections -= 1
            return False
        return True

    @property
    def connections(self) -> int:
        """How many connections are being served, with those that are no associations yet."""
        return self._connections

    def stop(self) -> None:
        """Let a store that is under way finish, abort the associations, report their end."""
        with self._changed:
            self._stopping = True
            for association in self._open:
                association.interrupt()
            if not self._changed.wait_for(lambda: not self._open, _STOP_SECONDS):
                _LOG.warning("%d associations did not end in time", len(self._open))

    def begin_store(self, association: StorageAssociation, command: CommandSet, context_id: int) -> Arrival:
        """Take up an object; what is wrong with it is said when it has come whole."""
        context = association._accepted_cx[context_id]
        request = StoreRequest(
            sop_class_uid=command.sop_class_uid.decode("ascii", "replace"),
            sop_instance_uid=command.sop_instance_uid.decode("ascii", "replace"),
            abstract_syntax_uid=str(context.abstract_syntax),
            transfer_syntax_uid=str(context.transfer_syntax[0]),
        )
        state = self._open[association]
        writer, state.writer = state.writer, None
        arrival = Arrival(
            self._spool,
            self._gate,
            request,
            source_ae_title=str(association.requestor.ae_title).strip(),
            association_id=state.association_id,
            writer=writer,
            eager=len(self._open) == 1,  # with others, their work fills the time that this one waits
        )
        if association.received_bytes >= self._limits.max_association_bytes:
            arrival.refuse(
                Refusal(StorageStatus.OUT_OF_RESOURCES, "limit of bytes per association is reached")
            )
        return arrival

    def end_store(self, association: StorageAssociation, arrival: Arrival) -> tuple[int, str]:
        """Make an object durable and say what became of it."""
        state = self._open[association]
        try:
            arrival.commit()
            state.arrival = arrival
        except Refusal as refusal:
            state.refused += 1
            _LOG.warning("refused an object from %r: %s", str(association.requestor.ae_title), refusal)
            return int(refusal.status), refusal.comment
        except Exception as error:
            state.refused += 1
            log_without_values(_LOG, "an object was not stored", error)
            return int(StorageStatus.NOT_STORED), "internal error"
        return int(StorageStatus.SUCCESS), ""

    def after_store(self, association: StorageAssociation) -> None:
        """Hand an acknowledged object on."""
        state = self._open[association]
        arrival, state.arrival = state.arrival, None
        if arrival is None:
            return
        state.stored += 1
        with contextlib.suppress(OSError):  # the next object will say so
            state.writer = self._spool.writer()
        try:
            received = arrival.received()
            state.series_instance_uids[received.instance.series_instance_uid] = None
            self._on_instance(received)
        except Exception as error:
            state.unrecorded += 1
            log_without_values(_LOG, "an object is in the spool but was not recorded", error)

    def after_request(self, association: StorageAssociation) -> None:
        """Report what has been committed, over the same association."""
        if self.commitment is not None:
            self.commitment.report_due(association)

    def answered(self, association: StorageAssociation, message: Any) -> None:
        """Take the answer to a report."""
        if self.commitment is not None:
            self.commitment.answered(association, message.MessageIDBeingRespondedTo, message.Status)

    def end(self, association: StorageAssociation) -> None:
        """Report the end of an association, and give its place to others."""
        state = self._open[association]
        if state.writer is not None:
            state.writer.discard()
        try:
            if self.commitment is not None:
                self.commitment.association_ended(association)
            if state.place is not None:
                self._register.leave(state.place)
            if association.was_established:
                self._on_association_end(_summary(association, state))
        except Exception as error:
            log_without_values(_LOG, "the end of an association was not handed on", error)
        finally:
            with self._changed:
                del self._open[association]
                self._changed.notify_all()

    def _run(self, connection: socket.socket, over_tls: bool) -> None:
        host, accepted = "", connection
        try:
            host = str(connection.getpeername()[0])
            self._opening.add(accepted, host)
            if over_tls:
                connection = self._secured(connection)
            self._associate(connection, accepted)
        except TlsRefused as refused:
            _LOG.warning("refused a connection over TLS from %s: %s", host, refused)
        except OSError:  # gone before it began
            pass
        except Exception as error:
            log_without_values(_LOG, "a connection failed", error)
        finally:
            with contextlib.suppress(OSError):
                connection.close()
            self._opening.remove(accepted)
            with self._changed:
                self._connections -= 1

    def _secured(self, connection: socket.socket) -> ssl.SSLSocket:
        if self._tls is None:
            raise TlsRefused("this process has no certificate")
        return handshake(connection, self._tls.context(), deadline_s=self._limits.acse_timeout_s)

    def _associate(self, connection: socket.socket, accepted: socket.socket) -> None:
        handlers: list[tuple[Any, Callable[..., Any]]] = [
            (evt.EVT_REQUESTED, self._check_caller),
            (evt.EVT_ASYNC_OPS, lambda event: (1, 1)),
        ]
        if self.commitment is not None:
            handlers.append((evt.EVT_N_ACTION, self.commitment.handle_n_action))
        if self._reports is not None:
            handlers.append((evt.EVT_N_EVENT_REPORT, self._reports.handle))
        if self._worklist is not None:
            handlers.append((evt.EVT_C_FIND, self._worklist.handle))
        association = StorageAssociation(
            self._entity,
            connection,
            limits=self._limits,
            contexts=self._contexts,
            handlers=handlers,
            service=self,
        )
        with self._changed:
            self._open[association] = _Open(association_id=uuid.uuid4().hex, accepted=accepted)
            if self._stopping:
                association.interrupt()
        association.serve()

    def _application_entity(self, ae_title: str) -> AE:
        entity = application_entity(ae_title, self._limits)
        entity.add_supported_context(VERIFICATION_SOP_CLASS_UID, list(UNCOMPRESSED))
        if self.commitment is not None:
            # Both roles: a PACS that calls to report on this node's requests is the provider.
            both = None if self._reports is None else True
            entity.add_supported_context(COMMITMENT_SOP_CLASS_UID, list(UNCOMPRESSED), both, both)
        if self._worklist is not None:
            entity.add_supported_context(WORKLIST_SOP_CLASS_UID, list(UNCOMPRESSED))
        for uid in STORAGE_SOP_CLASS_UIDS:
            entity.add_supported_context(uid, list(TRANSFER_SYNTAXES))
        return entity

    def _check_caller(self, event: evt.Event) -> None:
        association = cast(StorageAssociation, event.assoc)
        try:
            self._judge_caller(event, association)
        except Exception as error:  # pynetdicom would log it and accept the association
            log_without_values(_LOG, "a caller could not be checked", error)
            association.is_aborted = True  # first: nobody gets in, even if the abort fails too
            association.abort(block=False)

    def _judge_caller(self, event: evt.Event, association: StorageAssociation) -> None:
        requested: Any = association.requestor.primitive
        ae_title = str(requested.calling_ae_title).strip()
        association.requestor.ae_title = requested.calling_ae_title
        if str(requested.application_context_name) != _APPLICATION_CONTEXT_NAME:
            _reject(event, Rejection.APPLICATION_CONTEXT_NAME_NOT_SUPPORTED)
        elif str(requested.called_ae_title).strip() != self._entity.ae_title.strip():
            _reject(event, Rejection.CALLED_AE_TITLE_NOT_RECOGNIZED)
        elif not self._may_call(association, ae_title):
            _reject(event, Rejection.CALLING_AE_TITLE_NOT_RECOGNIZED)
        else:
            place = self._register.enter(ae_title, association.requestor.address)
            self._open[association].place = place
            self._opening.remove(self._open[association].accepted)
            if place is None:
                _reject(event, Rejection.LOCAL_LIMIT_EXCEEDED)

    def _may_call(self, association: StorageAssociation, ae_title: str) -> bool:
        if not self._peers:
            return True
        peer = find_peer(self._peers, ae_title, association.requestor.address)
        if peer is None:
            return False
        connection = association.connection
        if not isinstance(connection, ssl.SSLSocket):
            return not (peer.tls or peer.certificate)
        if peer.certificate and not certificate_carries(connection, peer.certificate):
            _LOG.warning("%r called with a certificate that is not bound to it", peer.ae_title)
            return False
        return True


def _reject(event: evt.Event, rejection: Rejection) -> None:
    caller = event.assoc.requestor
    why = A_ASSOCIATE_RJ()
    why.result, why.source, why.reason_diagnostic = rejection.value
    _LOG.warning(
        "rejected an association of %r from %s: %s", str(caller.ae_title), caller.address, why.reason_str
    )
    event.assoc.is_rejected = True
    event.assoc.acse.send_reject(*rejection.value)


def _summary(association: Association, state: _Open) -> AssociationSummary:
    return AssociationSummary(
        association_id=state.association_id,
        calling_ae_title=str(association.requestor.ae_title).strip(),
        peer_host=str(association.requestor.address),
        released=bool(association.is_released),
        series_instance_uids=tuple(state.series_instance_uids),
        stored=state.stored,
        refused=state.refused,
        unrecorded=state.unrecorded,
        ended_at=datetime.now(UTC),
    )
