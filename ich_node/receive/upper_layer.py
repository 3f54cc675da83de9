"""pynetdicom, set up for this process and extended where a peer requests the association.

No module but this one and `requestor`, its counterpart where this node requests, changes how it behaves.

Each override below says which behaviour of pynetdicom 3.0.4 it replaces and why;
``tests/unit/test_receive_upper_layer.py`` holds them to that version.

An association runs in one thread, the one that calls `StorageAssociation.serve`: it waits in the socket
alone, its state machine acts at once on what comes, and objects go from the socket to their `Arrival`
without becoming messages in between. Upstream has two threads for an association that look every
millisecond whether something has happened, and holds each message whole.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, cast

from pydicom import config as pydicom_config
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dimse_primitives import C_FIND, N_ACTION, N_EVENT_REPORT
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]
from pynetdicom.transport import AddressInformation, AssociationSocket

from ich_node.codes import IMPLEMENTATION_CLASS_UID
from ich_node.receive.arrival import Arrival
from ich_node.receive.command_set import (
    CommandSet,
    response_pdu,
)
from ich_node.receive.limits import Limits
from ich_node.receive.message_reader import MessageReader
from ich_node.receive.paced_connection import (
    ConnectionEnded,
    PacedConnection,
    PeerFault,
    ProtocolViolation,
    Silent,
    close_gently,
)
from ich_node.receive.pdu_admission import (
    AWAITING_CLOSE,
    IN_TRANSFER,
    OPENING,
    PduType,
    admit,
    longest_pdu_bytes,
)
from ich_node.receive.received import log_without_values
from ich_node.receive.requestor import RequestingEntity
from ich_node.receive.service import StoreService
from ich_node.receive.spool import IMPLEMENTATION_VERSION_NAME
from ich_node.receive.worklist_find import SOP_CLASS_UID as WORKLIST_FIND

_LOG = logging.getLogger(__name__)

_PDU_HEADER = struct.Struct(">BBI")
_VERSION_1 = 0x0001
"""Of the upper layer protocol."""
_A_ABORT_BY_PROVIDER = b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x00"
"""PS3.8 9.3.8: source service-provider, reason not specified."""
_REQUESTED, _CLOSED, _ARTIM_EXPIRED, _INVALID_PDU = "Evt6", "Evt17", "Evt18", "Evt19"
"""States and events of PS3.8 tables 9-1 to 9-10."""
_LONGEST_KEPT_BYTES = 2**15
"""Of requests for associations; 128 presentation contexts take 10 KB."""


def configure_pynetdicom() -> None:
    """Set pynetdicom's process-wide options; every process that speaks DICOM calls this first.

    Its loggers say next to nothing: even its errors quote what a peer sent. What matters is logged here.
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
    # pydicom warns of a value that breaks the rules, in its log and on stderr, and quotes it.
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
    AssociationSocket._shutdown_socket = _shut_down_and_close  # type: ignore[method-assign,assignment]
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)


def application_entity(ae_title: str, limits: Limits) -> RequestingEntity:
    """Make an application entity that names this software and obeys the limits."""
    entity = RequestingEntity(ae_title=ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.maximum_associations = limits.max_associations
    entity.maximum_pdu_size = limits.max_pdu_bytes
    entity.acse_timeout = limits.acse_timeout_s
    entity.dimse_timeout = limits.dimse_timeout_s
    entity.network_timeout = limits.network_timeout_s
    return entity


class _Socket(AssociationSocket):
    """The connection of an association.

    Upstream reads in steps of 4 KiB that are copied twice, buffers whatever length a PDU claims, 4 GiB
    included, and asks ``select`` first, which fails for descriptors above 1023. Nothing here reads but
    `paced`; upstream's class is kept for sending and closing.
    """

    def __init__(self, association: Association, connection: socket.socket, limits: Limits) -> None:
        super().__init__(association, client_socket=connection)
        self.paced = PacedConnection(connection, limits, 6 + longest_pdu_bytes(limits))


class _UpperLayer(DULServiceProvider):
    """The state machine of PS3.8 section 9.2, driven by the association's own thread.

    Upstream runs it in a thread of its own, which sleeps 1 ms whenever there was nothing to do.
    """

    _limits: Limits

    def send_pdu(self, primitive: Any) -> None:
        """Send at once; upstream leaves it to its thread."""
        super().send_pdu(primitive)
        while not self._kill_thread and self._process_recv_primitive():
            self.run_events()

    def receive_pdu(self, wait: bool = False, timeout: float | None = None) -> Any:
        """Return what the peer asks of the association; upstream waits for its thread to queue it."""
        while wait and self.to_user_queue.empty() and self.state_machine.current_state == OPENING:
            self.step(self._limits.acse_timeout_s)
        return super().receive_pdu(wait=False)

    def run_events(self) -> None:
        """Let the state machine act on everything that has happened, until the connection is closed."""
        while self.event_queue.queue and not self._kill_thread:  # only this thread takes from it
            self.state_machine.do_action(self.event_queue.get(block=False))

    def step(self, wait_s: float) -> None:
        """Read a PDU, or several that are there already, and act on it.

        Raises
        ------
        Silent
            Nothing came in time, in the midst of an association.
        """
        paced = cast(_Socket, self.socket).paced
        try:
            paced.wait_at_most(wait_s)
            self._read_one(paced)
        except Silent:
            if self.state_machine.current_state == IN_TRANSFER:
                raise
            if self.state_machine.current_state == OPENING:
                _LOG.warning(
                    "closing a connection from %s: no association was requested", self.assoc.requestor.address
                )
            self.event_queue.put(_ARTIM_EXPIRED)
        except ConnectionEnded:
            association = cast(StorageAssociation, self.assoc)
            if association.is_interrupted and self.state_machine.current_state == IN_TRANSFER:
                association.abort(block=False)
            else:
                self.event_queue.put(_CLOSED)
        except PeerFault as fault:
            _LOG.warning("aborting an association from %s: %s", self.assoc.requestor.address, fault)
            self.event_queue.put(_INVALID_PDU)
        self.run_events()

    def _read_one(self, paced: PacedConnection) -> None:
        kind, _, length = _PDU_HEADER.unpack_from(paced.need(6))
        admit(kind, length, self.state_machine.current_state, self._limits)
        pdus = paced.need(6 + length)
        if kind == PduType.P_DATA_TF and self.state_machine.current_state == IN_TRANSFER:
            cast(StorageAssociation, self.assoc).take(pdus, 6 + length)
        else:
            paced.taken(6 + length)
            self._hand_on(bytearray(pdus[: 6 + length]))

    def _hand_on(self, pdu: bytearray) -> None:
        """Decode as upstream does; what it cannot decode is an invalid PDU."""
        decoded: Any
        try:
            if pdu[0] == PduType.A_ASSOCIATE_RQ and len(pdu) <= _LONGEST_KEPT_BYTES:
                decoded, event = _decoded_request(bytes(pdu)), _REQUESTED
            else:
                decoded, event = self._decode_pdu(pdu)
                _make_primitive(decoded)
            primitive = decoded.to_primitive()
        except Exception:  # pynetdicom raises whatever the damage leads to
            raise ProtocolViolation("a PDU cannot be decoded") from None
        if isinstance(decoded, A_ASSOCIATE_RQ):
            contexts = primitive.presentation_context_definition_list
            if not all(context.abstract_syntax and context.transfer_syntax for context in contexts):
                raise ProtocolViolation("a presentation context lacks its abstract or transfer syntax")
            # Only this bit is to be looked at (PS3.8 9.3.2); upstream rejects who speaks other versions too.
            decoded.protocol_version &= _VERSION_1
            if not decoded.protocol_version:
                _LOG.warning(
                    "rejected an association from %s: protocol version", self.assoc.requestor.address
                )
        self._recv_pdu.put(decoded)
        self.event_queue.put(event)


class StorageAssociation(Association):
    """An association in which this node is the acceptor, served by the thread that calls `serve`.

    Parameters
    ----------
    entity
        This node.
    connection
        Accepted, and past its TLS handshake where it has one.
    limits
        Bounds on sizes and times.
    contexts
        Presentation contexts that are accepted. Shared by all associations: upstream copies the whole list
        for each, which takes longer than to receive an image.
    handlers
        As of pynetdicom, for everything but C-STORE.
    service
        Takes the objects.
    """

    dul: _UpperLayer

    def __init__(
        self,
        entity: AE,
        connection: socket.socket,
        *,
        limits: Limits,
        contexts: Sequence[PresentationContext],
        handlers: Sequence[tuple[Any, Callable[..., Any]]],
        service: StoreService,
    ) -> None:
        super().__init__(entity, "acceptor")
        self.dul = _UpperLayer(self)
        self.dul._limits = limits
        self.acse_timeout = entity.acse_timeout
        self._started_dul = True  # no thread is started for it
        self._is_paused = True  # whoever sends a request does so in this thread
        self.limits = limits
        self.was_established = False
        self.received_bytes = 0
        """Of all data sets so far."""
        self._service = service
        self.connection = connection
        self.is_interrupted = False
        self.find_is_canceled = False
        self._messages = MessageReader(limits, self)
        self._socket = _Socket(self, connection, limits)
        self.set_socket(self._socket)
        self._describe(entity, contexts)
        for event, handler in handlers:
            self.bind(event, handler)

    def serve(self) -> None:
        """Run the association from its request until the connection is closed."""
        try:
            self.dul.run_events()
            self.run_reactor()
        except Exception as error:
            log_without_values(_LOG, "an association failed", error)
            self._give_up()
        finally:
            self._messages.abandon()
            self._service.end(self)
            self._part()

    def interrupt(self) -> None:
        """Abort the association from another thread, as soon as what is under way has been answered."""
        self.is_interrupted = True
        if not self._messages.is_between_messages:
            return  # looked at again when the message is complete
        with contextlib.suppress(OSError):
            # Of the class: an SSLSocket's own would forget its encryption.
            socket.socket.shutdown(self.connection, socket.SHUT_RD)

    def kill(self) -> None:
        """End the loop; upstream also waits for its other thread."""
        self._kill = True
        self.is_established = False

    def take(self, pdus: memoryview, first: int) -> None:
        """Take P-DATA-TF PDUs, past pynetdicom's decoder and message queue.

        Parameters
        ----------
        pdus
            All bytes that have come.
        first
            Length of the first PDU in them, which is whole and of this type.

        Raises
        ------
        PeerFault
            The association is to be aborted.
        """
        taken = self._messages.take_run(pdus)
        if not taken:
            self._messages.take(pdus[6:first], self._accepted_cx)
            taken = first
        self._socket.paced.taken(taken)
        if self._messages.is_between_messages:
            self._socket.paced.begin_message()

    def begin_store(self, command: CommandSet, context_id: int) -> Arrival:
        """Take up an object."""
        return self._service.begin_store(self, command, context_id)

    def end_store(self, command: CommandSet, context_id: int, arrival: Arrival) -> None:
        """Answer C-STORE; upstream builds the answer as a data set and leaves it to its other thread."""
        self.received_bytes += arrival.size_bytes
        status, comment = self._service.end_store(self, arrival)
        self.send(response_pdu(command, context_id, status, comment))
        self._service.after_store(self)

    def finds_over(self, context_id: int) -> bool:
        """Whether a presentation context was accepted for questions about the worklist."""
        context = self._accepted_cx.get(context_id)
        return context is not None and context.abstract_syntax == WORKLIST_FIND

    def cancel_find(self) -> None:
        """Answer no further: one question is open at a time, and what comes is in order."""
        self.find_is_canceled = True

    def looks_on(self) -> bool:
        """Take what has come while a question is being answered; false where no more answers are wanted.

        Not past a request that is to be served after it: a peer that goes on asking would fill the memory.
        """
        while self._is_in_transfer() and not self.dimse.msg_queue.queue and self._socket.paced.has_more():
            self.dul.step(self.limits.network_timeout_s)
        if not self._is_in_transfer():
            self.is_established = False  # upstream then sends no last answer
        return self.is_established and not self.find_is_canceled

    def hand_on(self, context_id: int, value: bytes) -> None:
        """Put a message together; upstream serves an N-EVENT-REPORT request in a thread of its own."""
        primitive = P_DATA()
        values: Any = [context_id, value]
        primitive.presentation_data_value_list = [values]
        message = self.dimse.message = self.dimse.message or DIMSEMessage()
        try:
            if message.decode_msg(primitive, self):
                self.dimse.msg_queue.put((context_id, cast(Any, message.message_to_primitive())))
                self.dimse.message = None
        except Exception:  # pynetdicom raises whatever the damage leads to
            raise ProtocolViolation("a message cannot be decoded") from None

    def send(self, pdu: bytes) -> None:
        """Send a PDU past the state machine, which it does not concern."""
        self._socket.send(pdu)

    def _is_in_transfer(self) -> bool:
        return bool(self.dul.state_machine.current_state == IN_TRANSFER) and not self._kill

    def _run_reactor(self) -> None:
        """Serve the association until it ends; upstream looks every millisecond whether something came."""
        self.was_established = True
        self._socket.paced.deadline = float("inf")
        self._socket.paced.begin_message()
        while not self._kill:
            context_id, message = self.dimse.get_msg()
            is_open = self.dul.state_machine.current_state == IN_TRANSFER
            if message is not None and is_open:  # it may have come in one PDU with what ended the association
                self._serve(message, cast(int, context_id))
            elif self.acse.is_release_requested():
                self.acse.send_release(is_response=True)
                self.is_released, self.is_established = True, False
                return
            elif self.acse.is_aborted() or not is_open:
                self.is_aborted, self.is_established = True, False
                return
            else:
                self._read_on()

    def _serve(self, message: Any, context_id: int) -> None:
        if message.is_valid_request and not _names_its_service(message):
            self._abort_because("a request names the SOP class of another service")
        elif message.is_valid_request:
            self.find_is_canceled = False
            self._serve_request(message, context_id)
            self._service.after_request(self)
        elif message.is_valid_response:
            self._service.answered(self, message)
        else:
            self._abort_because("a message lacks what it must have")

    def _abort_because(self, fault: str) -> None:
        _LOG.warning("aborting an association from %s: %s", self.requestor.address, fault)
        self.abort(block=False)

    def _read_on(self) -> None:
        if self.is_interrupted and self._messages.is_between_messages:
            self.abort(block=False)
            return
        try:
            self.dul.step(self.limits.network_timeout_s)
            while not self._has_news():
                self.dul.step(self.limits.network_timeout_s)
        except Silent:
            self._abort_because("it is idle")

    def _has_news(self) -> bool:
        """Whether there is something else to do than to read on; cheap, as it is asked after each PDU."""
        return bool(
            self.dimse.msg_queue.queue
            or self.dul.to_user_queue.queue
            or self.dul.state_machine.current_state != IN_TRANSFER
            or self._kill
            or self.is_interrupted
        )

    def _give_up(self) -> None:
        """Abort past the state machine, which cannot be relied on any more."""
        if self.dul.state_machine.current_state in (OPENING, IN_TRANSFER):
            self.dul.state_machine.current_state = AWAITING_CLOSE
            self.is_aborted, self.is_established = True, False
            self.send(_A_ABORT_BY_PROVIDER)

    def _part(self) -> None:
        """Close the connection so that the peer still gets what was sent last.

        Upstream closes at once; with unread bytes waiting that becomes a reset, which takes the A-ABORT or
        A-ASSOCIATE-RJ with it.
        """
        connection = self.connection
        if self.dul.state_machine.current_state == AWAITING_CLOSE:
            close_gently(connection)
        with contextlib.suppress(OSError):
            connection.close()
        self._socket.paced.release()

    def _describe(self, entity: AE, contexts: Sequence[PresentationContext]) -> None:
        self.acceptor.maximum_length = entity.maximum_pdu_size
        self.acceptor.ae_title = entity.ae_title
        self.acceptor.address_info = AddressInformation.from_tuple(self.connection.getsockname())
        self.acceptor.implementation_class_uid = entity.implementation_class_uid
        self.acceptor.implementation_version_name = entity.implementation_version_name
        self.acceptor.supported_contexts = list(contexts)
        self.requestor.address_info = AddressInformation.from_tuple(self.connection.getpeername())


@lru_cache(maxsize=16)
def _decoded_request(pdu: bytes) -> A_ASSOCIATE_RQ:
    """What asks for an association; nobody changes it.

    A scanner asks with the same bytes each time, often for each image, and upstream takes 5 ms to decode the
    usual 128 presentation contexts.
    """
    decoded = A_ASSOCIATE_RQ()
    decoded.decode(pdu)
    _make_primitive(decoded)
    return decoded


def _make_primitive(decoded: Any) -> None:
    """As the state machine would, which does not survive a failure, and is given the same then: it takes long."""
    primitive = decoded.to_primitive()
    decoded.to_primitive = lambda: primitive


def _names_its_service(request: Any) -> bool:
    """Whether the SOP class is one of the operation: upstream goes by the class alone, and answers both alike."""
    if isinstance(request, N_ACTION):
        return bool(request.RequestedSOPClassUID == StorageCommitmentPushModel)
    if isinstance(request, N_EVENT_REPORT):
        return bool(request.AffectedSOPClassUID == StorageCommitmentPushModel)
    if isinstance(request, C_FIND):
        return bool(request.AffectedSOPClassUID == WORKLIST_FIND)
    return bool(request.AffectedSOPClassUID == Verification)


def _shut_down_and_close(association_socket: AssociationSocket) -> None:
    """Close a socket in any case; upstream leaves it to the garbage collector when the peer was quicker."""
    connection = association_socket.socket
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()
