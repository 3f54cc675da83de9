"""What arrives: frozen values for studies, series and instances, apart from their DICOM encoding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One stored SOP instance: what its header says, and where its bytes are.

    A value that the header lacks or that cannot be parsed is ``None`` (empty string or tuple for text), never a guess.
    Positions and directions are in the DICOM patient frame (LPS, mm).
    """

    path: Path
    """The Part 10 file in the spool."""
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    series_instance_uid: str
    study_instance_uid: str
    modality: str = ""
    image_type: tuple[str, ...] = ()
    instance_number: int | None = None
    acquisition_number: int | None = None
    rows: int | None = None
    columns: int | None = None
    number_of_frames: int = 1
    samples_per_pixel: int | None = None
    image_position_patient_mm: tuple[float, float, float] | None = None
    image_orientation_patient: tuple[float, float, float, float, float, float] | None = None
    pixel_spacing_mm: tuple[float, float] | None = None
    """(row spacing, column spacing), the order of PixelSpacing (0028,0030)."""
    slice_thickness_mm: float | None = None
    gantry_detector_tilt_deg: float | None = None
    kvp: float | None = None
    convolution_kernel: tuple[str, ...] = ()
    contrast_bolus_agent: str = ""
    body_part_examined: str = ""
    study_description: str = ""
    series_description: str = ""
    protocol_name: str = ""
    series_number: int | None = None
    has_pixel_data: bool = True


@dataclass(frozen=True, kw_only=True)
class Series:
    """All instances of one series that are here now, in no particular order."""

    series_instance_uid: str
    study_instance_uid: str
    instances: tuple[Instance, ...]


@dataclass(frozen=True, kw_only=True)
class Study:
    """All series of one study that are here now."""

    study_instance_uid: str
    series: tuple[Series, ...]


@dataclass(frozen=True, kw_only=True)
class StudyHeader:
    """Patient and order attributes of a study as one of its instances gives them. Identifying: never logged.

    Text is decoded by the instance's Specific Character Set; an absent attribute is the empty string.
    """

    study_instance_uid: str
    patient_id: str = ""
    patient_name: str = ""
    """As stored, with the PN component separators (``Family^Given``)."""
    patient_birth_date: str = ""
    patient_sex: str = ""
    accession_number: str = ""
    study_date: str = ""
    """DA, YYYYMMDD."""
    study_time: str = ""
    """TM, HHMMSS.FFFFFF."""
    study_description: str = ""
