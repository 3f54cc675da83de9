"""A workitem as a Unified Procedure Step object (PS3.3 B.26.2) in the DICOM JSON model."""

from __future__ import annotations

from collections.abc import Sequence

from ich_node.codes import INTERPRETATION
from ich_node.database.json_model import JsonDataset, attribute, coded, dataset, date_time
from ich_node.database.workitem_actions import PERFORMED, own_performance
from ich_node.database.workitem_events import UPS_PUSH_SOP_CLASS_UID
from ich_node.database.workitem_states import WorkitemState
from ich_node.database.workitems import SourceImages, Workitem
from ich_node.web.ups_query import PROCEDURE_STEP_LABEL, WORKLIST_LABEL
from ich_node.web.wording import DISCLAIMER, SUBTYPE, standing


def encode_workitem(
    item: Workitem, *, station: str, inputs: Sequence[SourceImages] | None = None, service_url: str = ""
) -> JsonDataset:
    """Encode a workitem without its Transaction UID, which nobody is told (PS3.4 CC.2.7.3).

    Parameters
    ----------
    station
        AE title of this node.
    inputs
        What a performer looks at; ``None``: Input Information Sequence is left out.
    service_url
        Of DICOMweb, where the inputs can be retrieved.
    """
    performed = attribute(PERFORMED)
    if item.state is WorkitemState.COMPLETED and item.reviewed_at is not None:
        performed = own_performance(item.reviewed_at, item.reviewed_by or "", station)
    own = dataset(
        attribute("SpecificCharacterSet", "ISO_IR 192"),
        attribute("SOPClassUID", UPS_PUSH_SOP_CLASS_UID),
        attribute("SOPInstanceUID", item.sop_instance_uid),
        _relationship(item),
        _scheduled(item),
        attribute("ProcedureStepState", str(item.state)),
        attribute("ProcedureStepProgressInformationSequence"),
        performed,
        {} if inputs is None else _inputs(item, inputs, service_url),
    )
    return dataset(own, dict(item.attributes))


def result_text(item: Workitem) -> str:
    """What the AI says of the study, for a person."""
    words = standing(item.priority, item.study_state, item.reason)
    said = [words.priority_words]
    if words.reason_words:
        said.append(words.reason_words)
    if item.result is not None:
        said.append(f"suspicion {item.result.suspicion:.0%}")
        likely = sorted(item.result.subtypes.items(), key=lambda pair: -pair[1])
        said += [f"{SUBTYPE.get(name, name).lower()} {score:.0%}" for name, score in likely]
        said.append(f"read by {item.result.model_name} {item.result.model_version}")
    return f"{'; '.join(said)}. {DISCLAIMER}."


def _relationship(item: Workitem) -> JsonDataset:
    request = dataset(
        attribute("StudyInstanceUID", item.study_instance_uid),
        attribute("AccessionNumber", item.accession_number),
        attribute("IssuerOfAccessionNumberSequence"),
        attribute("OrderPlacerIdentifierSequence"),
        attribute("OrderFillerIdentifierSequence"),
        attribute("RequestedProcedureID"),
        attribute("RequestedProcedureDescription", item.study_description),
        attribute("RequestedProcedureCodeSequence"),
    )
    return dataset(
        attribute("PatientName", item.patient_name),
        attribute("PatientID", item.patient_id),
        attribute("IssuerOfPatientID"),
        attribute("PatientBirthDate", item.patient_birth_date),
        attribute("PatientSex", item.patient_sex),
        attribute("AdmissionID"),
        attribute("IssuerOfAdmissionIDSequence"),
        attribute("AdmittingDiagnosesDescription"),
        attribute("AdmittingDiagnosesCodeSequence"),
        attribute("ReferencedRequestSequence", request),
    )


def _scheduled(item: Workitem) -> JsonDataset:
    return dataset(
        attribute("ScheduledProcedureStepPriority", item.step_priority),
        attribute("ScheduledProcedureStepModificationDateTime", date_time(item.changed_at)),
        attribute("WorklistLabel", WORKLIST_LABEL),
        attribute("ProcedureStepLabel", PROCEDURE_STEP_LABEL),
        attribute("CommentsOnTheScheduledProcedureStep", result_text(item)),
        attribute("ScheduledProcessingParametersSequence"),
        attribute("ScheduledStationNameCodeSequence"),
        attribute("ScheduledStationClassCodeSequence"),
        attribute("ScheduledStationGeographicLocationCodeSequence"),
        attribute("ScheduledProcedureStepStartDateTime", date_time(item.received_at)),
        coded("ScheduledWorkitemCodeSequence", INTERPRETATION),
        attribute("InputReadinessState", item.readiness),
    )


def _inputs(item: Workitem, inputs: Sequence[SourceImages], service_url: str) -> JsonDataset:
    return attribute(
        "InputInformationSequence",
        *(_referenced(item, one.series_instance_uid, one.references, service_url) for one in inputs),
    )


def _referenced(
    item: Workitem, series_instance_uid: str, references: Sequence[tuple[str, str]], service_url: str
) -> JsonDataset:
    """Referenced Instances and Access Macro (PS3.3 Table 10-3b)."""
    url = f"{service_url}/studies/{item.study_instance_uid}/series/{series_instance_uid}"
    return dataset(
        attribute("TypeOfInstances", "DICOM"),
        attribute("StudyInstanceUID", item.study_instance_uid),
        attribute("SeriesInstanceUID", series_instance_uid),
        attribute(
            "ReferencedSOPSequence",
            *(
                dataset(
                    attribute("ReferencedSOPClassUID", sop_class_uid),
                    attribute("ReferencedSOPInstanceUID", sop_instance_uid),
                )
                for sop_class_uid, sop_instance_uid in references
            ),
        ),
        attribute("WADORSRetrievalSequence", attribute("RetrieveURL", url)),
    )
