"""Notices for tests: of a study that was flagged, and of one that was not read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ich_node.findings import IchSubtype, Priority, StudyState
from ich_node.notify.notice import Notice, PatientIdentity

STUDY_UID = "1.2.826.0.1.3680043.8.498.1001"
REPORT_UID = "2.25.329800735698586629295641978511506172918"
KEY = b"key of this installation"
DISCLAIMER = "AI result, unverified, not for primary diagnosis"
PATIENT = PatientIdentity(
    accession_number="ACC-4711", patient_id="MRN-0815", patient_name="Müller^Änne^B^Dr.^Jr.=x=y"
)
IDENTIFYING = ("ACC-4711", "MRN-0815", "Müller", "Änne")


def notice(**changes: Any) -> Notice:
    """A flagged study, with identity."""
    values: dict[str, Any] = {
        "notice_id": "2.25.1234567890",
        "study_instance_uid": STUDY_UID,
        "identity": PATIENT,
        "priority": Priority.STAT,
        "state": StudyState.READ,
        "happened_at": datetime(2024, 5, 6, 7, 8, 10, 250000, tzinfo=UTC),
        "received_at": datetime(2024, 5, 6, 7, 7, 0, tzinfo=UTC),
        "read_at": datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC),
        "suspicion": 0.934,
        "subtypes": (IchSubtype.INTRAVENTRICULAR, IchSubtype.SUBDURAL),
        "model_name": "test-model",
        "model_version": "1.2.3",
        "report_sop_instance_uids": (REPORT_UID,),
        "disclaimer": DISCLAIMER,
    }
    return Notice(**values | changes)


def not_read(**changes: Any) -> Notice:
    """A study that was not read."""
    values: dict[str, Any] = {
        "priority": Priority.MEDIUM,
        "state": StudyState.NOT_READ,
        "read_at": None,
        "suspicion": None,
        "subtypes": (),
        "model_name": "",
        "model_version": "",
        "reason": "TOO_FEW_SLICES",
        "reason_detail": "The series has 3 slices; 8 are needed.",
        "report_sop_instance_uids": (),
    }
    return notice(**values | changes)
