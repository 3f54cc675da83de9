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
