"""What arrives: frozen values for studies, series and instances, apart from their DICOM encoding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Concatenation:
    """Of which set of objects a multi-frame object is one: Multi-frame Functional Groups (PS3.3 C.7.6.16)."""

    concatenation_uid: str
    in_concatenation_number: int | None
    """Counted from 1."""
    in_concatenation_total_number: int | None
    concatenation_frame_offset_number: int | None
    """How many frames lie in the objects before this one."""


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One stored image: a SOP instance of a single frame, or one frame of a multi-frame instance.

    What its header says, and where its bytes are. A multi-frame instance is one `Instance` at its receipt, without
    geometry; `ich_node.receive.frames.read_frames_header` makes one of each frame.

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
    """Image Type (0008,0008), of a frame Frame Type (0008,9007)."""
    instance_number: int | None = None
    acquisition_number: int | None = None
    rows: int | None = None
    columns: int | None = None
    number_of_frames: int = 1
    """Of the whole object."""
    frame_number: int | None = None
    """Of this frame in its object, counted from 1 as in Referenced Frame Number (0008,1160); ``None`` where the
    image is a whole SOP instance."""
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
    # only of frames
    stack_id: str = ""
    temporal_position: int | None = None
    anatomic_region: str = ""
    """Anatomic Region (0008,2218) in words; ``Head`` for every code of the head, whatever its meaning says."""
    volumetric_properties: str = ""
    volume_based_calculation_technique: str = ""
    concatenation: Concatenation | None = None


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
