"""The error tree.

::

    IchNodeError
    ├── StudyRejected        permanent: the study, series or object cannot be read, and why
    ├── TransientError       try again later: a peer, the disk or the network did not answer
    └── ConfigurationError   refuse to start: a setting, a file or an installation is wrong

Errors become something else in exactly three places: a DICOM status in `ich_node.receive.scp`, a retry or a
worklist state in `ich_node.tasks`, and an exit code in `ich_node.cli`.
"""

from __future__ import annotations

from enum import StrEnum


class RejectionReason(StrEnum):
    """Why a study, a series or an object is not read. The value is what the worklist shows as a code."""

    # what it is not, the farthest from a head CT that can be read first
    NO_IMAGES = "NO_IMAGES"
    NOT_AN_IMAGE = "NOT_AN_IMAGE"
    SECONDARY_CAPTURE = "SECONDARY_CAPTURE"
    NOT_CT = "NOT_CT"
    UNSUPPORTED_SOP_CLASS = "UNSUPPORTED_SOP_CLASS"
    LOCALIZER = "LOCALIZER"
    DERIVED = "DERIVED"
    NOT_AXIAL = "NOT_AXIAL"
    NOT_HEAD = "NOT_HEAD"
    CONTRAST = "CONTRAST"
    BONE_KERNEL = "BONE_KERNEL"
    # what is wrong with it
    TOO_FEW_SLICES = "TOO_FEW_SLICES"
    MISSING_SLICES = "MISSING_SLICES"
    DUPLICATE_POSITIONS = "DUPLICATE_POSITIONS"
    INCONSISTENT_GEOMETRY = "INCONSISTENT_GEOMETRY"
    MISSING_ATTRIBUTE = "MISSING_ATTRIBUTE"
    CORRUPT_PIXEL_DATA = "CORRUPT_PIXEL_DATA"
    UNSUPPORTED_TRANSFER_SYNTAX = "UNSUPPORTED_TRANSFER_SYNTAX"
    IMPLAUSIBLE_VALUES = "IMPLAUSIBLE_VALUES"
    TOO_LARGE = "TOO_LARGE"
    CONFLICTING_UID = "CONFLICTING_UID"
    IMAGES_PURGED = "IMAGES_PURGED"
    # chosen against
    BETTER_SERIES = "BETTER_SERIES"
    # what went wrong here
    INVALID_MODEL_OUTPUT = "INVALID_MODEL_OUTPUT"
    WORKER_LOST = "WORKER_LOST"
    INTERNAL_ERROR = "INTERNAL_ERROR"


class IchNodeError(Exception):
    """Base of every error that this package raises on purpose."""


class StudyRejected(IchNodeError):
    """The input cannot be read and trying again will not help.

    Parameters
    ----------
    reason
        The code that the worklist shows.
    detail
        One sentence for a person: what is wrong, where, and what to do. No patient identifying values.
    """

    def __init__(self, reason: RejectionReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class TransientError(IchNodeError):
    """Something outside did not answer; the same work may succeed later."""


class ConfigurationError(IchNodeError):
    """A setting, a file or the installation is wrong; the message says which and how to mend it."""


REASON_WORDS: dict[str, str] = {
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
"""Why a study or a series was not read, for a person: on pages and in reports."""
