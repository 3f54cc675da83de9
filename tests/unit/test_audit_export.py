"""Accesses as DICOM audit messages in syslog messages."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_node.database.access import Access, AccessAction, UnsentAccess
from ich_node.database.engine import Database
from ich_node.web.audit_export import AuditExport, NotTold
from ich_node.web.audit_message import audit_message, syslog_message
from ich_node.web_settings import AuditSettings

AT = datetime(2026, 11, 21, 8, 15, 30, 123456, UTC)
SETTINGS = AuditSettings(host="audit", audit_source_id="ICH 1", enterprise_site_id="North")
STUDY = "1.2.3.4"


def an_access(**values: Any) -> Access:
    access = Access(at=AT, caller="anna", role="radiologist", source="192.0.2.9", action=AccessAction.VIEW)
    return replace(access, **values)


def xml_of(access: Access, patient_id: str | None = "P1") -> ElementTree.Element:
    unsent = UnsentAccess(id=1, access=access, patient_id=patient_id)
    return ElementTree.fromstring(audit_message(unsent, SETTINGS))


def code(element: ElementTree.Element | None) -> tuple[str | None, str | None]:
    assert element is not None
    return element.get("csd-code"), element.get("originalText")


def test_a_study_that_was_looked_at() -> None:
    """PS3.15 A.5.3.6."""
    root = xml_of(an_access(study_instance_uid=STUDY))
    assert [child.tag for child in root] == [
        "EventIdentification",
        "ActiveParticipant",
        "ActiveParticipant",
        "AuditSourceIdentification",
        "ParticipantObjectIdentification",
        "ParticipantObjectIdentification",
    ]
    event, person, node, source, study, patient = root
    assert event.attrib == {
        "EventActionCode": "R",
        "EventDateTime": "2026-11-21T08:15:30.123+00:00",
        "EventOutcomeIndicator": "0",
    }
    assert code(event.find("EventID")) == ("110103", "DICOM Instances Accessed")
    assert person.attrib == {
        "UserID": "anna",
        "UserIsRequestor": "true",
        "NetworkAccessPointTypeCode": "2",
        "NetworkAccessPointID": "192.0.2.9",
    }
    assert node.attrib == {"UserID": "ICH 1", "UserIsRequestor": "false"}
    assert source.attrib == {"AuditSourceID": "ICH 1", "AuditEnterpriseSiteID": "North"}
    assert study.get("ParticipantObjectID") == STUDY
    assert (study.get("ParticipantObjectTypeCode"), study.get("ParticipantObjectTypeCodeRole")) == ("2", "3")
    assert code(study.find("ParticipantObjectIDTypeCode")) == ("110180", "Study Instance UID")
    assert patient.get("ParticipantObjectID") == "P1"
    assert (patient.get("ParticipantObjectTypeCode"), patient.get("ParticipantObjectTypeCodeRole")) == (
        "1",
        "1",
    )
    assert code(patient.find("ParticipantObjectIDTypeCode")) == ("2", "Patient Number")


@pytest.mark.parametrize(
    ("access", "event", "kind", "action", "outcome"),
    [
        (an_access(action=AccessAction.LOGIN), "110114", "110122", "E", "0"),
        (an_access(action=AccessAction.LOGIN, refused=True), "110114", "110122", "E", "4"),
        (an_access(action=AccessAction.LOGOUT), "110114", "110123", "E", "0"),
        (an_access(action=AccessAction.CHANGE, study_instance_uid=STUDY), "110103", None, "U", "0"),
        (an_access(action=AccessAction.RETRIEVE, study_instance_uid=STUDY), "110103", None, "R", "0"),
        (an_access(action=AccessAction.QUERY), "110112", None, "E", "0"),
        (an_access(action=AccessAction.ADMINISTER), "110113", "110137", "E", "0"),
        (an_access(refused=True), "110113", "110132", "E", "4"),
    ],
)
def test_every_access_has_its_event(
    access: Access, event: str, kind: str | None, action: str, outcome: str
) -> None:
    root = xml_of(access)
    identification = root[0]
    assert code(identification.find("EventID"))[0] == event
    found = identification.find("EventTypeCode")
    assert (None if found is None else code(found)[0]) == kind
    assert identification.get("EventActionCode") == action
    assert identification.get("EventOutcomeIndicator") == outcome


@pytest.mark.parametrize("action", AccessAction)
def test_every_action_can_be_told(action: AccessAction) -> None:
    assert xml_of(an_access(action=action)).tag == "AuditMessage"


def test_a_syslog_message_is_framed_by_its_length() -> None:
    """RFC 5425 section 4.3, RFC 5424 section 6, PS3.15 A.6."""
    unsent = UnsentAccess(id=1, access=an_access(caller="jürgen"), patient_id=None)
    length, _, message = syslog_message(unsent, SETTINGS).partition(b" ")
    assert int(length) == len(message)
    head, _, body = message.partition("\ufeff".encode())
    priority, at, host, app, process, message_id, structured = head.decode("ascii").split(" ")[:7]
    assert (priority, at, app) == ("<85>1", "2026-11-21T08:15:30.123456Z", "ich_node")
    assert (message_id, structured) == ("DICOM+RFC3881", "-")
    assert host
    assert process.isdigit()
    assert "jürgen" in body.decode()
    assert b"\n" not in head


@given(st.text(st.characters(), max_size=30), st.text(st.characters(), max_size=30))
def test_any_name_and_identifier_can_be_told(name: str, patient_id: str) -> None:
    root = xml_of(an_access(caller=name or "x", study_instance_uid=STUDY, detail=name), patient_id)
    shown = root[1].get("UserID")
    assert shown is not None
    if (
        name.isprintable()
        and name
        and not any("\ud800" <= c <= "\udfff" or c in "\ufffe\uffff" for c in name)
    ):
        assert shown == name


def test_an_unknown_patient_is_said_to_be_unknown() -> None:
    root = xml_of(an_access(study_instance_uid=STUDY), patient_id=None)
    assert root[-1].get("ParticipantObjectID") == "UNKNOWN"


@pytest.mark.parametrize("host", ["audit..example", "https://audit.example", "audit example", "audit:6514"])
def test_a_repository_is_named_by_its_host(host: str) -> None:
    with pytest.raises(ValueError, match="is no host name"):
        AuditSettings(host=host)


def test_a_name_that_cannot_be_looked_up_is_said() -> None:
    export = AuditExport(cast("Database", None), AuditSettings(host=f"{'x' * 64}.example"))
    with pytest.raises(NotTold, match="UnicodeError"):
        export._send([b"x"])


def test_the_export_goes_on_after_an_error_that_nobody_thought_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries, is_told = [], threading.Event()

    def send_some(self: AuditExport) -> int:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("a row of another version")
        is_told.set()
        return 0

    monkeypatch.setattr(AuditExport, "send_some", send_some)
    monkeypatch.setattr("ich_node.web.audit_export.LONGEST_WAIT_S", 0.01)
    with AuditExport(cast("Database", None), SETTINGS, look_every_s=0.01):
        assert is_told.wait(30)
    assert "they are kept: a row of another version" in caplog.text
