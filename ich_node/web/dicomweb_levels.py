"""Which attributes describe a study, a series or an object."""

from __future__ import annotations

from enum import IntEnum

from pydicom.datadict import tag_for_keyword


class Level(IntEnum):
    """What is searched for."""

    STUDY = 0
    SERIES = 1
    INSTANCE = 2


def _keywords(text: str) -> frozenset[str]:
    return frozenset(text.split())


STUDY_ATTRIBUTES = _keywords(
    """
    StudyInstanceUID StudyDate StudyTime StudyID StudyDescription AccessionNumber IssuerOfAccessionNumberSequence
    ModalitiesInStudy ReferringPhysicianName ReferringPhysicianIdentificationSequence ConsultingPhysicianName
    PhysiciansOfRecord NameOfPhysiciansReadingStudy RequestingService ProcedureCodeSequence
    ReasonForPerformedProcedureCodeSequence AdmittingDiagnosesDescription AdmittingDiagnosesCodeSequence
    AdmissionID ServiceEpisodeID PatientName PatientID IssuerOfPatientID OtherPatientIDsSequence OtherPatientNames
    PatientBirthDate PatientBirthTime PatientSex PatientAge PatientSize PatientWeight PatientComments EthnicGroup
    Occupation AdditionalPatientHistory PregnancyStatus SmokingStatus MedicalAlerts Allergies
    NumberOfStudyRelatedSeries NumberOfStudyRelatedInstances TimezoneOffsetFromUTC InstanceAvailability RetrieveURL
    SpecificCharacterSet
    """
)
"""Patient, Patient Study and General Study modules (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2), and what a search adds."""
SERIES_ATTRIBUTES = _keywords(
    """
    SeriesInstanceUID SeriesNumber SeriesDescription SeriesDescriptionCodeSequence SeriesDate SeriesTime Modality
    Laterality BodyPartExamined PatientPosition ProtocolName PerformingPhysicianName OperatorsName
    PerformedProcedureStepID PerformedProcedureStepDescription PerformedProcedureStepStartDate
    PerformedProcedureStepStartTime PerformedProcedureStepEndDate PerformedProcedureStepEndTime
    PerformedProtocolCodeSequence RequestAttributesSequence FrameOfReferenceUID PositionReferenceIndicator
    Manufacturer ManufacturerModelName InstitutionName InstitutionAddress InstitutionalDepartmentName StationName
    DeviceSerialNumber SoftwareVersions NumberOfSeriesRelatedInstances
    """
)
"""General Series, Frame of Reference and General Equipment modules (PS3.3 C.7.3.1, C.7.4.1, C.7.5.1)."""


def level_of(keyword: str) -> Level:
    """Which entity an attribute describes; those of objects are all that are not of studies or series."""
    if keyword in STUDY_ATTRIBUTES:
        return Level.STUDY
    return Level.SERIES if keyword in SERIES_ATTRIBUTES else Level.INSTANCE


def tag_of(keyword: str) -> str:
    """Tag, in eight hexadecimal digits, of a keyword that is known to be in the dictionary."""
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return f"{tag:08X}"
