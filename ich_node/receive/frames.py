"""What the header of a multi-frame CT says of each frame: its functional groups (PS3.3 C.7.6.16, C.8.15.3).

An attribute is looked up in the Per-frame Functional Groups, then in the Shared ones. Attributes that are no
geometry may also stand where a converter of single frames leaves them (Unassigned Converted Attributes), or in
the dataset itself. This is work of the worker, never of the receiver: see `ich_node.receive.header`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_partial, read_sequence_item
from pydicom.uid import DeflatedExplicitVRLittleEndian

from ich_node.errors import RejectionReason, StudyRejected
from ich_node.receive.header import header_from_dataset, inflated, refuse_inflation
from ich_node.receive.header_values import HeaderValues
from ich_node.study import Concatenation, Instance

ENHANCED_CT_CLASSES = frozenset(("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"))
"""Enhanced CT and Legacy Converted Enhanced CT Image Storage."""
MAX_FRAMES = 65_536
"""An object of more frames than this is refused."""

_SHARED = "SharedFunctionalGroupsSequence"
_UNASSIGNED = ("UnassignedPerFrameConvertedAttributesSequence", "UnassignedSharedConvertedAttributesSequence")
_MEASURES, _POSITION = "PixelMeasuresSequence", "PlanePositionSequence"
_ORIENTATION, _CONTENT = "PlaneOrientationSequence", "FrameContentSequence"
_ANATOMY, _TYPE = "FrameAnatomySequence", "CTImageFrameTypeSequence"
_ACQUISITION, _RECONSTRUCTION = "CTAcquisitionDetailsSequence", "CTReconstructionSequence"
_X_RAY, _CONTRAST = "CTXRayDetailsSequence", "ContrastBolusUsageSequence"
_MACROS = (
    _MEASURES, _POSITION, _ORIENTATION, _CONTENT, _ANATOMY, _TYPE, _ACQUISITION, _RECONSTRUCTION, _X_RAY,
    _CONTRAST, *_UNASSIGNED,
)  # fmt: skip
_GEOMETRY = {
    _MEASURES: ("Pixel Measures Sequence (0028,9110)", ("PixelSpacing", "SliceThickness")),
    _POSITION: ("Plane Position Sequence (0020,9113)", ("ImagePositionPatient",)),
    _ORIENTATION: ("Plane Orientation Sequence (0020,9116)", ("ImageOrientationPatient",)),
}
_PER_FRAME_TAG, _FIRST_PIXEL_GROUP_TAG = 0x52009230, 0x7FE00000
_UNDEFINED_LENGTH = 0xFFFFFFFF
_STACK_POINTERS = frozenset((0x00209056,))
_TIME_POINTERS = frozenset((0x00209128, 0x0020930D, 0x00189074, 0x00189151))
"""Temporal Position Index and Time Offset, Frame Acquisition and Frame Reference DateTime."""
_HEAD_CODES = frozenset((
    "69536005", "T-D1100", "12738006", "T-A0100", "89546000", "T-11100", "774007", "T-D1000", "1101003",
    "T-D1400",
))  # fmt: skip
"""Head, brain, skull, head and neck, intracranial: SNOMED CT, and SNOMED-RT as older objects have it."""
_SOME_AGENT = "contrast agent"

Value = TypeVar("Value")


def read_frames_header(path: Path) -> tuple[Instance, ...]:
    """Read what the header of a multi-frame CT says of each frame, in stored order.

    Parameters
    ----------
    path
        A Part 10 file of a class in `ENHANCED_CT_CLASSES`.

    Returns
    -------
    tuple of Instance
        One for each frame. What is absent or cannot be parsed is ``None`` or empty, as in `read_header`.

    Raises
    ------
    StudyRejected
        ``NOT_AN_IMAGE``; ``MISSING_ATTRIBUTE`` where the functional groups are absent or not as many as the
        frames; ``NO_IMAGES`` without pixel data; ``INCONSISTENT_GEOMETRY`` where shared and per-frame groups
        contradict each other; ``TOO_LARGE``.
    """
    with warnings.catch_warnings(), path.open("rb") as file:
        # pydicom warns of every oddity; what matters of them is judged here.
        warnings.simplefilter("ignore")
        refuse_inflation(file.read(1024), path)
        file.seek(0)
        try:
            return _read(file, path)
        except StudyRejected:
            raise
        except Exception as error:  # pydicom raises whatever the damage leads to
            raise StudyRejected(
                RejectionReason.NOT_AN_IMAGE,
                f"The header of a multi-frame object cannot be read ({type(error).__name__}).",
            ) from error


def _read(file: BinaryIO, path: Path) -> tuple[Instance, ...]:
    dataset = read_partial(file, stop_when=_at_frames)
    whole, _ = header_from_dataset(dataset, path)
    if whole.number_of_frames > MAX_FRAMES:
        raise StudyRejected(
            RejectionReason.TOO_LARGE,
            f"One object has {whole.number_of_frames} frames, more than {MAX_FRAMES}.",
        )
    source = file
    implicit, little = (bool(flag) for flag in dataset.original_encoding)
    if dataset.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        source = inflated(path)
        read_dataset(source, implicit, little, stop_when=_at_frames)
    groups = _items_here(source, dataset, implicit, little, at_most=whole.number_of_frames + 1)
    frames = tuple(_frames(dataset, groups, dataclasses.replace(whole, has_pixel_data=True)))
    lengths: list[int] = []
    read_dataset(source, implicit, little, stop_when=functools.partial(_at_pixel_data, lengths))
    if not any(lengths):
        raise StudyRejected(RejectionReason.NO_IMAGES, "The object has no Pixel Data (7FE0,0010).")
    return frames


def _at_frames(tag: int, _vr: str | None, _length: int) -> bool:
    return tag >= _PER_FRAME_TAG


def _at_pixel_data(lengths: list[int], tag: int, _vr: str | None, length: int) -> bool:
    if tag >= _FIRST_PIXEL_GROUP_TAG:
        lengths.append(length)
    return tag >= _FIRST_PIXEL_GROUP_TAG


def _items_here(
    source: BinaryIO, dataset: Dataset, implicit: bool, little: bool, *, at_most: int
) -> Iterator[Dataset]:
    """Read the Per-frame Functional Groups that the source stands before, item by item: none is kept."""
    order = "<" if little else ">"
    start = source.read(8 if implicit else 12)
    if len(start) < 8 or struct.unpack(order + "2H", start[:4]) != divmod(_PER_FRAME_TAG, 0x10000):
        source.seek(-len(start), os.SEEK_CUR)
        return
    (length,) = struct.unpack(order + "L", start[-4:])
    end = None if length == _UNDEFINED_LENGTH else source.tell() + length
    for _ in range(at_most):
        if end is not None and source.tell() >= end:
            return
        item = read_sequence_item(source, implicit, little, dataset.original_character_set)
        if item is None:
            return
        yield item


def _frames(dataset: Dataset, groups: Iterable[Dataset], whole: Instance) -> Iterator[Instance]:
    top = HeaderValues(dataset)
    common = _Common(next(iter(top.items(_SHARED)), None))
    dimensions, agents = _Dimensions.of(top), _agents(top)
    whole = dataclasses.replace(whole, concatenation=_concatenation(top))
    count = 0
    for count, group in enumerate(groups, start=1):
        frame = _Frame(HeaderValues(group, within=top), common, top)
        frame.check_geometry()
        yield dataclasses.replace(
            whole,
            frame_number=count,
            image_type=frame.words(_TYPE, "FrameType") or whole.image_type,
            acquisition_number=frame.acquisition_number(),
            image_position_patient_mm=frame.place(_POSITION, lambda v: v.triple("ImagePositionPatient")),
            image_orientation_patient=frame.place(
                _ORIENTATION, lambda v: v.sextuple("ImageOrientationPatient")
            ),
            pixel_spacing_mm=frame.place(_MEASURES, lambda v: v.positive_pair("PixelSpacing")),
            slice_thickness_mm=frame.number(_MEASURES, "SliceThickness"),
            gantry_detector_tilt_deg=frame.number(_ACQUISITION, "GantryDetectorTilt"),
            kvp=frame.number(_X_RAY, "KVP"),
            convolution_kernel=(
                *frame.strings(_RECONSTRUCTION, "ConvolutionKernel"),
                *frame.strings(_RECONSTRUCTION, "ConvolutionKernelGroup"),
            ),
            contrast_bolus_agent=frame.contrast(agents),
            stack_id=dimensions.stack(frame),
            temporal_position=dimensions.time(frame),
            anatomic_region=frame.region(),
            volumetric_properties="".join(frame.words(_TYPE, "VolumetricProperties")[:1]),
            volume_based_calculation_technique="".join(
                frame.words(_TYPE, "VolumeBasedCalculationTechnique")[:1]
            ),
        )
    _check_count(count, whole.number_of_frames)


def _check_count(items: int, number_of_frames: int) -> None:
    name = "Per-frame Functional Groups Sequence (5200,9230)"
    if not items:
        raise StudyRejected(
            RejectionReason.MISSING_ATTRIBUTE, f"{name} is absent, empty or cannot be parsed."
        )
    if items != number_of_frames:
        has = f"{items} items" if items < number_of_frames else "more items"
        raise StudyRejected(
            RejectionReason.MISSING_ATTRIBUTE,
            f"{name} has {has} where Number of Frames (0028,0008) says {number_of_frames}.",
        )


class _Common:
    """The Shared Functional Groups, and what was already looked up in them."""

    def __init__(self, shared: HeaderValues | None) -> None:
        self.items = {macro: shared.items(macro) if shared else () for macro in _MACROS}
        self.found: dict[tuple[str, str], Any] = {}


class _Frame:
    """Functional groups of one frame."""

    def __init__(self, group: HeaderValues, common: _Common, top: HeaderValues) -> None:
        self._own = {macro: items for macro in _MACROS if (items := group.items(macro))}
        self._common = common
        self._top = top
        self._has_unassigned = any(name in self._own for name in _UNASSIGNED)

    def items(self, macro: str) -> tuple[HeaderValues, ...]:
        """Items of a macro: the frame's own, or those that all frames share."""
        return self._own.get(macro) or self._common.items[macro]

    def place(self, macro: str, get: Callable[[HeaderValues], Value | None]) -> Value | None:
        """A value of the geometry, which stands in its macro or nowhere."""
        items = self.items(macro)
        return get(items[0]) if items else None

    def number(self, macro: str, keyword: str) -> float | None:
        """The first number of an attribute, from wherever it stands."""
        return self._find(macro, keyword, lambda values: values.number(keyword))

    def strings(self, macro: str, keyword: str) -> tuple[str, ...]:
        """Values of a text attribute, from wherever it stands."""
        found = self._find(macro, keyword, lambda values: values.strings(keyword) or None)
        return tuple(value for value in found or () if value)

    def words(self, macro: str, keyword: str) -> tuple[str, ...]:
        """Values of a code string, in upper case."""
        return tuple(value.upper() for value in self.strings(macro, keyword))

    def _find(self, macro: str, keyword: str, get: Callable[[HeaderValues], Value | None]) -> Value | None:
        is_shared = macro not in self._own and not self._has_unassigned
        if is_shared and (macro, keyword) in self._common.found:
            found: Value | None = self._common.found[macro, keyword]
            return found
        found = next((value for v in self._holders(macro) if (value := get(v)) is not None), None)
        if is_shared:
            self._common.found[macro, keyword] = found
        return found

    def _holders(self, macro: str) -> Iterator[HeaderValues]:
        for name in (macro, *_UNASSIGNED):
            yield from self.items(name)[:1]
        yield self._top

    def acquisition_number(self) -> int | None:
        for values in self.items(_CONTENT)[:1]:
            number = values.integer("FrameAcquisitionNumber")
            if number is not None:
                return number
        return self._find(_CONTENT, "AcquisitionNumber", lambda values: values.integer("AcquisitionNumber"))

    def contrast(self, agents: Mapping[int | None, str]) -> str:
        """What Contrast/Bolus Usage (C.7.6.16.2.12) says; without it an agent that is named was used."""
        usages = self.items(_CONTRAST)
        if not usages:
            named = " ".join(agents.values())
            return named or " ".join(self.strings(_CONTRAST, "ContrastBolusAgent"))
        used = [
            agents.get(usage.integer("ContrastBolusAgentNumber"), _SOME_AGENT)
            for usage in usages
            if "YES"
            in (
                usage.text("ContrastBolusAgentAdministered").upper(),
                usage.text("ContrastBolusAgentDetected").upper(),
            )
        ]
        return " ".join(used)

    def region(self) -> str:
        """Anatomic Region of Frame Anatomy (C.7.6.16.2.8), or of the whole object."""
        for holder in (*self.items(_ANATOMY)[:1], self._top):
            for code in holder.items("AnatomicRegionSequence"):
                known = {code.text("CodeValue"), code.text("LongCodeValue")} & _HEAD_CODES
                return "Head" if known else code.text("CodeMeaning")
        return ""

    def check_geometry(self) -> None:
        """Refuse a macro that stands in both places (C.7.6.16.1.1 forbids it) and says two things."""
        for macro, (name, keywords) in _GEOMETRY.items():
            own, common = self._own.get(macro, ()), self._common.items[macro]
            if own and common and any(_differ(own[0], common[0], keyword) for keyword in keywords):
                raise StudyRejected(
                    RejectionReason.INCONSISTENT_GEOMETRY,
                    f"{name} stands in the shared and in the per-frame functional groups, and they differ.",
                )


def _differ(one: HeaderValues, other: HeaderValues, keyword: str) -> bool:
    return keyword in one and keyword in other and one.numbers(keyword) != other.numbers(keyword)


def _agents(top: HeaderValues) -> dict[int | None, str]:
    """Contrast/Bolus Agent Number to name: Enhanced Contrast/Bolus (C.7.6.4b)."""
    return {
        agent.integer("ContrastBolusAgentNumber"): agent.text("CodeMeaning") or _SOME_AGENT
        for agent in top.items("ContrastBolusAgentSequence")
    }


def _concatenation(top: HeaderValues) -> Concatenation | None:
    uid = top.uid("ConcatenationUID")
    if not uid:
        return None
    return Concatenation(
        concatenation_uid=uid,
        in_concatenation_number=top.integer("InConcatenationNumber"),
        in_concatenation_total_number=top.integer("InConcatenationTotalNumber"),
        concatenation_frame_offset_number=top.integer("ConcatenationFrameOffsetNumber"),
    )


@dataclass(frozen=True, kw_only=True)
class _Dimensions:
    """Which of Dimension Index Values (0020,9157) count stacks and times (Multi-frame Dimension, C.7.6.17)."""

    stack_at: int | None
    time_at: int | None

    @classmethod
    def of(cls, top: HeaderValues) -> _Dimensions:
        pointers = [item.tag("DimensionIndexPointer") for item in top.items("DimensionIndexSequence")]
        return cls(
            stack_at=next((k for k, p in enumerate(pointers) if p in _STACK_POINTERS), None),
            time_at=next((k for k, p in enumerate(pointers) if p in _TIME_POINTERS), None),
        )

    def stack(self, frame: _Frame) -> str:
        """Stack ID (0020,9056), or the place of the frame on the dimension of stacks."""
        for content in frame.items(_CONTENT)[:1]:
            if stack_id := content.text("StackID"):
                return stack_id
        index = self._index(frame, self.stack_at)
        return "" if index is None else str(index)

    def time(self, frame: _Frame) -> int | None:
        """Temporal Position Index (0020,9128), or the place of the frame on a dimension of time."""
        for content in frame.items(_CONTENT)[:1]:
            position = content.integer("TemporalPositionIndex")
            if position is not None:
                return position
        return self._index(frame, self.time_at)

    @staticmethod
    def _index(frame: _Frame, at: int | None) -> int | None:
        for content in frame.items(_CONTENT)[:1] if at is not None else ():
            values = content.numbers("DimensionIndexValues")
            return int(values[at]) if at is not None and at < len(values) else None
        return None
