"""The C-STORE and C-ECHO service class provider.

Success is answered when the object is durable in the spool. The spool alone is the truth, so a failing
``on_instance`` changes nothing of the answer: the object is there, the failure is logged and counted in the
association's summary, and `ich_node.receive.received.rebuild` mends it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, cast

from pydicom.dataset import Dataset
from pydicom.uid import (
    JPEG2000,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE

from ich_node.errors import ConfigurationError
from ich_node.receive.admission import Refusal, StorageStatus, StoreRequest, examine
from ich_node.receive.limits import AllowedPeer, Limits, is_allowed
from ich_node.receive.received import AssociationSummary, ReceivedInstance, log_without_values
from ich_node.receive.spool import Spool
from ich_node.receive.upper_layer import AssociationServer, application_entity, configure_pynetdicom

_LOG = logging.getLogger(__name__)

UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
TRANSFER_SYNTAXES = (
    *UNCOMPRESSED,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEG2000Lossless,
    JPEG2000,
    RLELossless,
)
"""Accepted for storage. Not Deflated (a small object may inflate without bound) and Big Endian (retired)."""
STORAGE_SOP_CLASS_UIDS = tuple(str(context.abstract_syntax) for context in AllStoragePresentationContexts)
"""Every standard storage SOP class: a study that is forwarded whole is taken whole, and what is not a head
CT gets its row with the reason, instead of a failed transfer at the scanner."""

VERIFICATION_SOP_CLASS_UID = "1.2.840.10008.1.1"

_REJECTED_PERMANENT, _SERVICE_USER, _CALLING_AE_NOT_RECOGNIZED = 0x01, 0x01, 0x03
"""PS3.8 table 9-21."""
_STOP_SECONDS = 10.0
_SHUTDOWN_POLL_SECONDS = 0.2


@dataclass
class _Tally:
    """What an open association has brought so far. Only its own thread changes it."""

    series_instance_uids: dict[str, None] = field(default_factory=dict)
    stored: int = 0
    refused: int = 0
    unrecorded: int = 0


class Receiver:
    """Listens for associations and puts every object that it accepts into the spool.

    Parameters
    ----------
    ae_title
        Callers must name it; others are rejected with "called AE title not recognized".
    host, port
        Where to listen; port 0 takes a free one.
    spool
        Where objects go.
    on_instance
        Called once for every acknowledged object, duplicates and conflicts too, in the thread of its
        association and before the answer is sent: keep it short. Must be safe to call from several threads
        at once.
    on_association_end
        Called once for every association that was established, after its last object was handled.
    peers
        Who may call, by AE title and address; empty: anyone who can reach the address.
    limits
        Bounds on sizes, times and numbers.
    """

    def __init__(
        self,
        *,
        ae_title: str,
        spool: Spool,
        on_instance: Callable[[ReceivedInstance], None],
        on_association_end: Callable[[AssociationSummary], None],
        host: str = "127.0.0.1",
        port: int = 11112,
        peers: Sequence[AllowedPeer] = (),
        limits: Limits | None = None,
    ) -> None:
        self._ae_title = ae_title
        self._address = (host, port)
        self._spool = spool
        self._on_instance = on_instance
        self._on_association_end = on_association_end
        self._peers = tuple(peers)
        self._limits = limits or Limits()
        self._server: AssociationServer | None = None
        self._tallies: dict[Association, _Tally] = {}
        self._ending = 0
        self._changed = threading.Condition()

    @property
    def port(self) -> int:
        """The TCP port that is listened on; 0 while stopped and none was chosen."""
        return int(self._server.server_address[1]) if self._server else self._address[1]

    def start(self) -> None:
        """Listen, and remove what an earlier receiver left unfinished in the spool.

        Raises
        ------
        ConfigurationError
            The address cannot be listened on.
        """
        configure_pynetdicom()
        entity = self._application_entity()
        handlers: list[Any] = [
            (evt.EVT_REQUESTED, self._check_caller),
            (evt.EVT_REJECTED, _log_rejection),
            (evt.EVT_ESTABLISHED, self._begin),
            (evt.EVT_C_STORE, self._answer),
            # Comes after the last object, but before the peer closes the connection, which some never do.
            (evt.EVT_RELEASED, lambda event: self._end(event.assoc)),
        ]
        try:
            server = AssociationServer(entity, self._address, handlers, self._limits, self._end)
        except OSError as error:
            host, port = self._address
            raise ConfigurationError(f"cannot listen on {host} port {port}: {error.strerror}") from None
        # The port is ours, so no other receiver is writing; nobody has been answered yet either.
        self._spool.remove_leftovers()
        self._server = server
        threading.Thread(
            target=server.serve_forever, args=(_SHUTDOWN_POLL_SECONDS,), name="dicom-receiver", daemon=True
        ).start()
        _LOG.info("receiving as %s on %s port %d", self._ae_title, self._address[0], self.port)

    def stop(self) -> None:
        """Stop listening, let a store that is under way finish, abort the associations, report their end."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.shutdown()
        with self._changed:
            for association in list(self._tallies):
                association.abort(block=False)
            if not self._changed.wait_for(lambda: not self._tallies and not self._ending, _STOP_SECONDS):
                _LOG.warning("%d associations did not end in time", len(self._tallies) + self._ending)

    def _application_entity(self) -> AE:
        entity = application_entity(self._ae_title, self._limits)
        entity.require_called_aet = True
        entity.add_supported_context(VERIFICATION_SOP_CLASS_UID, list(UNCOMPRESSED))
        for uid in STORAGE_SOP_CLASS_UIDS:
            entity.add_supported_context(uid, list(TRANSFER_SYNTAXES))
        return entity

    def _check_caller(self, event: evt.Event) -> None:
        requestor = event.assoc.requestor
        calling_ae_title = str(getattr(requestor.primitive, "calling_ae_title", ""))
        if is_allowed(self._peers, calling_ae_title, requestor.address):
            return
        event.assoc.requestor.ae_title = calling_ae_title
        event.assoc.acse.send_reject(_REJECTED_PERMANENT, _SERVICE_USER, _CALLING_AE_NOT_RECOGNIZED)
        event.assoc.is_rejected = True
        _log_rejection(event)
        event.assoc.kill()  # returns when the rejection is sent and the connection is closed

    def _begin(self, event: evt.Event) -> None:
        with self._changed:
            self._tallies[event.assoc] = _Tally()
            if self._server is None:
                event.assoc.abort(block=False)

    def _end(self, association: Association) -> None:
        with self._changed:
            tally = self._tallies.pop(association, None)
            if tally is None:
                return
            self._ending += 1
        try:
            self._on_association_end(_summary(association, tally))
        except Exception as error:
            log_without_values(_LOG, "the end of an association was not handed on", error)
        finally:
            with self._changed:
                self._ending -= 1
                self._changed.notify_all()

    def _answer(self, event: evt.Event) -> Dataset:
        tally = self._tallies[event.assoc]
        try:
            received = self._store(event)
        except Refusal as refusal:
            tally.refused += 1
            _LOG.warning("refused an object from %r: %s", str(event.assoc.requestor.ae_title), refusal)
            return _status(refusal.status, refusal.comment)
        except OSError as error:
            tally.refused += 1
            _LOG.error("an object could not be written: %s", error.strerror)
            return _status(StorageStatus.OUT_OF_RESOURCES, f"cannot write: {error.strerror}")
        except Exception as error:
            tally.refused += 1
            log_without_values(_LOG, "an object was not stored", error)
            return _status(StorageStatus.NOT_STORED, "internal error")
        tally.stored += 1
        tally.series_instance_uids[received.instance.series_instance_uid] = None
        try:
            self._on_instance(received)
        except Exception as error:
            tally.unrecorded += 1
            log_without_values(_LOG, "an object is in the spool but was not recorded", error)
        return _status(StorageStatus.SUCCESS, "")

    def _store(self, event: evt.Event) -> ReceivedInstance:
        request = _request(event)
        instance, study = examine(request, Path())
        source_ae_title = str(event.assoc.requestor.ae_title).strip()
        with request.data_set.getbuffer() as encoded:
            spooled = self._spool.store(
                encoded,
                sop_class_uid=request.sop_class_uid,
                sop_instance_uid=request.sop_instance_uid,
                transfer_syntax_uid=request.transfer_syntax_uid,
                source_ae_title=source_ae_title,
            )
        if spooled.conflict:
            _LOG.warning(
                "%s: another object came under the same SOP Instance UID; both are kept", spooled.file_name
            )
        return ReceivedInstance(
            spooled=spooled,
            instance=replace(instance, path=spooled.path),
            study=study,
            source_ae_title=source_ae_title,
            received_at=datetime.now(UTC),
        )


def _log_rejection(event: evt.Event) -> None:
    answer, caller = event.assoc.acceptor.primitive, event.assoc.requestor
    why = answer.reason_str if answer is not None else "no reason"
    _LOG.warning("rejected an association of %r from %s: %s", str(caller.ae_title), caller.address, why)


def _request(event: evt.Event) -> StoreRequest:
    request = cast(C_STORE, event.request)
    return StoreRequest(
        data_set=request.DataSet or BytesIO(),
        sop_class_uid=str(request.AffectedSOPClassUID),
        sop_instance_uid=str(request.AffectedSOPInstanceUID),
        abstract_syntax_uid=str(event.context.abstract_syntax),
        transfer_syntax_uid=str(event.context.transfer_syntax),
    )


def _status(status: StorageStatus, comment: str) -> Dataset:
    answer = Dataset()
    answer.Status = int(status)
    if comment:
        answer.ErrorComment = comment[:64]
    return answer


def _summary(association: Association, tally: _Tally) -> AssociationSummary:
    return AssociationSummary(
        calling_ae_title=str(association.requestor.ae_title).strip(),
        peer_host=str(association.requestor.address),
        released=bool(association.is_released),
        series_instance_uids=tuple(tally.series_instance_uids),
        stored=tally.stored,
        refused=tally.refused,
        unrecorded=tally.unrecorded,
        ended_at=datetime.now(UTC),
    )
