"""One object on its way from a sender into the spool, whichever way it comes (C-STORE or STOW-RS).

Its bytes go straight to disk; its header is examined when all have come. What is refused early is
not written any further, and the sender learns why when all of it has been taken from the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ich_node.receive.admission import (
    Examined,
    Refusal,
    StorageStatus,
    StoreRequest,
    check_request,
    examine,
    examine_beginning,
)
from ich_node.receive.received import ReceivedInstance
from ich_node.receive.spool import Encoded, Spool, SpooledObject, SpoolWriter

_BEGINNING_BYTES = 65536
"""The header of most images is shorter; that of others is read from the file."""


@dataclass(kw_only=True)
class Gate:
    """What keeps an object out whatever it is: no room, or its sender or study has had its share.

    Read and changed by several threads; each value is replaced as a whole.
    """

    disk_is_low: Callable[[], bool] = field(default=lambda: False)
    full_studies: frozenset[str] = frozenset()
    """Study Instance UIDs that hold as much as this node accepts."""
    spent_peers: frozenset[str] = frozenset()
    """Calling AE titles that have brought as much as this node accepts in a day."""

    def check_sender(self, source_ae_title: str) -> None:
        """Raise a `Refusal` where nothing can be taken from this sender now."""
        if self.disk_is_low():
            raise Refusal(StorageStatus.OUT_OF_RESOURCES, "disk is nearly full")
        if source_ae_title in self.spent_peers:
            raise Refusal(StorageStatus.OUT_OF_RESOURCES, "limit of bytes per peer and day is reached")

    def check_study(self, study_instance_uid: str) -> None:
        """Raise a `Refusal` where this study may not grow."""
        if study_instance_uid in self.full_studies:
            raise Refusal(StorageStatus.OUT_OF_RESOURCES, "study is larger than this node accepts")


class Arrival:
    """One object, from its first byte until it is durable or refused. Used by one thread.

    Parameters
    ----------
    spool
        Where it goes.
    gate
        What may keep it out.
    request
        What the sender says it is.
    source_ae_title
        Calling AE title, or the name of another source.
    association_id
        As in `ReceivedInstance`.
    writer
        One of the spool that was opened in advance; it is used up.
    eager
        Let the disk begin with each piece while the next comes: less to wait for at the end, but more work.
    """

    def __init__(
        self,
        spool: Spool,
        gate: Gate,
        request: StoreRequest,
        *,
        source_ae_title: str,
        association_id: str,
        writer: SpoolWriter | None = None,
        eager: bool = False,
    ) -> None:
        self._spool = spool
        self._gate = gate
        self._request = request
        self._source_ae_title = source_ae_title
        self._association_id = association_id
        self._refusal: Refusal | None = None
        self._fault: Exception | None = None
        self._writer = writer
        self._eager = eager
        self._beginning = bytearray()
        self._stored: tuple[SpooledObject, Examined] | None = None
        self.size_bytes = 0
        """Of the data set so far, refused or not."""
        try:
            check_request(request)
            gate.check_sender(source_ae_title)
        except Refusal as refusal:
            self.refuse(refusal)

    def write(self, *pieces: Encoded) -> None:
        """Take pieces of the data set. Never raises for what the sender or the disk did; `finish` does."""
        is_first = self.size_bytes == 0
        self.size_bytes += sum(map(len, pieces))
        if self._refusal is not None or not any(pieces):  # PS3.8 lets a fragment be empty
            return
        try:
            if is_first:
                self._begin()
            if len(self._beginning) < _BEGINNING_BYTES:
                for piece in pieces:
                    self._beginning += piece[: _BEGINNING_BYTES - len(self._beginning)]
            assert self._writer is not None
            self._writer.write(*pieces)
            if self._eager:
                self._writer.start_writeback()
        except OSError as error:
            self.refuse(_no_room(error))
        except Exception as error:  # its sender is still talking, and is answered when it has finished
            self._fault = error
            self.refuse(Refusal(StorageStatus.NOT_STORED, "internal error"))

    def refuse(self, refusal: Refusal) -> None:
        """Write no more of it; `finish` raises this."""
        self._refusal = refusal
        self.discard()

    def commit(self) -> None:
        """Make it durable: it survives a power cut from now on.

        Raises
        ------
        Refusal
            With the status that its sender gets. Nothing of it is left.
        """
        try:
            if self._refusal is not None:
                raise self._fault or self._refusal
            if self._writer is None or self.size_bytes == 0:
                raise Refusal(StorageStatus.CANNOT_UNDERSTAND, "data set is empty")
            examined = self._examine(self._writer)
            self._gate.check_study(examined.study_instance_uid)
            self._stored = self._writer.commit(), examined
        except OSError as error:
            raise _no_room(error) from None
        finally:
            self.discard()

    def received(self) -> ReceivedInstance:
        """What is handed on of an object that is durable."""
        assert self._stored is not None, "not committed"
        spooled, examined = self._stored
        instance, study = examined.header(spooled.path)
        return ReceivedInstance(
            spooled=spooled,
            instance=instance,
            study=study,
            source_ae_title=self._source_ae_title,
            received_at=datetime.now(UTC),
            association_id=self._association_id,
        )

    def finish(self) -> ReceivedInstance:
        """`commit`, then `received`."""
        self.commit()
        return self.received()

    def discard(self) -> None:
        """Leave nothing of it behind, unless it is durable already."""
        if self._writer is not None:
            self._writer.discard()

    def _begin(self) -> None:
        if self._writer is None:
            self._writer = self._spool.writer()
        self._writer.begin(
            sop_class_uid=self._request.sop_class_uid,
            sop_instance_uid=self._request.sop_instance_uid,
            transfer_syntax_uid=self._request.transfer_syntax_uid,
            source_ae_title=self._source_ae_title,
        )

    def _examine(self, writer: SpoolWriter) -> Examined:
        examined = examine_beginning(self._request, bytes(self._beginning))
        if examined is None:
            with writer.data_set() as data_set:
                examined = examine(self._request, data_set)
        return examined


def _no_room(error: OSError) -> Refusal:
    return Refusal(StorageStatus.OUT_OF_RESOURCES, f"cannot write: {error.strerror}")
