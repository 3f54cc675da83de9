"""Codes in words, as the pages show them."""

from __future__ import annotations

from dataclasses import dataclass

from ich_node.errors import RejectionReason
from ich_node.findings import IchSubtype, Priority, StudyState

DISCLAIMER = "AI result, unverified, not for primary diagnosis"

PRIORITY: dict[str, str] = {
    Priority.STAT: "Suspected hemorrhage",
    Priority.HIGH: "Possible hemorrhage",
    Priority.MEDIUM: "Not read: a person must look",
    Priority.ROUTINE: "Read, nothing flagged",
}

STATE: dict[str, str] = {
    StudyState.RECEIVING: "Receiving images",
    StudyState.QUEUED: "Waiting to be read",
    StudyState.READING: "Being read now",
    StudyState.READ: "Read",
    StudyState.NOT_READ: "Not read",
    StudyState.FAILED: "Reading failed",
}

PENDING = (StudyState.RECEIVING, StudyState.QUEUED, StudyState.READING)
"""States that end by themselves."""

REASON: dict[str, str] = {
    RejectionReason.NOT_CT: "not a CT",
    RejectionReason.NOT_HEAD: "not a head",
    RejectionReason.NOT_AN_IMAGE: "not an image",
    RejectionReason.LOCALIZER: "localizer",
    RejectionReason.DERIVED: "derived images, not the original ones",
    RejectionReason.NOT_AXIAL: "not axial",
    RejectionReason.CONTRAST: "contrast was given",
    RejectionReason.BONE_KERNEL: "bone kernel",
    RejectionReason.SECONDARY_CAPTURE: "secondary capture",
    RejectionReason.NO_IMAGES: "no images",
    RejectionReason.UNSUPPORTED_SOP_CLASS: "a kind of DICOM object that is not read",
    RejectionReason.TOO_FEW_SLICES: "too few slices",
    RejectionReason.MISSING_SLICES: "slices are missing",
    RejectionReason.DUPLICATE_POSITIONS: "several slices at one position",
    RejectionReason.INCONSISTENT_GEOMETRY: "slices that do not fit together",
    RejectionReason.MISSING_ATTRIBUTE: "a required DICOM attribute is absent",
    RejectionReason.CORRUPT_PIXEL_DATA: "pixel data cannot be decoded",
    RejectionReason.UNSUPPORTED_TRANSFER_SYNTAX: "compressed in an unknown way",
    RejectionReason.IMPLAUSIBLE_VALUES: "pixel values that are not Hounsfield units of a head",
    RejectionReason.TOO_LARGE: "larger than the limits allow",
    RejectionReason.CONFLICTING_UID: "two different objects came under one UID",
    RejectionReason.IMAGES_PURGED: "some of its images were purged",
    RejectionReason.BETTER_SERIES: "another series of the study suits better",
    RejectionReason.INVALID_MODEL_OUTPUT: "the model gave no valid result",
    RejectionReason.WORKER_LOST: "the reading process died repeatedly",
    RejectionReason.INTERNAL_ERROR: "a fault of this node; its log has the details",
}

SUBTYPE: dict[str, str] = {
    IchSubtype.ANY: "Any hemorrhage",
    IchSubtype.EPIDURAL: "Epidural",
    IchSubtype.INTRAPARENCHYMAL: "Intraparenchymal",
    IchSubtype.INTRAVENTRICULAR: "Intraventricular",
    IchSubtype.SUBARACHNOID: "Subarachnoid",
    IchSubtype.SUBDURAL: "Subdural",
}

DELIVERY: dict[str, str] = {
    "PENDING": "Waiting",
    "SENT": "Taken, not yet confirmed",
    "DELIVERED": "Delivered",
    "DEAD": "Given up: a person must look",
}


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a study stands, in words that can never be taken for a negative reading."""

    priority: str
    priority_words: str
    state: str
    state_words: str
    reason_words: str


def standing(priority: str, state: str, reason: str | None) -> Standing:
    """Put priority, state and reason of a study into words."""
    words = PRIORITY.get(priority, priority)
    if priority == Priority.MEDIUM and state in PENDING:
        words = "Not read yet"
    elif priority == Priority.ROUTINE and state != StudyState.READ:
        words = "Not read completely"  # the node raises these to MEDIUM; a page must not depend on it
    return Standing(
        priority=priority,
        priority_words=words,
        state=state,
        state_words=STATE.get(state, words_of(state)),
        reason_words=REASON.get(reason, words_of(reason)) if reason else "",
    )


def words_of(code: str) -> str:
    """A code that has no words here, readable all the same."""
    return code.replace("_", " ").lower()
