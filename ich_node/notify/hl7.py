"""A notice as HL7 v2 message ORU^R01, and what an acknowledgment says.

Chapters 2 (control) and 7 (observation reporting) of HL7 2.3.1, 2.4 and 2.5.1. docs/decisions/0018 says why the
fields are filled as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.core import Message

from ich_node import codes
from ich_node.codes import CodedConcept
from ich_node.errors import ConfigurationError
from ich_node.findings import Priority
from ich_node.notify.notice import Notice, PatientIdentity
from ich_node.notify.wording import headline, result_lines
from ich_node.report.wording import SUBTYPE_NAME, percent

_LOCAL = "99ICHNODE"
"""Coding scheme of codes that no standard has, named as HL7 table 0396 wants it."""
_PRIORITY = CodedConcept(value="PRIORITY", scheme_designator=_LOCAL, meaning="Suggested reading priority")
_PRESENCE = {Priority.STAT: codes.PRESENT, Priority.HIGH: codes.INDETERMINATE, Priority.ROUTINE: codes.ABSENT}
_ABNORMAL = {Priority.STAT: "AA", Priority.HIGH: "A"}
"""OBX-8, table 0078. Where nothing is flagged it is empty: "N" would say that the study is normal."""
_ESCAPES = {"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\"}
_PRELIMINARY, _NO_RESULT, _INCOMPLETE = "P", "X", "I"
"""OBX-11 (table 0085) and OBR-25 (table 0123): a result that nobody verified; none can be had; none yet, the
procedure is incomplete."""


class Hl7Version(StrEnum):
    """MSH-12, table 0104."""

    V2_3_1 = "2.3.1"
    V2_4 = "2.4"
    V2_5_1 = "2.5.1"


class CharacterSet(StrEnum):
    """MSH-18, table 0211."""

    ASCII = "ASCII"
    LATIN_1 = "8859/1"
    UTF_8 = "UNICODE UTF-8"

    @property
    def codec(self) -> str:
        """Python's name of it."""
        return {"ASCII": "ascii", "8859/1": "latin-1", "UNICODE UTF-8": "utf-8"}[self]


@dataclass(frozen=True, kw_only=True)
class Hl7Header:
    """Who writes to whom, and in which dialect.

    Raises
    ------
    ConfigurationError
        A name is longer than HL7 has room for.
    """

    sending_application: str = "ICH_NODE"
    """MSH-3; also the authority of the ids that this node makes (PID-3.4, OBR-3.2)."""
    sending_facility: str = ""
    """MSH-4."""
    receiving_application: str = ""
    """MSH-5."""
    receiving_facility: str = ""
    """MSH-6."""
    version: Hl7Version = Hl7Version.V2_5_1
    character_set: CharacterSet = CharacterSet.UTF_8
    """Of messages that do not come out in ASCII. Where it lacks a character, a question mark stands for that."""
    processing_id: Literal["P", "T", "D"] = "P"
    """MSH-11: production, training or debugging."""
    patient_id_authority: str = ""
    """PID-3.4, who issues patient IDs; only with identifying data."""

    def __post_init__(self) -> None:
        for name in (
            "sending_application",
            "sending_facility",
            "receiving_application",
            "receiving_facility",
            "patient_id_authority",
        ):
            if len(getattr(self, name)) > 20:
                raise ConfigurationError(f"HL7 {name} is longer than the 20 characters that HL7 has for it")
        if not self.sending_application:
            raise ConfigurationError("HL7 sending_application is empty; name this node, such as ICH_NODE")


class _Observation(NamedTuple):
    value_type: Literal["CE", "NM", "ST", "TX"]
    identifier: str
    value: str
    units: str = ""
    abnormal: str = ""


def message_control_id(notice: Notice) -> str:
    """MSH-10: 20 hexadecimal digits, the most that HL7 has room for; the same for each attempt."""
    return _short_hash(notice.notice_id)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def oru_r01(notice: Notice, header: Hl7Header, *, control_id: str = "") -> str:
    """Write a notice as unsolicited observation message, with preliminary results.

    One OBR for the study, and OBX for presence, suspicion in percent, each flagged subtype, priority, the same in
    words, algorithm and the UIDs of study and report. Of a study that was not read, presence has no value and the
    status "results cannot be obtained". Without identity PID-3 has the pseudonym, or else a hash of the study's UID, as
    an id that this node issued, and PID-5 is a pseudo-name without a name.

    Parameters
    ----------
    notice
        What is told.
    header
        Who writes to whom.
    control_id
        MSH-10; that of `message_control_id` if empty.

    Returns
    -------
    str
        ER7, segments ended by carriage returns, checked against the structure of the version. All in the character
        set that its MSH-18 names.
    """
    message = _message(notice, header, control_id or message_control_id(notice))
    message.validate()
    text = str(message.to_er7()) + "\r"
    if text.isascii():
        return text
    message.msh.msh_18 = str(header.character_set)
    text = str(message.to_er7()) + "\r"
    return text.encode(header.character_set.codec, errors="replace").decode(header.character_set.codec)


def _message(notice: Notice, header: Hl7Header, control_id: str) -> Any:
    # Tolerant: strict would refuse values longer than nominal, such as a patient ID of 16 characters.
    message = Message("ORU_R01", version=str(header.version), validation_level=VALIDATION_LEVEL.TOLERANT)
    _fill_msh(message.msh, notice, header, control_id)
    result = message.add_group("ORU_R01_PATIENT_RESULT")
    _fill_pid(result.add_group("ORU_R01_PATIENT").add_segment("PID"), notice, header)
    order = result.add_group("ORU_R01_ORDER_OBSERVATION")
    _fill_obr(order.add_segment("OBR"), notice, header)
    for number, observation in enumerate(_observations(notice), start=1):
        segment = order.add_group("ORU_R01_OBSERVATION").add_segment("OBX")
        _fill_obx(segment, number, observation, notice)
    return message


def _fill_msh(msh: Any, notice: Notice, header: Hl7Header, control_id: str) -> None:
    # hl7apy writes the present time into MSH-7 of a new message; a repetition is the same message.
    msh.msh_7 = _timestamp(notice.happened_at)
    msh.msh_3, msh.msh_4 = _text(header.sending_application), _text(header.sending_facility)
    msh.msh_5, msh.msh_6 = _text(header.receiving_application), _text(header.receiving_facility)
    msh.msh_9 = "ORU^R01^ORU_R01"
    msh.msh_10 = _text(control_id)
    msh.msh_11 = header.processing_id
    msh.msh_18 = str(CharacterSet.ASCII)


def _fill_pid(pid: Any, notice: Notice, header: Hl7Header) -> None:
    pid.pid_1 = "1"
    if notice.identity is not None:
        pid.pid_3 = _joined(notice.identity.patient_id, "", "", header.patient_id_authority, "PI")
        pid.pid_5 = _extended_person_name(notice.identity)
        return
    # Tables 0203 ("anonymous identifier", new in 2.5) and 0200 ("coded pseudo-name to ensure anonymity").
    kind = "ANON" if header.version is Hl7Version.V2_5_1 else ""
    pid.pid_3 = _joined(
        notice.pseudonym or _short_hash(notice.study_instance_uid), "", "", header.sending_application, kind
    )
    pid.pid_5 = _joined("", "", "", "", "", "", "S")


def _fill_obr(obr: Any, notice: Notice, header: Hl7Header) -> None:
    accession_number = notice.identity.accession_number if notice.identity else ""
    obr.obr_1 = "1"
    obr.obr_3 = (
        _text(accession_number)
        if accession_number
        else _joined(message_control_id(notice), header.sending_application)
    )
    obr.obr_4 = _coded(codes.CT_OF_HEAD)
    obr.obr_7 = _timestamp(notice.received_at)
    obr.obr_22 = _timestamp(notice.happened_at)
    obr.obr_25 = _PRELIMINARY if notice.is_read else _INCOMPLETE


def _fill_obx(obx: Any, number: int, observation: _Observation, notice: Notice) -> None:
    obx.obx_1 = str(number)
    obx.obx_2 = observation.value_type
    obx.obx_3 = observation.identifier
    obx.obx_4 = str(number)  # required in 2.3.1
    obx.obx_5 = observation.value
    obx.obx_6 = observation.units
    obx.obx_8 = observation.abnormal
    obx.obx_11 = _PRELIMINARY if observation.value else _NO_RESULT
    obx.obx_14 = _timestamp(notice.happened_at)


def _observations(notice: Notice) -> Iterator[_Observation]:
    presence = _PRESENCE.get(notice.priority) if notice.is_read else None
    abnormal = _ABNORMAL.get(notice.priority, "") if notice.is_read else ""
    found = _coded(presence) if presence else ""
    yield _Observation("CE", _coded(codes.INTRACRANIAL_HEMORRHAGE), found, abnormal=abnormal)
    if notice.suspicion is not None:
        value = f"{percent(notice.suspicion):g}"
        yield _Observation("NM", _coded(codes.CERTAINTY_OF_FINDING), value, _coded(codes.PERCENT), abnormal)
    for subtype in notice.subtypes:
        # The second triplet tells intraventricular from intracranial, which has the same standard code.
        own = CodedConcept(value=subtype.upper(), scheme_designator=_LOCAL, meaning=SUBTYPE_NAME[subtype])
        identifier = f"{_coded(codes.FINDING_OF[subtype])}^{_coded(own)}"
        yield _Observation("CE", identifier, found, abnormal=abnormal)
    yield _Observation("ST", _coded(_PRIORITY), _text(notice.priority))
    yield _Observation("TX", _coded(codes.CONCLUSION), _text(headline(notice)))
    for line in result_lines(notice):
        yield _Observation("TX", _coded(codes.COMMENT), _text(line))
    yield from _references(notice)


def _references(notice: Notice) -> Iterator[_Observation]:
    if notice.model_name:
        yield _Observation("ST", _coded(codes.ALGORITHM_NAME), _text(notice.model_name))
    if notice.model_version:
        yield _Observation("ST", _coded(codes.ALGORITHM_VERSION), _text(notice.model_version))
    if notice.study_instance_uid:
        yield _Observation("ST", _coded(codes.STUDY_INSTANCE_UID), _text(notice.study_instance_uid))
    for uid in notice.report_sop_instance_uids:
        own = CodedConcept(value="RESULT", scheme_designator=_LOCAL, meaning="SOP Instance UID of a result")
        yield _Observation("ST", _coded(own), _text(uid))


def _extended_person_name(identity: PatientIdentity) -> str:
    """XPN of a PN value (PS3.5 6.2.1): its first group, prefix and suffix change places."""
    family, given, middle, prefix, suffix, *_ = (*identity.patient_name.split("=")[0].split("^"), *[""] * 5)
    return _joined(family, given, middle, suffix, prefix, "", "L")


def _coded(concept: CodedConcept) -> str:
    return _joined(concept.value, concept.meaning, concept.scheme_designator)


def _joined(*components: str) -> str:
    return "^".join(_text(component) for component in components)


def _text(value: str) -> str:
    """Escape a value (HL7 2.7), with blanks for line ends and whatever else is not printable.

    Done here and not by hl7apy, which takes a value that is set for ER7 and leaves ``^`` and ``&`` as they are.
    """
    printable = "".join(c if c.isprintable() else " " for c in value).strip()
    return "".join(_ESCAPES.get(c, c) for c in printable)


def _timestamp(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y%m%d%H%M%S}+0000"


@dataclass(frozen=True, kw_only=True)
class Acknowledgment:
    """What an acknowledgment message says."""

    code: str
    """MSA-1, table 0008: AA and CA accepted, AE and CE error, AR and CR rejected."""
    control_id: str
    """MSA-2: which message is meant."""
    conditions: tuple[str, ...]
    """Codes of table 0357: ERR-3 since HL7 2.5, before that MSA-6 and within ERR-1."""
    words: str
    """MSA-3 and what the error segments say, in the sender's words."""


def read_acknowledgment(text: str) -> Acknowledgment:
    """Read an acknowledgment of any version, with whatever line ends it has.

    Taken apart here: hl7apy refuses a version that it does not know and line feeds, both of which receivers write.

    Raises
    ------
    ValueError
        It is no HL7 message, or has no MSA segment.
    """
    lines = [line for line in text.replace("\n", "\r").split("\r") if line]
    if not lines or not lines[0].startswith("MSH") or len(lines[0]) < 8:
        raise ValueError("no HL7 message")
    marks = _Marks(*lines[0][3:8])
    segments = [line.split(marks.field) for line in lines[1:]]
    msa = next((segment for segment in segments if segment[0] == "MSA"), None)
    if msa is None:
        raise ValueError("an HL7 message without MSA segment")
    errors = [segment for segment in segments if segment[0] == "ERR"]
    said = [_field(msa, 3), *(_field(error, number) for error in errors for number in (3, 7, 8, 2, 1))]
    return Acknowledgment(
        code=_field(msa, 1).strip(),
        control_id=_field(msa, 2).strip(),
        conditions=tuple(c for c in _conditions(msa, errors, marks) if c),
        words=" ".join(word for part in said if (word := _readable(part, marks))),
    )


class _Marks(NamedTuple):
    field: str
    component: str
    repetition: str
    escape: str
    subcomponent: str


def _conditions(msa: list[str], errors: list[list[str]], marks: _Marks) -> Iterator[str]:
    yield _field(msa, 6).split(marks.component)[0]
    for error in errors:
        yield _field(error, 3).split(marks.component)[0]
        place = _field(error, 1).split(marks.component)
        yield place[3].split(marks.subcomponent)[0] if len(place) > 3 else ""


def _field(segment: list[str], number: int) -> str:
    return segment[number] if number < len(segment) else ""


def _readable(value: str, marks: _Marks) -> str:
    for mark in (marks.component, marks.repetition, marks.subcomponent):
        value = value.replace(mark, " ")
    for letter, mark in zip("FSRTE", (*marks[:3], marks.subcomponent, marks.escape), strict=True):
        value = value.replace(f"{marks.escape}{letter}{marks.escape}", mark)
    return " ".join(value.split())
