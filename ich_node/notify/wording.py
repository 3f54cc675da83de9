"""What a notice says in words, the same in the HL7 message and in the mail."""

from __future__ import annotations

from datetime import UTC, datetime

from ich_node.findings import Priority
from ich_node.notify.notice import Notice
from ich_node.report.wording import HEADLINE, SUBTYPE_NAME, percent_text

_SUBJECT = {
    Priority.STAT: "suspected intracranial hemorrhage",
    Priority.HIGH: "possible intracranial hemorrhage",
    Priority.MEDIUM: "a person must look",
    Priority.ROUTINE: "no hemorrhage flagged",
}


def subject(notice: Notice) -> str:
    """Return the notice in one short line without anything of the patient: mail systems write subjects to logs."""
    what = _SUBJECT[notice.priority] if notice.is_read else "head CT was not read, a person must look"
    return f"[ICH AI] {notice.priority}: {what}"


def headline(notice: Notice) -> str:
    """Return the result in one sentence; of a study that was not read, that and why."""
    if notice.is_read:
        return f"{HEADLINE.get(notice.priority, 'A person must look')}."
    because = notice.reason_detail or notice.reason or "the reason is not known"
    return f"NOT READ, a person must look: {because}"


def result_lines(notice: Notice) -> list[str]:
    """One line for each fact after the headline; the disclaimer is last."""
    lines = [f"Suggested reading priority: {notice.priority}"]
    if notice.suspicion is not None:
        lines.append(f"Suspicion: {percent_text(notice.suspicion)}")
    if notice.subtypes:
        lines.append("Flagged: " + ", ".join(SUBTYPE_NAME[s].lower() for s in notice.subtypes))
    if notice.reason:
        lines.append(f"Reason: {notice.reason}")
    if notice.model_name:
        lines.append(f"Algorithm: {notice.model_name} {notice.model_version}".rstrip())
    return [*lines, notice.disclaimer]


def identity_lines(notice: Notice) -> list[str]:
    """Name the study, and the patient where the notice may."""
    if notice.study_instance_uid:
        lines = [f"Study Instance UID: {notice.study_instance_uid}"]
    else:
        lines = [f"Study (pseudonym): {notice.pseudonym}"]
    if notice.identity:
        named = {
            "Accession number": notice.identity.accession_number,
            "Patient ID": notice.identity.patient_id,
            "Patient name": notice.identity.patient_name,
        }
        lines.extend(f"{name}: {value}" for name, value in named.items() if value)
    return lines


def time_lines(notice: Notice) -> list[str]:
    """When the images came and when they were read, in UTC."""
    lines = [f"First image received: {_minute(notice.received_at)}"]
    if notice.read_at is not None:
        lines.append(f"Read: {_minute(notice.read_at)}")
    return lines


def _minute(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
