"""Received objects become rows, and the end of an association decides when their series are due."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ich_node.database import receipt
from ich_node.database.engine import Database, Session
from ich_node.database.receipt import Receipt
from ich_node.database.tables import InstanceRow
from ich_node.receive.completeness import is_geometrically_complete
from ich_node.receive.limits import AllowedPeer, Limits
from ich_node.receive.received import (
    AssociationSummary,
    RebuildSummary,
    ReceivedInstance,
    log_without_values,
    rebuild,
)
from ich_node.receive.scp import Receiver
from ich_node.receive.spool import Spool
from ich_node.settings import Settings
from ich_node.study import Instance

logger = logging.getLogger(__name__)

_MEND_SECONDS = 10.0


class Intake:
    """Writes rows about received objects; safe to call from several threads.

    Parameters
    ----------
    settings
        The waits of ``[receiver]`` are used.
    database, spool
        Where rows and objects are.
    """

    def __init__(self, settings: Settings, database: Database, spool: Spool) -> None:
        self._waits = settings.receiver
        self._database = database
        self._spool = spool
        self._rows_missing = threading.Event()

    def record(self, received: ReceivedInstance) -> None:
        """Write the rows of one object; its series is due when nothing follows for ``stalled_seconds``.

        What goes wrong is raised, and made good by `mend`.
        """
        self._record(received, wait_s=self._waits.stalled_seconds)

    def end_association(self, summary: AssociationSummary) -> None:
        """Say when the series that an association brought are due: soon if gapless, else after a quiet time."""
        logger.info(
            "%s: %d images stored, %d refused, association %s",
            summary.calling_ae_title,
            summary.stored,
            summary.refused,
            "released" if summary.released else "aborted",
        )
        self.mend()
        now = datetime.now(UTC)
        for series_instance_uid in summary.series_instance_uids:
            with self._database.writing() as session:
                complete = summary.released and self._is_complete(session, series_instance_uid)
                wait_s = self._waits.settle_seconds if complete else self._waits.quiet_seconds
                receipt.set_due(session, series_instance_uid, now + timedelta(seconds=wait_s))

    def mend(self) -> None:
        """Write the rows that could not be written when their objects came, if there are any; raises nothing.

        An object that was acknowledged is never sent again. Without its rows nobody would know of it.
        """
        if not self._rows_missing.is_set():
            return
        self._rows_missing.clear()
        try:
            self.rebuild()
        except Exception as error:
            self._rows_missing.set()
            log_without_values(logger, "rows of received objects are still missing", error)

    def rebuild(self) -> RebuildSummary:
        """Write the rows that the spool has objects for and the database does not."""
        with self._database.reading() as session:
            known = receipt.known_file_names(session)
        summary = rebuild(
            self._spool,
            lambda received: self._record(received, wait_s=self._waits.quiet_seconds),
            known=known,
        )
        if summary.recorded or summary.failed:
            logger.warning(
                "rows made from the spool: %d; objects that cannot be read: %d",
                summary.recorded,
                len(summary.failed),
            )
        return summary

    def _is_complete(self, session: Session, series_instance_uid: str) -> bool:
        rows = receipt.series_geometry(session, series_instance_uid)
        return is_geometrically_complete([_geometry(row, self._spool.path(row.file_name)) for row in rows])

    def _record(self, received: ReceivedInstance, *, wait_s: float) -> None:
        try:
            self._write(received, wait_s=wait_s)
        except Exception:
            self._rows_missing.set()
            raise

    def _write(self, received: ReceivedInstance, *, wait_s: float) -> None:
        with self._database.writing() as session:
            outcome = receipt.record_instance(
                session,
                received.instance,
                received.study,
                file_name=received.spooled.file_name,
                size_bytes=received.spooled.size_bytes,
                sha256=received.spooled.sha256,
                source_ae_title=received.source_ae_title,
                received_at=received.received_at,
                due_at=datetime.now(UTC) + timedelta(seconds=wait_s),
            )
        if outcome is Receipt.CONFLICT:
            logger.error(
                "%s sent other content under a SOP Instance UID that is already here; it is kept as %s and not read",
                received.source_ae_title,
                received.spooled.file_name,
            )


def _geometry(row: InstanceRow, path: Path) -> Instance:
    position, orientation = row.position_mm, row.orientation
    return Instance(
        path=path,
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        transfer_syntax_uid=row.transfer_syntax_uid,
        series_instance_uid=row.series_instance_uid,
        study_instance_uid="",
        instance_number=row.instance_number,
        number_of_frames=row.number_of_frames,
        image_position_patient_mm=(position[0], position[1], position[2]) if position else None,
        image_orientation_patient=(
            (orientation[0], orientation[1], orientation[2], orientation[3], orientation[4], orientation[5])
            if orientation
            else None
        ),
    )


@contextmanager
def open_receiver(settings: Settings, database: Database) -> Iterator[Receiver]:
    """Receive from now on, after the rows of whatever the spool holds have been made good."""
    spool = Spool(settings.spool_dir)
    intake = Intake(settings, database, spool)
    receiver = Receiver(
        ae_title=settings.receiver.ae_title,
        host=settings.receiver.host,
        port=settings.receiver.port,
        spool=spool,
        on_instance=intake.record,
        on_association_end=intake.end_association,
        peers=[AllowedPeer(ae_title=peer.ae_title, host=peer.host) for peer in settings.peers],
        limits=Limits(max_associations=settings.receiver.max_associations),
    )
    intake.rebuild()
    receiver.start()
    stopped = threading.Event()
    mender = threading.Thread(target=_keep_mending, args=(intake, stopped), name="mender", daemon=True)
    mender.start()
    try:
        yield receiver
    finally:
        receiver.stop()
        stopped.set()
        mender.join()


def _keep_mending(intake: Intake, stopped: threading.Event) -> None:
    while not stopped.wait(_MEND_SECONDS):
        intake.mend()
