"""Accesses as DICOM audit messages (PS3.15 A.5), in syslog messages (RFC 5424, PS3.15 A.6)."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from xml.etree import ElementTree

from ich_node.database.access import Access, AccessAction, UnsentAccess
from ich_node.web_settings import AuditSettings

_PRIORITY = 10 * 8 + 5
"""Facility security/authorization, severity notice (PS3.15 A.6)."""
_MESSAGE_ID = "DICOM+RFC3881"
_SUCCESS, _MINOR_FAILURE = "0", "4"
_IP_ADDRESS = "2"
_APPLICATION_SERVER = "4"
_PERSON, _SYSTEM_OBJECT = "1", "2"
_PATIENT, _REPORT, _QUERY = "1", "3", "24"

_Code = tuple[str, str]
_USER_AUTHENTICATION: _Code = ("110114", "User Authentication")
_LOGIN: _Code = ("110122", "Login")
_LOGOUT: _Code = ("110123", "Logout")
_INSTANCES_ACCESSED: _Code = ("110103", "DICOM Instances Accessed")
_QUERY_EVENT: _Code = ("110112", "Query")
_SECURITY_ALERT: _Code = ("110113", "Security Alert")
_USER_SECURITY_CHANGED: _Code = ("110137", "User Security Attributes Changed")
_RESTRICTED_FUNCTION: _Code = ("110132", "Use of Restricted Function")
_STUDY_INSTANCE_UID: _Code = ("110180", "Study Instance UID")
_PATIENT_NUMBER: _Code = ("2", "Patient Number")
_SOP_CLASS_UID: _Code = ("110181", "SOP Class UID")
_STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
_EVENTS: dict[AccessAction, tuple[_Code, _Code | None, str]] = {
    AccessAction.LOGIN: (_USER_AUTHENTICATION, _LOGIN, "E"),
    AccessAction.LOGOUT: (_USER_AUTHENTICATION, _LOGOUT, "E"),
    AccessAction.VIEW: (_INSTANCES_ACCESSED, None, "R"),
    AccessAction.RETRIEVE: (_INSTANCES_ACCESSED, None, "R"),
    AccessAction.CHANGE: (_INSTANCES_ACCESSED, None, "U"),
    AccessAction.QUERY: (_QUERY_EVENT, None, "E"),
    AccessAction.ADMINISTER: (_SECURITY_ALERT, _USER_SECURITY_CHANGED, "E"),
}
"""Event ID, event type and action (PS3.15 A.5.3)."""


def syslog_message(unsent: UnsentAccess, settings: AuditSettings) -> bytes:
    """One access, framed as RFC 5425 section 4.3 wants it: its length, a space, the message."""
    at = unsent.access.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    head = f"<{_PRIORITY}>1 {at} {_host_name()} ich_node {os.getpid()} {_MESSAGE_ID} - "
    message = head.encode("ascii") + "\ufeff".encode() + audit_message(unsent, settings)
    return f"{len(message)} ".encode() + message


def audit_message(unsent: UnsentAccess, settings: AuditSettings) -> bytes:
    """One access as XML of the schema of PS3.15 A.5.1, in UTF-8."""
    access = unsent.access
    event, kind, action = _EVENTS[access.action]
    if (
        access.action not in (AccessAction.LOGIN, AccessAction.LOGOUT, AccessAction.QUERY)
        and not access.study_instance_uid
    ):
        event, action = _SECURITY_ALERT, "E"
        kind = kind or _RESTRICTED_FUNCTION
    root = ElementTree.Element("AuditMessage")
    _add_event(root, access, event, kind, action)
    _add_participants(root, access, settings)
    source = _add(
        root,
        "AuditSourceIdentification",
        AuditEnterpriseSiteID=settings.enterprise_site_id,
        AuditSourceID=settings.audit_source_id,
    )
    ElementTree.SubElement(source, "AuditSourceTypeCode", {"csd-code": _APPLICATION_SERVER})
    if event == _QUERY_EVENT:
        _add_query(root)
    if access.study_instance_uid:
        _add_study(root, access.study_instance_uid, unsent.patient_id)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _add_event(
    root: ElementTree.Element, access: Access, event: _Code, kind: _Code | None, action: str
) -> None:
    element = _add(
        root,
        "EventIdentification",
        EventActionCode=action,
        EventDateTime=_time(access.at),
        EventOutcomeIndicator=_MINOR_FAILURE if access.refused else _SUCCESS,
    )
    _add_code(element, "EventID", event)
    if kind is not None:
        _add_code(element, "EventTypeCode", kind)
    if access.detail:
        ElementTree.SubElement(element, "EventOutcomeDescription").text = _xml_text(access.detail)


def _add_participants(root: ElementTree.Element, access: Access, settings: AuditSettings) -> None:
    _add(
        root,
        "ActiveParticipant",
        UserID=access.caller,
        UserIsRequestor="true",
        NetworkAccessPointTypeCode=_IP_ADDRESS,
        NetworkAccessPointID=access.source or "127.0.0.1",
    )
    _add(root, "ActiveParticipant", UserID=settings.audit_source_id, UserIsRequestor="false")


def _add_query(root: ElementTree.Element) -> None:
    """What was asked stands in no log: keys of a search are names of patients."""
    query = _add(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=_STUDY_ROOT_FIND,
        ParticipantObjectTypeCode=_SYSTEM_OBJECT,
        ParticipantObjectTypeCodeRole=_REPORT,
    )
    _add_code(query, "ParticipantObjectIDTypeCode", _SOP_CLASS_UID)
    ElementTree.SubElement(query, "ParticipantObjectQuery").text = ""


def _add_study(root: ElementTree.Element, study_instance_uid: str, patient_id: str | None) -> None:
    for identity, name, kind, role, code in (
        (study_instance_uid, "Study", _SYSTEM_OBJECT, _REPORT, _STUDY_INSTANCE_UID),
        (patient_id or "UNKNOWN", "Patient", _PERSON, _PATIENT, _PATIENT_NUMBER),
    ):
        element = _add(
            root,
            "ParticipantObjectIdentification",
            ParticipantObjectID=identity,
            ParticipantObjectTypeCode=kind,
            ParticipantObjectTypeCodeRole=role,
        )
        system = "RFC-3881" if code is _PATIENT_NUMBER else "DCM"
        _add_code(element, "ParticipantObjectIDTypeCode", code, system)
        ElementTree.SubElement(element, "ParticipantObjectName").text = name


def _add(parent: ElementTree.Element, name: str, **attributes: str) -> ElementTree.Element:
    given = {key: _xml_text(value) for key, value in attributes.items() if value}
    return ElementTree.SubElement(parent, name, given)


def _add_code(parent: ElementTree.Element, name: str, code: _Code, system: str = "DCM") -> None:
    value, meaning = code
    attributes = {"csd-code": value, "codeSystemName": system, "originalText": meaning}
    ElementTree.SubElement(parent, name, attributes)


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds")


def _host_name() -> str:
    name = "".join(letter for letter in socket.gethostname() if "!" <= letter <= "~")
    return name[:255] or "-"


def _xml_text(text: str) -> str:
    """What XML 1.0 can hold of a text."""
    return "".join(
        c if c >= " " and c not in "\ufffe\uffff" and not "\ud800" <= c <= "\udfff" else "?" for c in text
    )
