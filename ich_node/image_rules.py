"""Whether one image is an axial slice of a CT that can be read: rules on its header alone.

First match wins. An absent or silent attribute never excludes; a statement that something else was imaged does. Of
a multi-frame object each frame is judged for itself, by its Frame Type (0008,9007) (PS3.3 C.8.16.1).
"""

from __future__ import annotations

from collections.abc import Callable

from ich_node import geometry
from ich_node.errors import RejectionReason
from ich_node.study import Instance

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2.1"
LEGACY_CONVERTED_ENHANCED_CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2.2"
_CT_CLASSES = (CT_IMAGE_STORAGE, ENHANCED_CT_IMAGE_STORAGE, LEGACY_CONVERTED_ENHANCED_CT_IMAGE_STORAGE)
_SECONDARY_CAPTURE_ROOT = "1.2.840.10008.5.1.4.1.1.7"

_SHEET_WORDS = frozenset(
    ("DOSE", "DOSE_INFO", "PATIENT_INFO", "RESULTS", "SCREEN SAVE", "SCREENSAVE", "REF_SURVIEW", "PROT")
)
_LOCALIZER_WORDS = frozenset(("LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "SCANOGRAM"))
_REFORMAT_WORDS = (
    "MPR", "REFORMAT", "PROJECTION", "MIP", "MINIP", "VRT", "CURVED", "VOLUME", "3D", "SSD",
    "CBF", "CBV", "MTT", "TTP", "PERFUSION",
)  # fmt: skip
# Frame Type: values that the standard defines. Value 3 (C.8.16.1.3) may be private and then says nothing; value 4
# (C.8.16.1.4) tells how the pixels came about, and one that is unknown could be anything but Hounsfield units.
_PROJECTION_FLAVORS = frozenset(("MAX_IP", "MIN_IP"))
_DYNAMIC_FLAVORS = frozenset(("PERFUSION",))
_CONTRAST_FLAVORS = frozenset(("ANGIO", "ANGIO_TIME", "POST_CONTRAST"))
_PLAIN_CONTRASTS = frozenset(("", "NONE", "MIXED"))
_KNOWN_CONTRASTS = frozenset((
    "ADDITION", "DIVISION", "ENERGY_PROP_WT", "FILTERED", "MASKED", "MAXIMUM", "MEAN", "MEDIAN", "MINIMUM",
    "MULTIPLICATION", "QUANTITY", "RESAMPLED", "STD_DEVIATION", "SUBTRACTION",
))  # fmt: skip
_NOT_CALCULATED = frozenset(("", "NONE", "MIXED"))

Fault = tuple[RejectionReason, str]


def image_fault(image: Instance) -> Fault | None:
    """Why an image is no slice to read; ``None`` where it is one."""
    for reason, rule in _RULES:
        detail = rule(image)
        if detail is not None:
            return reason, detail
    return None


def _not_ct(image: Instance) -> str | None:
    return (
        f"Modality (0008,0060) is {image.modality[:16]}, not CT."
        if image.modality not in ("CT", "")
        else None
    )


def _secondary_capture(image: Instance) -> str | None:
    if image.sop_class_uid.startswith(_SECONDARY_CAPTURE_ROOT):
        return "The objects are Secondary Captures (pictures of a screen), not CT slices."
    if _SHEET_WORDS.intersection(image.image_type[2:]) or (image.samples_per_pixel or 1) > 1:
        return "The objects are exam summaries or colour pictures, not CT slices."
    return None


def _several_frames(image: Instance) -> str | None:
    if image.frame_number is None and image.number_of_frames > 1 and image.sop_class_uid in _CT_CLASSES:
        return (
            "The objects have several frames without functional groups for each: send Enhanced CT Image Storage or "
            "single frames."
        )
    return None


def _other_class(image: Instance) -> str | None:
    if image.sop_class_uid not in _CT_CLASSES:
        return "The objects are not of SOP class CT Image Storage or Enhanced CT Image Storage."
    return None


def _no_pixels(image: Instance) -> str | None:
    return None if image.has_pixel_data else "The objects have no Pixel Data (7FE0,0010)."


def _localizer(image: Instance) -> str | None:
    if _LOCALIZER_WORDS.intersection(image.image_type):
        return f"{_type_name(image)} says localizer (scout, topogram)."
    return None


def _derived(image: Instance) -> str | None:
    words = [value for value in image.image_type[2:] if not _is_flavor_of_frames(image, value)]
    if any(word in value for value in words for word in _REFORMAT_WORDS):
        return f"{_type_name(image)} says reformatted or projected; the original slices are needed."
    # DERIVED\PRIMARY is an original that was compressed with loss (PS3.3 C.7.6.1.1.5): still the scanner's
    # slices.
    if image.image_type[:1] == ("DERIVED",) and image.image_type[1:2] != ("PRIMARY",):
        return f"{_type_name(image)} says DERIVED; the original slices are needed."
    return _derived_frame(image) if image.frame_number is not None else None


def _is_flavor_of_frames(image: Instance, value: str) -> bool:
    """Whether a word that names a reformation elsewhere is a plain value 3 of Frame Type."""
    return image.frame_number is not None and (value == "VOLUME" or value in _DYNAMIC_FLAVORS)


def _derived_frame(image: Instance) -> str | None:
    name = _type_name(image)
    technique = image.volume_based_calculation_technique
    if technique not in _NOT_CALCULATED or image.volumetric_properties == "DISTORTED":
        return (
            "Volume Based Calculation Technique (0008,9207) or Volumetric Properties (0008,9206) says that the "
            "frames are calculated; the original slices are needed."
        )
    if image.sop_class_uid != ENHANCED_CT_IMAGE_STORAGE:
        return None  # converted objects carry the Image Type of the slices that they were made from
    origin, _, flavor, contrast = (*image.image_type, "", "", "", "")[:4]
    if origin not in ("ORIGINAL", "DERIVED", "MIXED", ""):
        return f"{name} has an unknown first value: neither ORIGINAL nor DERIVED."
    if flavor in _PROJECTION_FLAVORS or (flavor in _DYNAMIC_FLAVORS and origin == "DERIVED"):
        return f"{name} says {flavor}; the original slices are needed."
    if contrast in _KNOWN_CONTRASTS:
        return f"{name} says {contrast}; the original slices are needed."
    if contrast not in _PLAIN_CONTRASTS:
        return f"{name} has a private or unknown fourth value: how the pixel values came about is not known."
    return None


def _dynamic(image: Instance) -> str | None:
    if image.frame_number is not None and _DYNAMIC_FLAVORS.intersection(image.image_type[2:3]):
        return f"{_type_name(image)} says {image.image_type[2]}: a dynamic series."
    return None


def _enhanced_flavor(image: Instance) -> str | None:
    if image.frame_number is not None and _CONTRAST_FLAVORS.intersection(image.image_type[2:3]):
        return f"{_type_name(image)} says {image.image_type[2]}; only scans without contrast are read."
    return None


def _not_axial(image: Instance) -> str | None:
    if geometry.is_usable_orientation(image) and geometry.tilt_deg(image) > geometry.MAX_TILT_DEG:
        return f"The images are not axial: more than {geometry.MAX_TILT_DEG:.0f} degrees from the body axis."
    return None


def _type_name(image: Instance) -> str:
    return "Image Type (0008,0008)" if image.frame_number is None else "Frame Type (0008,9007)"


_RULES: tuple[tuple[RejectionReason, Callable[[Instance], str | None]], ...] = (
    (RejectionReason.SECONDARY_CAPTURE, _secondary_capture),
    (RejectionReason.NOT_CT, _not_ct),
    (RejectionReason.UNSUPPORTED_SOP_CLASS, _several_frames),
    (RejectionReason.NOT_CT, _other_class),
    (RejectionReason.NO_IMAGES, _no_pixels),
    (RejectionReason.LOCALIZER, _localizer),
    (RejectionReason.DERIVED, _derived),
    (RejectionReason.DUPLICATE_POSITIONS, _dynamic),
    (RejectionReason.CONTRAST, _enhanced_flavor),
    (RejectionReason.NOT_AXIAL, _not_axial),
)
