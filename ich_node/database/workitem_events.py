"""Event reports of workitems (PS3.4 CC.2.4), written in the transaction that changes a workitem or its study.

So none is lost or told twice, whichever process makes the change and however many serve the web.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any

from sqlalchemy import delete, event, select
from sqlalchemy.orm import LoaderCallableStatus, Session, object_session

from ich_node.database.json_model import JsonDataset, attribute, dataset
from ich_node.database.tables import StudyRow
from ich_node.database.web_tables import WorkitemEventRow, WorkitemRow
from ich_node.database.workitem_states import WorkitemState
from ich_node.findings import Priority, StudyState

UPS_PUSH_SOP_CLASS_UID = "1.2.840.10008.5.1.4.34.6.1"
"""Of all workitems (PS3.4 CC.3.1)."""
KEPT = timedelta(hours=24)
"""Events are told within seconds; older ones are of no use to anybody."""

_NAMESPACE = uuid.UUID("5d0a3f0e-9f4b-4b53-a0c3-3a8c7f0b7d61")
"""Drawn once; changing it would give every workitem another UID."""
_CHANGED = "ich_node_changed_studies"
_TOLD_OF = ("state", "priority", "reviewed_at")
_PRUNED_AT_ONCE = 1000


class EventType(IntEnum):
    """Event Type ID (0000,1002), PS3.4 table CC.2.4-1."""

    STATE_REPORT = 1
    CANCEL_REQUESTED = 2
    PROGRESS_REPORT = 3
    ASSIGNED = 5


def workitem_uid(study_instance_uid: str) -> str:
    """SOP Instance UID of a study's one workitem (a UUID of version 5 under 2.25, PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, study_instance_uid).int}"


def step_priority(priority: str) -> str:
    """Scheduled Procedure Step Priority (0074,1200) of a study with this worklist priority."""
    return {Priority.STAT: "HIGH", Priority.HIGH: "HIGH", Priority.ROUTINE: "LOW"}.get(
        Priority(priority), "MEDIUM"
    )


def readiness(state: str) -> str:
    """Input Readiness State (0040,4041): whether more images are to be expected."""
    return "INCOMPLETE" if state == StudyState.RECEIVING else "READY"


def standing_state(row: WorkitemRow | None, reviewed_at: datetime | None) -> WorkitemState:
    """Procedure Step State: a study that was reviewed on the page needs no performer any more."""
    state = WorkitemState.SCHEDULED if row is None else WorkitemState(row.procedure_step_state)
    if state is WorkitemState.SCHEDULED and reviewed_at is not None:
        return WorkitemState.COMPLETED
    return state


def ensure_workitem(session: Session, study: StudyRow, now: datetime) -> WorkitemRow:
    """The row of a study's workitem. The study is locked by the caller, or new."""
    uid = workitem_uid(study.study_instance_uid)
    row = session.get(WorkitemRow, uid)
    if row is None:
        row = WorkitemRow(
            sop_instance_uid=uid,
            study_instance_uid=study.study_instance_uid,
            procedure_step_state=WorkitemState.SCHEDULED,
            attributes={},
            changed_at=now,
        )
        session.add(row)
        session.flush()
    return row


def add_event(
    session: Session, row: WorkitemRow, event_type: EventType, content: JsonDataset, now: datetime
) -> None:
    """Write down an event report; the subscribers' processes find it."""
    session.add(
        WorkitemEventRow(
            at=now,
            sop_instance_uid=row.sop_instance_uid,
            study_instance_uid=row.study_instance_uid,
            content=dataset(
                attribute("AffectedSOPClassUID", UPS_PUSH_SOP_CLASS_UID),
                attribute("AffectedSOPInstanceUID", row.sop_instance_uid),
                attribute("EventTypeID", int(event_type)),
                content,
            ),
        )
    )


def state_report(study: StudyRow, row: WorkitemRow) -> JsonDataset:
    """What a UPS State Report says, and the priority beside it: it is what subscribers sort by."""
    return dataset(
        attribute("ProcedureStepState", str(standing_state(row, study.reviewed_at))),
        attribute("InputReadinessState", readiness(study.state)),
        attribute("ScheduledProcedureStepPriority", step_priority(study.priority)),
    )


def study_is_new(session: Session, study: StudyRow) -> None:
    """Have the first report of a study's workitem written at the end of the transaction."""
    _changed(session)[study.study_instance_uid] = (study, {"state": None})


def report_changes(session: Session) -> None:
    """Write the reports of what has changed in this transaction; the last that is done in it."""
    changed = session.info.pop(_CHANGED, {})
    now = datetime.now(UTC)
    for _, (study, before) in sorted(changed.items()):
        if all(getattr(study, name) == value for name, value in before.items()):
            continue
        row = ensure_workitem(session, study, now)
        row.changed_at = now
        if _is_more_urgent(study, before):
            _open_anew(row)
        if _standing(study, row, {}) != _standing(study, row, before):
            add_event(session, row, EventType.STATE_REPORT, state_report(study, row), now)


def prune_events(session: Session, now: datetime) -> int:
    """Remove events that are too old to be told; how many."""
    old = select(WorkitemEventRow.id).where(WorkitemEventRow.at < now - KEPT).limit(_PRUNED_AT_ONCE)
    ids = list(session.scalars(old))
    if ids:
        session.execute(delete(WorkitemEventRow).where(WorkitemEventRow.id.in_(ids)))
    return len(ids)


def _is_more_urgent(study: StudyRow, before: Mapping[str, Any]) -> bool:
    was = Priority(before.get("priority", study.priority))
    return Priority(study.priority).urgency < was.urgency


def _open_anew(row: WorkitemRow) -> None:
    """Have somebody perform what another has finished with: the standard knows no way back, the patient needs one."""
    if row.procedure_step_state in (WorkitemState.COMPLETED, WorkitemState.CANCELED):
        row.procedure_step_state = WorkitemState.SCHEDULED
        row.transaction_uid = row.performer = None
        row.attributes = {}


def _standing(study: StudyRow, row: WorkitemRow, before: Mapping[str, Any]) -> tuple[str | None, ...]:
    """What a state report depends on, with the values that some attributes had before."""
    state = before.get("state", study.state)
    return (
        str(standing_state(row, before.get("reviewed_at", study.reviewed_at))),
        readiness(state) if state is not None else None,
        before.get("priority", study.priority),
    )


def _changed(session: Session) -> dict[str, tuple[StudyRow, dict[str, Any]]]:
    changed: dict[str, tuple[StudyRow, dict[str, Any]]] = session.info.setdefault(_CHANGED, {})
    return changed


def _remember(study: StudyRow, value: Any, old: Any, initiator: Any) -> None:
    """Keep what an attribute was before the transaction first changed it."""
    session = object_session(study)
    if session is None or isinstance(old, LoaderCallableStatus):
        return
    _, before = _changed(session).setdefault(study.study_instance_uid, (study, {}))
    before.setdefault(initiator.key, old)


for _name in _TOLD_OF:
    event.listen(getattr(StudyRow, _name), "set", _remember)
