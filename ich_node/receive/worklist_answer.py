"""A study as an item of the Modality Worklist: the attributes of PS3.4 K.6.1.2.2 that a question asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from ich_node.errors import REASON_WORDS
from ich_node.findings import DISCLAIMER

if TYPE_CHECKING:
    from ich_node.receive.worklist_find import WorklistItem

_CHARACTER_SETS = ("ISO_IR 100", "ISO_IR 192")
"""Tried in this order where the question's own does not do."""
_NOT_AS_ASKED = ("ISO_IR 6", "ISO_IR 13", "ISO 2022")
"""Beginnings of character sets of questions that pydicom would answer in with other characters than those of a name."""
_ASCII_VRS = frozenset(["AE", "CS", "DA", "TM", "UI"])
_EMPTY = [
    "ReferencedStudySequence",
    "RequestedProcedureCodeSequence",
    "PatientTransportArrangements",
    "RequestingPhysician",
    "ReferringPhysicianName",
    "AdmissionID",
    "CurrentPatientLocation",
    "ReferencedPatientSequence",
    "PatientWeight",
    "ConfidentialityConstraintOnPatientDataDescription",
    "PatientState",
    "PregnancyStatus",
    "MedicalAlerts",
    "Allergies",
    "SpecialNeeds",
]
"""Attributes of type 2 that nothing is known of."""


def encode_item(item: WorklistItem, identifier: Dataset) -> Dataset:
    """Those attributes of an item that an identifier asks for, in a character set that holds them all."""
    answer = _selected(_attributes(item), identifier)
    text = "".join((item.patient_name, item.patient_id, item.study_description, item.accession_number))
    character_set = _character_set(text, identifier)
    if character_set is not None:
        answer.SpecificCharacterSet = character_set
    return answer


def _attributes(item: WorklistItem) -> dict[str, Any]:
    """Keyword to value; an inner mapping is a sequence of one item, ``None`` an empty value (K.6.1.2.2)."""
    start = item.received_at.astimezone()
    step = {
        "Modality": item.modality,
        "ScheduledStationAETitle": item.station_ae_title,
        "ScheduledProcedureStepStartDate": start.strftime("%Y%m%d"),
        "ScheduledProcedureStepStartTime": start.strftime("%H%M%S"),
        "ScheduledPerformingPhysicianName": None,
        "ScheduledProcedureStepDescription": (item.study_description or "Interpretation")[:64],
        "ScheduledProtocolCodeSequence": None,
        "ScheduledProcedureStepID": "1",
        "ScheduledStationName": None,
        "ScheduledProcedureStepLocation": None,
        "ScheduledProcedureStepStatus": "SCHEDULED",
        "CommentsOnTheScheduledProcedureStep": _comment(item),
        "PreMedication": None,
        "RequestedContrastAgent": None,
    }
    return {
        **dict.fromkeys(_EMPTY),
        "ScheduledProcedureStepSequence": step,
        "RequestedProcedureID": "1",
        "RequestedProcedureDescription": (item.study_description or "CT")[:64],
        "RequestedProcedurePriority": item.priority,
        "RequestedProcedureComments": _comment(item),
        "StudyInstanceUID": item.study_instance_uid,
        "AccessionNumber": item.accession_number,
        "PatientName": item.patient_name,
        "PatientID": item.patient_id,
        "PatientBirthDate": item.patient_birth_date,
        "PatientSex": item.patient_sex,
    }


def _comment(item: WorklistItem) -> str:
    if item.suspicion is None:
        why = REASON_WORDS.get(item.reason, item.reason) if item.reason else "not read yet"
        return f"No AI result: {why}"
    return f"AI: suspicion of hemorrhage {item.suspicion:.0%}. {DISCLAIMER}"


def _selected(values: Mapping[str, Any], asked: Dataset) -> Dataset:
    """The values whose attributes are asked for; a sequence without items asks for all of its item's."""
    answer = Dataset()
    for keyword, value in values.items():
        tag = Tag(keyword)
        if tag not in asked:
            continue
        if isinstance(value, dict):
            items = list(asked[tag].value or ())
            inner = (
                _selected(value, items[0]) if items and len(items[0]) else _selected(value, _all_of(value))
            )
            answer.add_new(tag, "SQ", Sequence([inner]))
        else:
            vr = dictionary_VR(tag)
            answer.add_new(tag, vr, Sequence() if vr == "SQ" else _as_allowed(vr, value))
    return answer


def _as_allowed(vr: str, value: Any) -> Any:
    """A value from somebody's header; one that cannot be sent is left out, and does not keep the others back."""
    return None if vr in _ASCII_VRS and value and not value.isascii() else value


def _all_of(values: Mapping[str, Any]) -> Dataset:
    asked = Dataset()
    for keyword in values:
        asked.add_new(Tag(keyword), dictionary_VR(Tag(keyword)), None)
    return asked


def _character_set(text: str, identifier: Dataset) -> str | None:
    """Specific Character Set (0008,0005) of an answer; ``None``: ASCII does."""
    if text.isascii():
        return None
    own = str(identifier.get("SpecificCharacterSet") or "")
    for name in (own, *_CHARACTER_SETS):
        if name in python_encoding and name and not name.startswith(_NOT_AS_ASKED) and _holds(name, text):
            return name
    return _CHARACTER_SETS[-1]


def _holds(character_set: str, text: str) -> bool:
    try:
        text.encode(python_encoding[character_set])
    except (UnicodeError, LookupError):
        return False
    return True
