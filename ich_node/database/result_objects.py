"""Result objects, and their places in the outbox."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from ich_node.database.outbox import DeliveryState
from ich_node.database.standing import lock_study
from ich_node.database.tables import OutboxRow, ReadingRow, ResultObjectRow, StudyRow
from ich_node.findings import Priority


@dataclass(frozen=True, kw_only=True)
class NewObject:
    """A result object that lies in the results folder."""

    sop_instance_uid: str
    sop_class_uid: str
    kind: str
    file_name: str
    destinations: tuple[str, ...] = ()
    """Where it goes."""


def add_objects(
    session: Session, study: StudyRow, objects: Sequence[NewObject], reading: ReadingRow | None, now: datetime
) -> None:
    """Add the objects of a reading, or, without one, reports that there is none, and send them on their way."""
    urgency = Priority(study.priority if reading is None else reading.priority).urgency
    for position, item in enumerate(objects):
        if reading is None and session.get(ResultObjectRow, item.sop_instance_uid) is not None:
            continue  # the same was said before
        session.add(
            ResultObjectRow(
                sop_instance_uid=item.sop_instance_uid,
                study_instance_uid=study.study_instance_uid,
                reading_id=None if reading is None else reading.id,
                sop_class_uid=item.sop_class_uid,
                kind=item.kind,
                position=position,
                file_name=item.file_name,
            )
        )
        session.flush()
        for destination in dict.fromkeys(item.destinations):
            session.add(
                OutboxRow(
                    sop_instance_uid=item.sop_instance_uid,
                    destination=destination,
                    urgency=urgency,
                    state=DeliveryState.PENDING,
                    attempts=0,
                    created_at=now,
                    next_attempt_at=now,
                )
            )


def add_not_read_reports(
    session: Session, study_instance_uid: str, objects: Sequence[NewObject], *, now: datetime
) -> None:
    """Send reports that a study was not read on their way, which nobody holds any more."""
    study = lock_study(session, study_instance_uid)
    if study is not None:
        add_objects(session, study, objects, None, now)
