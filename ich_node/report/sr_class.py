"""The kinds of structured report that a PACS can be given."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
)


class SrClass(StrEnum):
    """SOP class of a structured report, by the name that a destination's settings give it.

    The first three hold the same TID 1500 tree: PS3.3 A.35.2, A.35.3 and A.35.13 all allow its numbers and its 2D
    coordinates by value. Basic Text (A.35.1) has neither, and says the same in headings, texts and codes.
    """

    COMPREHENSIVE_3D = "comprehensive-3d"
    COMPREHENSIVE = "comprehensive"
    ENHANCED = "enhanced"
    BASIC_TEXT = "basic-text"

    @property
    def sop_class_uid(self) -> UID:
        """SOP Class UID (0008,0016)."""
        return _SOP_CLASS_UID[self]

    def role(self, role: str) -> str:
        """Role of a report of this class among the results of a reading, from which its UID follows.

        That of the default class is ``role`` itself; each other class is an object of its own.
        """
        return role if self is SrClass.COMPREHENSIVE_3D else f"{role}/{self}"


@dataclass(frozen=True, kw_only=True)
class SrForm:
    """What tells the structured reports of one reading apart."""

    sr_class: SrClass = SrClass.COMPREHENSIVE_3D
    with_segmentation: bool = False
    """Whether it refers to the segments of one."""

    def role(self, role: str) -> str:
        """Role of a report of this form among the results of a reading, from which its UID follows."""
        return self.sr_class.role(role) + ("/segmentation" if self.with_segmentation else "")

    def __str__(self) -> str:
        """As rows and pages name it; the default, which the node makes of every reading, has no name."""
        name = "" if self.sr_class is SrClass.COMPREHENSIVE_3D else str(self.sr_class)
        return "+".join(part for part in (name, "SEG" if self.with_segmentation else "") if part)


_SOP_CLASS_UID = {
    SrClass.COMPREHENSIVE_3D: Comprehensive3DSRStorage,
    SrClass.COMPREHENSIVE: ComprehensiveSRStorage,
    SrClass.ENHANCED: EnhancedSRStorage,
    SrClass.BASIC_TEXT: BasicTextSRStorage,
}
