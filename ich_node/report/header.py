"""Patient, study and order attributes that a result takes over from the images it was made from.

They are copied as they are: nothing is truncated, recoded or invented. What cannot be written (a date that is
no date) is left empty where the attribute has to be there and left out where it need not.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone

from pydicom import Dataset, config
from pydicom.charset import convert_encodings, decode_bytes, encode_string, python_encoding
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.uid import UID
from pydicom.valuerep import PersonName, validate_value

from ich_node import __version__
from ich_node.codes import IMPLEMENTATION_CLASS_UID
from ich_node.report import attributes
from ich_node.report.reading_report import DEVICE_NAME, MANUFACTURER, ReadingReport

TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Attributes of Patient (PS3.3 C.7.1.1) and General Study (C.7.2.1) that have to be there, empty if
unknown."""

TYPE_3 = (
    "TimezoneOffsetFromUTC",
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "OtherPatientIDsSequence",
    "PatientBirthTime",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialTimePointID",
    "IssuerOfAccessionNumberSequence",
    "StudyDescription",
    "ProcedureCodeSequence",
    "ReferringPhysicianIdentificationSequence",
    "PhysiciansOfRecord",
    "AdmissionID",
    "IssuerOfAdmissionIDSequence",
)
"""Attributes of the same modules, of Patient Study and of the clinical trial modules that are copied where
present."""

ORDER_TYPE_2 = (
    "AccessionNumber",
    "RequestedProcedureID",
    "RequestedProcedureDescription",
    "RequestedProcedureCodeSequence",
    "PlacerOrderNumberImagingServiceRequest",
    "FillerOrderNumberImagingServiceRequest",
)
"""Attributes of Referenced Request Sequence (PS3.3 Table C.17-2) that have to be there, empty if unknown."""

ORDER_TYPE_3 = (
    "IssuerOfAccessionNumberSequence",
    "OrderPlacerIdentifierSequence",
    "OrderFillerIdentifierSequence",
    "ReasonForTheRequestedProcedure",
    "ReasonForRequestedProcedureCodeSequence",
)
"""Attributes of the same sequence that are copied where present."""

_FREE_TEXT = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
"""Value representations whose text is kept even where it breaks their length: half a patient ID is another
patient's."""
_SMALLEST_OFFSET, _LARGEST_OFFSET = timedelta(hours=-12), timedelta(hours=14)


def copy_identity(source: Dataset, target: Dataset) -> None:
    """Copy patient and study attributes with their Specific Character Set (0008,0005) from one image to a
    result.

    The character set stays as it is where it can carry every text of the result; else it becomes UTF-8
    (ISO_IR 192).
    """
    target.StudyInstanceUID = str(source.StudyInstanceUID)
    for keyword in TYPE_2:
        target[keyword] = _element(source, keyword) or _empty(keyword)
    for keyword in TYPE_3:
        element = _element(source, keyword)
        if element is not None and not element.is_empty:
            target[keyword] = element
    _drop_unexplained_deidentification(target)


def _drop_unexplained_deidentification(target: Dataset) -> None:
    # Type 1C: without a method the flag makes the object invalid (C.7.1.1), and we know of no method.
    has_method = target.get("DeidentificationMethod") or target.get("DeidentificationMethodCodeSequence")
    if "PatientIdentityRemoved" in target and target.PatientIdentityRemoved == "YES" and not has_method:
        del target.PatientIdentityRemoved


def choose_character_set(source: Dataset, target: Dataset, texts: Iterable[str] = ()) -> None:
    """Set Specific Character Set: the source's where every text survives it, else UTF-8.

    ``texts`` are those that ``target`` is still to get.
    """
    declared = attributes.value(source, "SpecificCharacterSet") or ""
    if _carries(declared, [*_texts(target), *texts]):
        if declared:
            target.SpecificCharacterSet = declared
    else:
        target.SpecificCharacterSet = "ISO_IR 192"
        target.walk(_recode)


def order_items(source: Dataset) -> list[Dataset]:
    """Return Request Attributes Sequence (0040,0275) items, decoded; none where the image names no order."""
    items = _element(source, "RequestAttributesSequence")
    if items is None:
        return []
    for item in items.value:
        item.remove_private_tags()
    return [item for item in items.value if len(item) > 0]


def referenced_requests(source: Dataset) -> list[Dataset]:
    """Items of Referenced Request Sequence (0040,A370) (PS3.3 C.17.2): the order that the images were made
    for.

    An image that names its accession number only gives one item with that.
    """
    requests = order_items(source)
    if not requests and not attributes.value(source, "AccessionNumber"):
        return []
    return [_referenced_request(source, request) for request in requests or [Dataset()]]


def _referenced_request(source: Dataset, request: Dataset) -> Dataset:
    item = Dataset()
    item.StudyInstanceUID = str(source.StudyInstanceUID)
    item.ReferencedStudySequence = []
    for keyword in ORDER_TYPE_2:
        item[keyword] = _element(request, keyword) or _element(source, keyword) or _empty(keyword)
    for keyword in ORDER_TYPE_3:
        element = _element(request, keyword) or _element(source, keyword)
        if element is not None and not element.is_empty:
            item[keyword] = element
    return item


def stamp(report: ReadingReport, target: Dataset) -> None:
    """Write equipment, dates and file meta: those of the reading and of this node, never of the wall
    clock.
    """
    algorithm = report.finding.algorithm
    stamp_equipment(target, local_time(report), f"{algorithm.name} {algorithm.version}"[:64])


def stamp_equipment(target: Dataset, made_at: datetime, *software: str) -> None:
    """Write equipment, dates and file meta of an object that this node made at ``made_at``, local time.

    ``software`` stands behind the version of this node in Software Versions (0018,1020).
    """
    target.Manufacturer = MANUFACTURER
    target.ManufacturerModelName = DEVICE_NAME
    target.SoftwareVersions = [__version__, *software]
    for event in ("InstanceCreation", "Content", "Series"):
        setattr(target, f"{event}Date", f"{made_at:%Y%m%d}")
        setattr(target, f"{event}Time", f"{made_at:%H%M%S.%f}")
    for equipment in target.get("ContributingEquipmentSequence") or []:
        # highdicom names itself here, with the time of its call.
        equipment.ContributionDateTime = f"{made_at:%Y%m%d%H%M%S.%f%z}"
    target.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    target.file_meta.ImplementationVersionName = f"{DEVICE_NAME}_{__version__}"[:16]


def local_time(report: ReadingReport) -> datetime:
    """Time of reading in the zone of the images."""
    return in_zone_of(report.source_images[0], report.read_at)


def in_zone_of(source: Dataset, moment: datetime) -> datetime:
    """Return a moment in the zone of an image: Timezone Offset From UTC (0008,0201), else that of this
    machine.
    """
    stated = attributes.text(source, "TimezoneOffsetFromUTC")
    if len(stated) == 5 and stated[0] in "+-" and stated[1:].isdecimal():
        size = timedelta(hours=int(stated[1:3]), minutes=int(stated[3:]))
        offset = -size if stated[0] == "-" else size
        if _SMALLEST_OFFSET <= offset <= _LARGEST_OFFSET:
            return moment.astimezone(timezone(offset))
    return moment.astimezone()


def _element(source: Dataset, keyword: str) -> DataElement | None:
    """Return a copy of an attribute, decoded by its own character set; None where it cannot be written."""
    found = attributes.element(source, keyword)
    if found is None:
        return None
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        try:
            copied = copy.deepcopy(found)
            if _has_texts(copied):
                _decode(copied, attributes.value(source, "SpecificCharacterSet") or "")
        except attributes.UNREADABLE:
            return None
    return copied if _is_writable(copied) else None


def _empty(keyword: str) -> DataElement:
    return DataElement(tag_for_keyword(keyword) or 0, dictionary_VR(keyword), None)


def _decode(element: DataElement, character_set: str | list[str]) -> None:
    holder = Dataset()
    if character_set:
        holder.SpecificCharacterSet = character_set
    holder.add(element)
    holder.decode()


def _has_texts(element: DataElement) -> bool:
    """Whether there may be text in a character set in it."""
    return element.VR in _FREE_TEXT or element.VR == "SQ"


def _is_writable(element: DataElement) -> bool:
    if _has_texts(element):
        return True
    values = element.value if element.VM > 1 else [element.value]
    try:
        for value in values:
            validate_value(element.VR, value, config.RAISE)
    except (ValueError, TypeError, NotImplementedError):
        return False
    return True


def _texts(dataset: Dataset) -> Iterable[str]:
    for element in dataset.iterall():
        if element.VR not in _FREE_TEXT or element.is_empty:
            continue
        values = element.value if element.VM > 1 else [element.value]
        yield from (str(value) for value in values)


def _carries(declared: str | Iterable[str], texts: Iterable[str]) -> bool:
    names = [declared] if isinstance(declared, str) else list(declared)
    if not all(name in python_encoding for name in names):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            encodings = convert_encodings(names)
            return all(_survives(text, encodings) for text in texts)
        except (LookupError, ValueError, UserWarning):
            return False


def _survives(text: str, encodings: list[str]) -> bool:
    return text.isascii() or decode_bytes(encode_string(text, encodings), encodings, set()) == text


def _recode(_: Dataset, element: DataElement) -> None:
    """Drop what remembers the old encoding: a sequence item's own character set, the bytes behind a person
    name.
    """
    if element.VR == "SQ":
        for item in element.value:
            if "SpecificCharacterSet" in item:
                del item.SpecificCharacterSet
    if element.VR != "PN" or element.is_empty:
        return
    names = element.value if element.VM > 1 else [element.value]
    fresh = [PersonName(str(name)) for name in names]
    element.value = fresh if element.VM > 1 else fresh[0]
