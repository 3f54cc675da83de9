"""Storage by DICOMweb (STOW-RS, PS3.18 section 10.5): the part of it that knows no web server.

Each part of a request is a DICOM file (PS3.10). Its File Meta Information is read and dropped, its data set
goes bit-preserving into the spool by the same way as from C-STORE, with the same checks and limits. A request
is an association of its own to whoever is handed what it brought.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from ich_node.receive.admission import Refusal, StorageStatus
from ich_node.receive.arrival import Gate
from ich_node.receive.incoming_file import IncomingFile
from ich_node.receive.limits import AllowedPeer, Limits, find_peer
from ich_node.receive.multipart_related import MediaType, MultipartError, MultipartReader
from ich_node.receive.received import AssociationSummary, ReceivedInstance, log_without_values
from ich_node.receive.spool import Spool
from ich_node.receive.store_response import StoreReport

_LOG = logging.getLogger(__name__)

SOURCE_AE_TITLE = "STOW-RS"
"""In place of a calling AE title, which the web does not know: in (0002,0016), rows and ``[[peers]]``."""
DICOM = "application/dicom"
MAX_PARTS = 50_000
"""Of one request; what became of each is kept until the answer."""

HandOn = Callable[[ReceivedInstance | AssociationSummary], None]


class BodyTooLarge(Exception):
    """A request has more bytes or parts than this node accepts in one."""


class StoreDesk:
    """Takes requests to store.

    Parameters
    ----------
    spool
        Where objects go.
    hand_on
        Gets every stored object, and the end of each request. May block; called from several threads.
    gate
        What keeps objects out whatever they are.
    limits
        Bounds on sizes and times.
    peers
        Who may send: an entry with AE title ``STOW-RS`` and the caller's address; empty: anyone who can
        reach the address.
    """

    def __init__(
        self,
        *,
        spool: Spool,
        hand_on: HandOn,
        gate: Gate | None = None,
        limits: Limits | None = None,
        peers: Sequence[AllowedPeer] = (),
    ) -> None:
        self.spool = spool
        self.hand_on = hand_on
        self.gate = gate or Gate()
        self.limits = limits or Limits()
        self._peers = tuple(peers)
        self._open: set[StoreSession] = set()
        self._lock = threading.Lock()

    def may_send(self, host: str) -> bool:
        """Whether this caller may store."""
        if not self._peers:
            return True
        peer = find_peer(self._peers, SOURCE_AE_TITLE, host)
        return peer is not None and not peer.tls  # the page is not served over TLS

    def open(self, *, boundary: str | None, study_instance_uid: str | None, host: str) -> StoreSession:
        """Begin a request.

        Parameters
        ----------
        boundary
            Of its parts; None: its body is one DICOM file.
        study_instance_uid
            That every object must be of; None: any.
        host
            Address of the caller.
        """
        session = StoreSession(
            self, boundary=boundary, study_instance_uid=study_instance_uid, host=host, on_end=self._forget
        )
        with self._lock:
            self._open.add(session)
        return session

    def close(self) -> None:
        """Break off every open request; what is stored of it is handed on."""
        with self._lock:
            sessions = list(self._open)
        for session in sessions:
            session.break_off()

    def _forget(self, session: StoreSession) -> None:
        with self._lock:
            self._open.discard(session)


class StoreSession:
    """One request to store, while it arrives. Made by `StoreDesk.open`.

    Its methods write to disk and may be called from any thread; one waits for another.
    """

    def __init__(
        self,
        desk: StoreDesk,
        *,
        boundary: str | None,
        study_instance_uid: str | None,
        host: str,
        on_end: Callable[[StoreSession], None],
    ) -> None:
        self._desk = desk
        self._gate = _RequestGate(desk.gate, study_instance_uid)
        self._host = host
        self._on_end = on_end
        self._association_id = uuid.uuid4().hex
        self._series: dict[str, None] = {}
        self._report = StoreReport()
        self._unrecorded = 0
        self._size_bytes = 0
        self._parts = 0
        self._part: IncomingFile | None = None
        self._lock = threading.Lock()
        self._over = False
        self._reader = None if boundary is None else MultipartReader(boundary, self)
        if self._reader is None:
            self.begin_part({})

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body.

        Raises
        ------
        MultipartError
            They cannot be told apart into parts. `break_off` is due.
        BodyTooLarge
            It brings more than one request may. `break_off` is due.
        """
        with self._lock:
            if self._over:
                return
            room = self._desk.limits.max_association_bytes - self._size_bytes
            self._size_bytes += len(chunk)
            self._split(chunk[: max(0, room)])
            if len(chunk) > room:
                raise BodyTooLarge

    def finish(self) -> StoreReport:
        """Say that the body has ended.

        Raises
        ------
        MultipartError
            It ended too early. `break_off` is due.
        """
        with self._lock:
            if self._over:
                return self._report
            if not self._size_bytes:
                raise MultipartError("the body is empty")
            if self._reader is None:
                self.end_part()
            else:
                self._reader.close()
            self._end(released=True)
            return self._report

    def break_off(self, reason: int = StorageStatus.CANNOT_UNDERSTAND) -> StoreReport:
        """End the request where it is: what is stored stays, what is not whole leaves nothing behind.

        Parameters
        ----------
        reason
            Failure Reason of the object that is not whole.
        """
        with self._lock:
            if self._part is not None:
                self._part.break_off()
                self._fail(self._part, reason)
                self._part = None
            self._end(released=False)
            return self._report

    def begin_part(self, headers: dict[str, str]) -> None:
        """See `PartTaker`."""
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise BodyTooLarge
        self._part = IncomingFile(
            self._desk.spool,
            self._gate,
            source_ae_title=SOURCE_AE_TITLE,
            association_id=self._association_id,
            max_bytes=self._desk.limits.max_object_bytes,
        )
        if MediaType.parse(headers.get("content-type", DICOM)).name != DICOM:
            self._part.fail(StorageStatus.CANNOT_UNDERSTAND, f"a part is not declared as {DICOM}")

    def take(self, fragment: memoryview) -> None:
        """See `PartTaker`."""
        assert self._part is not None
        self._part.write(fragment)

    def end_part(self) -> None:
        """See `PartTaker`."""
        part, self._part = self._part, None
        assert part is not None
        received = part.finish()
        if received is None:
            self._fail(part, part.failure_reason)
            return
        self._report.stored.append((received.instance.sop_class_uid, received.instance.sop_instance_uid))
        self._series[received.instance.series_instance_uid] = None
        try:
            self._desk.hand_on(received)
        except Exception as error:
            self._unrecorded += 1
            log_without_values(_LOG, "an object is in the spool but was not recorded", error)

    def _split(self, chunk: bytes) -> None:
        if self._reader is None:
            self.take(memoryview(chunk))
        else:
            self._reader.feed(chunk)

    def _fail(self, part: IncomingFile, reason: int) -> None:
        if part.identity is None:
            self._report.unidentified.append(reason)
        else:
            self._report.failed.append((*part.identity, reason))

    def _end(self, *, released: bool) -> None:
        if self._over:
            return
        self._over = True
        self._on_end(self)
        summary = AssociationSummary(
            association_id=self._association_id,
            calling_ae_title=SOURCE_AE_TITLE,
            peer_host=self._host,
            released=released,
            series_instance_uids=tuple(self._series),
            stored=len(self._report.stored),
            refused=len(self._report.failed) + len(self._report.unidentified),
            unrecorded=self._unrecorded,
            ended_at=datetime.now(UTC),
        )
        try:
            self._desk.hand_on(summary)
        except Exception as error:
            log_without_values(_LOG, "the end of a request was not handed on", error)


class _RequestGate(Gate):
    """The desk's gate, and the study that the request names."""

    def __init__(self, gate: Gate, study_instance_uid: str | None) -> None:
        super().__init__()
        self._gate = gate
        self._study_instance_uid = study_instance_uid

    def check_sender(self, source_ae_title: str) -> None:
        """Raise a `Refusal` where nothing can be taken now."""
        self._gate.check_sender(source_ae_title)

    def check_study(self, study_instance_uid: str) -> None:
        """Raise a `Refusal` where this study may not come."""
        if self._study_instance_uid not in (None, study_instance_uid):
            raise Refusal(
                StorageStatus.DOES_NOT_MATCH_SOP_CLASS, "Study Instance UID is not that of the path"
            )
        try:
            self._gate.check_study(study_instance_uid)
        except Refusal as refusal:
            # Unlike a full disk this does not pass, so the sender shall not be told to try again.
            raise Refusal(StorageStatus.NOT_STORED, refusal.comment) from None
