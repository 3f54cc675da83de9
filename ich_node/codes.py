"""Every coded concept that this node writes into DICOM objects, pinned in one reviewed table.

Each code was checked against the dictionaries that pydicom ships (generated from PS3.16) where it is listed
there; `tests/unit/test_codes.py` repeats the check and names the few that PS3.16 does not list. Meanings are
given without the semantic tag of SNOMED CT ("(disorder)"), because viewers show them as they are.

Choices that need a word:

* Probability is written as (111012, DCM, "Certainty of Finding") in percent, as CAD reports write what a
  device makes of its finding. (122157, DCM, "Probability") exists too, but stands among the codes of ECG
  reports, and a network's output is a score of the device rather than a calibrated probability.
* Intraventricular hemorrhage has no code on which public sources agree (274110009, 23276006 and 95457006 are
  all in use), so it is intracranial hemorrhage with the finding site brain ventricle.
* Presence uses the SNOMED CT qualifiers of IHE AI Results: Present, Absent, Indeterminate. CID 240 of PS3.16
  gives 272519000 for Absent, which SNOMED CT keeps for the group "Absence findings"; 2667000 is the qualifier
  itself.
* PS3.16 names no concept for the value set of ACR actionable categories (CID 7035); they stand under Finding
  category, the row that TID 1501 has for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ich_node.findings import IchSubtype

IMPLEMENTATION_CLASS_UID = "2.25.115242815041058759400698430577461302405"
"""Implementation Class UID (0002,0012) of this node: a UUID under 2.25 (PS3.5 B.2), drawn once."""


@dataclass(frozen=True, kw_only=True)
class CodedConcept:
    """A code of the basic code sequence macro (PS3.3 Table 8.8-1a)."""

    value: str
    """Code Value (0008,0100), at most 16 characters."""
    scheme_designator: str
    """Coding Scheme Designator (0008,0102)."""
    meaning: str
    """Code Meaning (0008,0104), at most 64 characters."""


def _sct(value: str, meaning: str) -> CodedConcept:
    return CodedConcept(value=value, scheme_designator="SCT", meaning=meaning)


def _dcm(value: str, meaning: str) -> CodedConcept:
    return CodedConcept(value=value, scheme_designator="DCM", meaning=meaning)


def _ucum(value: str, meaning: str) -> CodedConcept:
    return CodedConcept(value=value, scheme_designator="UCUM", meaning=meaning)


# findings
INTRACRANIAL_HEMORRHAGE = _sct("1386000", "Intracranial hemorrhage")
SUBARACHNOID_HEMORRHAGE = _sct("21454007", "Subarachnoid intracranial hemorrhage")
SUBDURAL_HEMORRHAGE = _sct("35486000", "Subdural intracranial hemorrhage")
CEREBRAL_HEMORRHAGE = _sct("274100004", "Cerebral hemorrhage")
EPIDURAL_HEMORRHAGE = _sct("82999001", "Epidural intracranial hemorrhage")

# finding sites, target region, procedure
INTRACRANIAL = _sct("1101003", "Intracranial")
BRAIN = _sct("12738006", "Brain")
BRAIN_VENTRICLE = _sct("35764002", "Brain ventricle")
SUBARACHNOID_SPACE = _sct("35951006", "Subarachnoid space")
HEAD = _sct("69536005", "Head")
CT_OF_HEAD = _sct("303653007", "Computed tomography of head")
IMAGING_PROCEDURE = _sct("363679005", "Imaging procedure")
COMPUTED_TOMOGRAPHY = _dcm("CT", "Computed Tomography")
INTERPRETATION = _dcm("110005", "Interpretation")
"""What a workitem asks for (CID 9231)."""

# what is said of a finding
PRESENCE = _sct("705057003", "Presence")
PRESENT = _sct("52101004", "Present")
ABSENT = _sct("2667000", "Absent")
INDETERMINATE = _sct("82334004", "Indeterminate")
CERTAINTY_OF_FINDING = _dcm("111012", "Certainty of Finding")
FINDING_CATEGORY = _sct("276214006", "Finding category")
ACR_CATEGORY_1 = CodedConcept(
    value="RID49480", scheme_designator="RADLEX", meaning="ACR Category 1 Actionable Finding"
)

# the report's own structure
IMAGING_MEASUREMENT_REPORT = _dcm("126000", "Imaging Measurement Report")
DIAGNOSTIC_IMAGING_REPORT = CodedConcept(
    value="18748-4", scheme_designator="LN", meaning="Diagnostic Imaging Report"
)
"""Title of reports without measurements (CID 7000): some viewers look for measurements by the other."""
LANGUAGE = _dcm("121049", "Language of Content Item and Descendants")
ENGLISH = CodedConcept(value="en-US", scheme_designator="RFC5646", meaning="English (United States)")
PROCEDURE_REPORTED = _dcm("121058", "Procedure reported")
OBSERVER_TYPE = _dcm("121005", "Observer Type")
DEVICE = _dcm("121007", "Device")
DEVICE_OBSERVER_UID = _dcm("121012", "Device Observer UID")
DEVICE_OBSERVER_NAME = _dcm("121013", "Device Observer Name")
DEVICE_OBSERVER_MANUFACTURER = _dcm("121014", "Device Observer Manufacturer")
DEVICE_OBSERVER_MODEL_NAME = _dcm("121015", "Device Observer Model Name")
DEVICE_OBSERVER_SERIAL_NUMBER = _dcm("121016", "Device Observer Serial Number")
IMAGING_MEASUREMENTS = _dcm("126010", "Imaging Measurements")
MEASUREMENT_GROUP = _dcm("125007", "Measurement Group")
TRACKING_IDENTIFIER = _dcm("112039", "Tracking Identifier")
TRACKING_UNIQUE_IDENTIFIER = _dcm("112040", "Tracking Unique Identifier")
FINDING = _dcm("121071", "Finding")
FINDING_SITE = _sct("363698007", "Finding Site")
ALGORITHM_MANUFACTURER = _dcm("122405", "Algorithm Manufacturer")
ALGORITHM_PARAMETERS = _dcm("111002", "Algorithm Parameters")
SOURCE_OF_MEASUREMENT = _dcm("121112", "Source of Measurement")
IMAGE_REGION = _dcm("111030", "Image Region")
REFERENCED_SEGMENT = _dcm("121191", "Referenced Segment")
SOURCE_SERIES_FOR_SEGMENTATION = _dcm("121232", "Source series for segmentation")
CONCLUSION = _dcm("121077", "Conclusion")
COMMENT = _dcm("121106", "Comment")
QUALITATIVE_EVALUATIONS = CodedConcept(
    value="C0034375", scheme_designator="UMLS", meaning="Qualitative Evaluations"
)
ALGORITHM_NAME = _dcm("111001", "Algorithm Name")
ALGORITHM_VERSION = _dcm("111003", "Algorithm Version")
STUDY_INSTANCE_UID = _dcm("110180", "Study Instance UID")
CONCLUSIONS = _dcm("121076", "Conclusions")
FINDINGS = _dcm("121070", "Findings")
CURRENT_PROCEDURE_DESCRIPTIONS = _dcm("121064", "Current Procedure Descriptions")
PROCEDURE_DESCRIPTION = _dcm("121065", "Procedure Description")
SUMMARY_OF_DETECTIONS = _dcm("111064", "Summary of Detections")
NOT_ATTEMPTED = _dcm("111225", "Not Attempted")
FAILED = _dcm("111224", "Failed")
IMAGE_LIBRARY = _dcm("111028", "Image Library")
IMAGE_LIBRARY_GROUP = _dcm("126200", "Image Library Group")
SOURCE = _sct("260753009", "Source")
"""Concept name of the images in the library: TID 1601 gives them none, and highdicom's parser wants one."""
MODALITY = _dcm("121139", "Modality")
TARGET_REGION = _dcm("123014", "Target Region")
FRAME_OF_REFERENCE_UID = _dcm("112227", "Frame of Reference UID")
PIXEL_DATA_ROWS = _dcm("110910", "Pixel Data Rows")
PIXEL_DATA_COLUMNS = _dcm("110911", "Pixel Data Columns")
HORIZONTAL_PIXEL_SPACING = _dcm("111026", "Horizontal Pixel Spacing")
VERTICAL_PIXEL_SPACING = _dcm("111066", "Vertical Pixel Spacing")
SLICE_THICKNESS = _dcm("112225", "Slice Thickness")
IMAGE_POSITION = (
    _dcm("110901", "Image Position (Patient) X"),
    _dcm("110902", "Image Position (Patient) Y"),
    _dcm("110903", "Image Position (Patient) Z"),
)
IMAGE_ORIENTATION = (
    _dcm("110904", "Image Orientation (Patient) Row X"),
    _dcm("110905", "Image Orientation (Patient) Row Y"),
    _dcm("110906", "Image Orientation (Patient) Row Z"),
    _dcm("110907", "Image Orientation (Patient) Column X"),
    _dcm("110908", "Image Orientation (Patient) Column Y"),
    _dcm("110909", "Image Orientation (Patient) Column Z"),
)

# key images: CID 7010
OF_INTEREST = _dcm("113000", "Of Interest")

# secondary captures: CID 7202 and CID 7203
SOURCE_IMAGE_FOR_MONTAGE = _dcm("121329", "Source image for montage")
SPATIAL_RESAMPLING = _dcm("113085", "Spatial resampling")
SOURCE_IMAGE_FOR_PROCESSING = _dcm("121322", "Source image for image processing operation")
SEGMENTATION_DERIVATION = _dcm("113076", "Segmentation")

# likelihood maps: CID 7150, CID 7162 and CID 7180
MORPHOLOGICALLY_ABNORMAL_STRUCTURE = _sct("49755003", "Morphologically Abnormal Structure")
ARTIFICIAL_INTELLIGENCE = _dcm("123110", "Artificial Intelligence")
FRACTIONAL_PROBABILISTIC_SEGMENTATION = _dcm("110854", "Fractional Probabilistic Segmentation")

# units
PERCENT = _ucum("%", "Percent")
MILLIMETER = _ucum("mm", "mm")
NO_UNITS = _ucum("1", "no units")
PIXELS = _ucum("{pixels}", "Pixels")
COSINE = _ucum("{-1:1}", "{-1:1}")

FINDING_OF: dict[IchSubtype, CodedConcept] = {
    IchSubtype.ANY: INTRACRANIAL_HEMORRHAGE,
    IchSubtype.EPIDURAL: EPIDURAL_HEMORRHAGE,
    IchSubtype.INTRAPARENCHYMAL: CEREBRAL_HEMORRHAGE,
    IchSubtype.INTRAVENTRICULAR: INTRACRANIAL_HEMORRHAGE,
    IchSubtype.SUBARACHNOID: SUBARACHNOID_HEMORRHAGE,
    IchSubtype.SUBDURAL: SUBDURAL_HEMORRHAGE,
}
"""Finding (121071, DCM) per class."""

SITE_OF: dict[IchSubtype, CodedConcept] = {
    IchSubtype.ANY: INTRACRANIAL,
    IchSubtype.EPIDURAL: INTRACRANIAL,
    IchSubtype.INTRAPARENCHYMAL: BRAIN,
    IchSubtype.INTRAVENTRICULAR: BRAIN_VENTRICLE,
    IchSubtype.SUBARACHNOID: SUBARACHNOID_SPACE,
    IchSubtype.SUBDURAL: INTRACRANIAL,
}
"""Finding Site (363698007, SCT) per class. PS3.16 lists no epidural and no subdural space of the head."""


def all_concepts() -> tuple[CodedConcept, ...]:
    """Every concept of this module once, in the order of its definition."""
    found: list[CodedConcept] = []
    for value in globals().values():
        candidates = value if isinstance(value, tuple) else (value,)
        found.extend(c for c in candidates if isinstance(c, CodedConcept) and c not in found)
    return tuple(found)
