"""The page of what did not reach its destination at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from ich_node.database.outbox import DeliveryRecord, DeliveryState
from ich_node.web import display
from ich_node.web.wording import DELIVERY


@dataclass(frozen=True, kw_only=True)
class DeliveryLine:
    """One object or notice that waits, or was given up."""

    destination: str
    state: str
    words: str
    kind: str
    study_instance_uid: str
    attempts: str
    since: str
    next_attempt: str
    """Empty where there is none."""
    note: str


def delivery_lines(records: Iterable[DeliveryRecord], *, now: datetime) -> tuple[DeliveryLine, ...]:
    """Lines of the page, in the order of the records."""
    return tuple(_line(record, now) for record in records)


def _line(record: DeliveryRecord, now: datetime) -> DeliveryLine:
    clock, date = display.clock_time(record.next_attempt_at.isoformat(), now=now)
    is_open = record.state != DeliveryState.DEAD
    return DeliveryLine(
        destination=display.plain_text(record.destination),
        state=record.state,
        words=DELIVERY[record.state],
        kind=display.plain_text(record.kind),
        study_instance_uid=record.study_instance_uid,
        attempts=str(record.attempts),
        since=display.local_time(record.created_at.isoformat()),
        next_attempt=f"{date} {clock}".strip() if is_open else "",
        note=display.plain_text(record.note or ""),
    )
