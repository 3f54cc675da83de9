"""What performers do with workitems: claim, report progress, complete, cancel. Each in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ich_node.codes import INTERPRETATION
from ich_node.database.json_model import (
    JsonDataset,
    attribute,
    coded,
    dataset,
    date_time,
    first_value,
    json_tag,
)
from ich_node.database.reviews import Verdict, add_review
from ich_node.database.standing import lock_study
from ich_node.database.tables import StudyRow
from ich_node.database.web_tables import WorkitemRow
from ich_node.database.workitem_events import EventType, add_event, standing_state, state_report
from ich_node.database.workitem_states import (
    WorkitemRefused,
    WorkitemState,
    WorkitemStatus,
    judge_cancel_request,
    judge_change,
)

PERFORMED = "UnifiedProcedureStepPerformedProcedureSequence"
PROGRESS = "ProcedureStepProgressInformationSequence"
ASSIGNED = ("ScheduledStationNameCodeSequence", "ScheduledHumanPerformersSequence")
SETTABLE = (PERFORMED, PROGRESS, *ASSIGNED, "ExpectedCompletionDateTime")
"""What a performer may set; the rest of a workitem follows from its study."""

_REASONS = frozenset(
    map(json_tag, ("ReasonForCancellation", "ProcedureStepDiscontinuationReasonCodeSequence"))
)
_NEEDED_WHEN_COMPLETED = (
    "PerformedStationNameCodeSequence",
    "PerformedProcedureStepStartDateTime",
    "PerformedWorkitemCodeSequence",
    "PerformedProcedureStepEndDateTime",
)
"""Items of the Performed Procedure Sequence with final state code P in PS3.4 table CC.2.5-3."""


def change_state(
    session: Session,
    sop_instance_uid: str,
    requested: WorkitemState,
    *,
    transaction_uid: str | None,
    performer: str,
    now: datetime,
) -> WorkitemStatus:
    """Claim, complete or cancel a workitem (PS3.4 CC.2.1). A study whose workitem is completed is reviewed.

    Returns
    -------
    Success, or the warning that it is in the requested state already.

    Raises
    ------
    WorkitemRefused
        Nothing has changed.
    """
    study, row = _locked(session, sop_instance_uid)
    if transaction_uid is None:
        raise WorkitemRefused(WorkitemStatus.TRANSACTION_UID_INCORRECT)
    state = standing_state(row, study.reviewed_at)
    missing = _missing_when_completed(row.attributes) if requested is WorkitemState.COMPLETED else ""
    status = judge_change(
        state, requested, holds_lock=row.transaction_uid == transaction_uid, final_state_is_met=not missing
    )
    if status.is_failure:
        raise WorkitemRefused(status, missing if status is WorkitemStatus.FINAL_STATE_NOT_MET else "")
    if status is not WorkitemStatus.SUCCESS:
        return status
    row.procedure_step_state, row.changed_at = requested, now
    if requested is WorkitemState.IN_PROGRESS:
        row.transaction_uid, row.performer = transaction_uid, performer
    elif requested is WorkitemState.CANCELED:
        row.attributes = _with_cancellation_time(row.attributes, now)
    else:
        add_review(
            session,
            study_instance_uid=study.study_instance_uid,
            verdict=Verdict.SEEN,
            reviewer=row.performer or performer,
            now=now,
        )
    add_event(session, row, EventType.STATE_REPORT, state_report(study, row), now)
    return status


def update_workitem(
    session: Session,
    sop_instance_uid: str,
    changes: Mapping[str, Any],
    *,
    transaction_uid: str | None,
    now: datetime,
) -> None:
    """Set attributes (PS3.4 CC.2.6); each is replaced as a whole.

    Parameters
    ----------
    changes
        In the DICOM JSON model, of `SETTABLE` alone.

    Raises
    ------
    WorkitemRefused
        The workitem is finished, or held with another Transaction UID; nothing has changed.
    """
    study, row = _locked(session, sop_instance_uid)
    state = standing_state(row, study.reviewed_at)
    if state in (WorkitemState.COMPLETED, WorkitemState.CANCELED):
        raise WorkitemRefused(WorkitemStatus.MAY_NO_LONGER_BE_UPDATED)
    if state is WorkitemState.IN_PROGRESS and transaction_uid != row.transaction_uid:
        raise WorkitemRefused(WorkitemStatus.TRANSACTION_UID_INCORRECT)
    if state is WorkitemState.SCHEDULED and transaction_uid is not None:
        raise WorkitemRefused(
            WorkitemStatus.NOT_YET_IN_PROGRESS, "a Transaction UID goes with a workitem that is IN PROGRESS"
        )
    row.attributes = {**row.attributes, **changes}
    row.changed_at = now
    if json_tag(PROGRESS) in changes:
        progress = {json_tag(PROGRESS): changes[json_tag(PROGRESS)]}
        add_event(session, row, EventType.PROGRESS_REPORT, progress, now)
    assigned = {json_tag(name): changes[json_tag(name)] for name in ASSIGNED if json_tag(name) in changes}
    if assigned:
        add_event(session, row, EventType.ASSIGNED, assigned, now)


def request_cancel(
    session: Session, sop_instance_uid: str, request: JsonDataset, *, requester: str, now: datetime
) -> WorkitemStatus:
    """Ask for a workitem to be canceled (PS3.4 CC.2.2): nobody's is, a performer's is told and decides.

    Parameters
    ----------
    request
        Reason, contact and code as they came, in the DICOM JSON model.
    requester
        Requesting AE (0074,1236).

    Raises
    ------
    WorkitemRefused
        It is completed, or not here.
    """
    study, row = _locked(session, sop_instance_uid)
    state = standing_state(row, study.reviewed_at)
    status = judge_cancel_request(state)
    if status.is_failure:
        raise WorkitemRefused(status)
    if status is not WorkitemStatus.SUCCESS:
        return status
    if state is WorkitemState.IN_PROGRESS:
        told = dataset(attribute("RequestingAE", requester), request)
        add_event(session, row, EventType.CANCEL_REQUESTED, told, now)
        return status
    for passed in (WorkitemState.IN_PROGRESS, WorkitemState.CANCELED):  # table CC.1.1-2
        row.procedure_step_state = passed
        add_event(session, row, EventType.STATE_REPORT, state_report(study, row), now)
    row.changed_at = now
    row.attributes = _with_cancellation_time(row.attributes, now, request)
    return status


def own_performance(study_reviewed_at: datetime, reviewer: str, station: str) -> JsonDataset:
    """The Performed Procedure Sequence of a workitem that was done by a review on this node's own page."""
    performer = dataset(attribute("HumanPerformerName", reviewer.replace("=", " ").replace("\\", " ")))
    performed = dataset(
        attribute("ActualHumanPerformersSequence", performer),
        attribute("PerformedStationNameCodeSequence", station_code(station)),
        coded("PerformedWorkitemCodeSequence", INTERPRETATION),
        attribute("PerformedProcedureStepStartDateTime", date_time(study_reviewed_at)),
        attribute("PerformedProcedureStepEndDateTime", date_time(study_reviewed_at)),
        attribute("OutputInformationSequence"),
    )
    return attribute(PERFORMED, performed)


def station_code(ae_title: str) -> JsonDataset:
    """A station named by its AE title, as PS3.3 C.30.2 allows."""
    return dataset(
        attribute("CodeValue", ae_title),
        attribute("CodingSchemeDesignator", "L"),
        attribute("CodeMeaning", ae_title),
    )


def _locked(session: Session, sop_instance_uid: str) -> tuple[StudyRow, WorkitemRow]:
    query = select(WorkitemRow.study_instance_uid).where(WorkitemRow.sop_instance_uid == sop_instance_uid)
    study_instance_uid = session.scalar(query)
    study = None if study_instance_uid is None else lock_study(session, study_instance_uid)
    if study is None:
        raise WorkitemRefused(WorkitemStatus.NOT_HERE)
    return study, session.get_one(WorkitemRow, sop_instance_uid, populate_existing=True)


def _missing_when_completed(attributes: Mapping[str, Any]) -> str:
    """What PS3.4 demands of a completed workitem and nobody has set, in words; empty: nothing."""
    performed = first_value(attributes, PERFORMED)
    if not isinstance(performed, dict):
        return f"{PERFORMED} is not set"
    missing = [name for name in _NEEDED_WHEN_COMPLETED if first_value(performed, name) is None]
    return f"{PERFORMED} lacks {', '.join(missing)}" if missing else ""


def _with_cancellation_time(
    attributes: Mapping[str, Any], now: datetime, reason: JsonDataset | None = None
) -> dict[str, Any]:
    """The final state demands when it was canceled, and a discontinuation reason, which may be empty."""
    items: Sequence[Any] = attributes.get(json_tag(PROGRESS), {}).get("Value") or [{}]
    before = items[0] if isinstance(items[0], dict) else {}
    added = dataset(
        attribute("ProcedureStepCancellationDateTime", date_time(now)),
        attribute("ProcedureStepDiscontinuationReasonCodeSequence"),
        {tag: value for tag, value in (reason or {}).items() if tag in _REASONS},
        before,
    )
    return {**attributes, **attribute(PROGRESS, added)}
