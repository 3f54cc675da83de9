"""A structured report around its content: patient, study, order, equipment, evidence, flags (PS3.3 C.17.1,
C.17.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydicom import Dataset
from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian

from ich_node import codes
from ich_node.report.content_items import (
    ContentItem,
    Relationship,
    code_item,
    encoded_dataset,
    encoded_items,
    sequence_element,
    sop_reference,
    tag_of,
    text_item,
    texts,
    uid_element,
    uid_item,
)
from ich_node.report.header import (
    choose_character_set,
    copy_identity,
    in_zone_of,
    referenced_requests,
    stamp_equipment,
)
from ich_node.report.reading_report import DEVICE_NAME, MANUFACTURER

SERIES_NUMBER = 9901
_OBSERVER = Relationship.HAS_OBS_CONTEXT


@dataclass(frozen=True, kw_only=True)
class ObjectReference:
    """An object, by its place in study and series."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str

    @classmethod
    def of(cls, dataset: Dataset) -> ObjectReference:
        """Return the reference of an object."""
        return cls(
            study_instance_uid=str(dataset.StudyInstanceUID),
            series_instance_uid=str(dataset.SeriesInstanceUID),
            sop_class_uid=str(dataset.SOPClassUID),
            sop_instance_uid=str(dataset.SOPInstanceUID),
        )


@dataclass(frozen=True, kw_only=True)
class DeviceObserver:
    """Who observed: TID 1004 Device Observer Identifying Attributes."""

    uid: str
    model_name: str
    serial_number: str


@dataclass(frozen=True, kw_only=True)
class SrDocument:
    """What a structured report is made of."""

    source: Dataset
    """Header of the image that patient, study, order and time zone are taken from."""
    title: codes.CodedConcept
    """Concept Name of the root CONTAINER."""
    template: str
    """Number of the root's template in PS3.16."""
    content: Sequence[ContentItem]
    """What the root holds."""
    sop_class_uid: UID
    sop_instance_uid: str
    series_instance_uid: str
    series_description: str
    """At most 64 characters."""
    device_uid: str
    made_at: datetime
    """With time zone."""
    software: Sequence[str] = ()
    """Software Versions (0018,1020) behind that of this node, at most 64 characters each."""
    evidence: Sequence[ObjectReference] = ()
    """Every object that it rests on."""
    predecessor: ObjectReference | None = None


def opening(observer: DeviceObserver, procedure: codes.CodedConcept) -> list[ContentItem]:
    """First items of a report: language (TID 1204), device observer (TID 1004) and procedure reported."""
    modifies = Relationship.HAS_CONCEPT_MOD
    return [
        code_item(codes.LANGUAGE, codes.ENGLISH, modifies),
        code_item(codes.OBSERVER_TYPE, codes.DEVICE, _OBSERVER),
        uid_item(codes.DEVICE_OBSERVER_UID, observer.uid, _OBSERVER),
        text_item(codes.DEVICE_OBSERVER_NAME, DEVICE_NAME, _OBSERVER),
        text_item(codes.DEVICE_OBSERVER_MANUFACTURER, MANUFACTURER, _OBSERVER),
        text_item(codes.DEVICE_OBSERVER_MODEL_NAME, observer.model_name, _OBSERVER),
        text_item(codes.DEVICE_OBSERVER_SERIAL_NUMBER, observer.serial_number, _OBSERVER),
        code_item(codes.PROCEDURE_REPORTED, procedure, modifies),
    ]


def build_document(document: SrDocument) -> Dataset:
    """Write a report with the flags COMPLETE, UNVERIFIED and PRELIMINARY.

    Content and evidence are in the data set as encoded sequences: pydicom decodes them when they are asked for,
    and saving writes them as they are.
    """
    dataset = _header(document)
    choose_character_set(document.source, dataset, texts(document.content))
    declared = dataset.get("SpecificCharacterSet")
    encodings = convert_encodings(declared) if declared else default_encoding
    _add_encoded(dataset, "ContentSequence", encoded_items(document.content, _names(encodings)))
    if document.evidence:
        keyword = "CurrentRequestedProcedureEvidenceSequence"
        _add_encoded(dataset, keyword, _encoded_references(document.evidence))
    if document.predecessor is not None:
        _add_encoded(dataset, "PredecessorDocumentsSequence", _encoded_references([document.predecessor]))
    dataset.set_original_encoding(False, True, encodings)
    return dataset


def _names(encodings: str | list[str]) -> list[str]:
    return [encodings] if isinstance(encodings, str) else encodings


def _header(document: SrDocument) -> Dataset:
    """Everything but content, evidence and predecessor."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = document.sop_class_uid
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(document.sop_instance_uid)
    copy_identity(document.source, dataset)
    dataset.Modality = "SR"
    dataset.SeriesInstanceUID = document.series_instance_uid
    dataset.SeriesNumber = SERIES_NUMBER
    dataset.SeriesDescription = document.series_description
    dataset.ReferencedPerformedProcedureStepSequence = []
    dataset.InstanceNumber = 1
    dataset.CompletionFlag = "COMPLETE"
    dataset.PreliminaryFlag = "PRELIMINARY"
    dataset.VerificationFlag = "UNVERIFIED"
    dataset.PerformedProcedureCodeSequence = []
    requests = referenced_requests(document.source)
    if requests:
        dataset.ReferencedRequestSequence = requests
    dataset.DeviceUID = document.device_uid
    stamp_equipment(dataset, in_zone_of(document.source, document.made_at), *document.software)
    _open_content(dataset, document)
    return dataset


def _open_content(dataset: Dataset, document: SrDocument) -> None:
    """Attributes of the root CONTAINER, which stand in the document itself (PS3.3 C.17.3)."""
    dataset.ValueType = "CONTAINER"
    dataset.ContinuityOfContent = "CONTINUOUS"
    title, template = Dataset(), Dataset()
    title.CodeValue = document.title.value
    title.CodingSchemeDesignator = document.title.scheme_designator
    title.CodeMeaning = document.title.meaning
    dataset.ConceptNameCodeSequence = [title]
    template.MappingResource = "DCMR"
    template.TemplateIdentifier = document.template
    dataset.ContentTemplateSequence = [template]


def _add_encoded(dataset: Dataset, keyword: str, value: bytes) -> None:
    tag = Tag(tag_of(keyword))
    dataset[tag] = RawDataElement(tag, "SQ", len(value), value, 0, False, True, True)


def _encoded_references(references: Iterable[ObjectReference]) -> bytes:
    """Hierarchical SOP Instance Reference Macro (PS3.3 Table C.17-3), each object once."""
    studies: dict[str, dict[str, dict[str, ObjectReference]]] = {}
    for reference in references:
        series = studies.setdefault(reference.study_instance_uid, {})
        objects = series.setdefault(reference.series_instance_uid, {})
        objects.setdefault(reference.sop_instance_uid, reference)
    return b"".join(_encoded_study(uid, series) for uid, series in studies.items())


def _encoded_study(uid: str, series: dict[str, dict[str, ObjectReference]]) -> bytes:
    items = []
    for series_uid, objects in series.items():
        references = [sop_reference(o.sop_class_uid, o.sop_instance_uid) for o in objects.values()]
        sops = sequence_element(tag_of("ReferencedSOPSequence"), references)
        items.append(encoded_dataset([sops, uid_element("SeriesInstanceUID", series_uid)]))
    listed = sequence_element(tag_of("ReferencedSeriesSequence"), items)
    return encoded_dataset([listed, uid_element("StudyInstanceUID", uid)])
