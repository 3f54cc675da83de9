"""Enhanced CT (PS3.3 A.38) from single-frame series: one multi-frame object, or several, of the same slices.

What all frames share stands in the Shared Functional Groups Sequence, what differs in the Per-frame one, as
scanners write it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, EnhancedCTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ich_node.testing.functional_groups import EnhancedFrame, functional_groups
from ich_node.testing.phantom import HeadPhantom
from ich_node.testing.series import ENCODED_HERE, derived_uid, encode, phantom_series

_COPIED = (
    "SpecificCharacterSet", "StudyDate", "SeriesDate", "ContentDate", "StudyTime", "SeriesTime",
    "ContentTime", "AccessionNumber", "Modality", "Manufacturer", "ReferringPhysicianName", "StationName",
    "StudyDescription", "SeriesDescription", "ManufacturerModelName", "PatientName", "PatientID",
    "PatientBirthDate", "PatientSex", "BodyPartExamined", "ProtocolName", "PatientPosition",
    "StudyInstanceUID", "SeriesInstanceUID", "StudyID", "SeriesNumber", "FrameOfReferenceUID",
    "PositionReferenceIndicator", "ImageComments", "SamplesPerPixel", "PhotometricInterpretation", "Rows",
    "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
)  # fmt: skip
_FRAME_CONTENT_SEQUENCE = 0x00209111
_DIMENSIONS = (0x00209056, 0x00209128, 0x00209057)
"""Stack ID, Temporal Position Index, In-Stack Position Number: the order of Dimension Index Values."""


def enhanced_phantom(
    phantom: HeadPhantom, *, objects: int = 1, concatenated: bool = False, **changes: Any
) -> list[FileDataset]:
    """Make the head phantom as Enhanced CT, frames from inferior to superior.

    Parameters
    ----------
    phantom
        From `ich_node.testing.phantom.head_phantom`.
    objects, concatenated
        As for `enhanced_ct`.
    **changes
        Fields of `ich_node.testing.series.SeriesOptions`; a transfer syntax applies to every frame.
    """
    syntax = changes.pop("transfer_syntax_uid", str(ExplicitVRLittleEndian))
    frames = [EnhancedFrame(image=image) for image in phantom_series(phantom, **changes)]
    return enhanced_ct(frames, objects=objects, concatenated=concatenated, transfer_syntax_uid=syntax)


def enhanced_ct(
    frames: Sequence[EnhancedFrame],
    *,
    objects: int = 1,
    concatenated: bool = False,
    transfer_syntax_uid: str = str(ExplicitVRLittleEndian),
) -> list[FileDataset]:
    """Put slices into Enhanced CT Image Storage objects of one series.

    Parameters
    ----------
    frames
        In the order in which they are stored.
    objects
        How many objects share the frames, each with a run of them.
    concatenated
        Whether the objects are one concatenation (PS3.3 C.7.6.16.1.3) and not images of their own.

    Raises
    ------
    ValueError
        Fewer frames than objects, or a transfer syntax that this module does not write.
    """
    if transfer_syntax_uid not in ENCODED_HERE:
        raise ValueError(f"no encoder here for transfer syntax {UID(transfer_syntax_uid).name}")
    if not 1 <= objects <= len(frames):
        raise ValueError(f"{len(frames)} frames make no {objects} objects")
    bounds = [len(frames) * k // objects for k in range(objects + 1)]
    made = []
    for number, (start, stop) in enumerate(itertools.pairwise(bounds), start=1):
        image = _object(frames[start:stop], number, transfer_syntax_uid)
        if concatenated:
            _concatenate(image, number=number, total=objects, first_frame=start)
        made.append(encode(image, transfer_syntax_uid))
    return made


def _object(frames: Sequence[EnhancedFrame], number: int, transfer_syntax_uid: str) -> FileDataset:
    first = frames[0].image
    uid = derived_uid("enhanced", str(first.SeriesInstanceUID), number)
    meta = deepcopy(first.file_meta)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = EnhancedCTImageStorage, UID(uid)
    implicit = transfer_syntax_uid == ImplicitVRLittleEndian
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128, is_implicit_VR=implicit)
    image.SOPClassUID, image.SOPInstanceUID = EnhancedCTImageStorage, uid
    for keyword in _COPIED:
        if keyword in first:
            image[keyword] = deepcopy(first[keyword])
    image.InstanceNumber, image.NumberOfFrames = number, len(frames)
    _describe(image, frames)
    _declare_dimensions(image)
    shared, each = functional_groups(frames)
    image.SharedFunctionalGroupsSequence = Items([shared])
    image.PerFrameFunctionalGroupsSequence = Items(each)
    pixels = b"".join(frame.image.PixelData for frame in frames)
    image.PixelData = pixels + b"\0" * (len(pixels) % 2)
    image["PixelData"].VR = "OW"
    return image


def _describe(image: Dataset, frames: Sequence[EnhancedFrame]) -> None:
    """Modules Enhanced General Equipment, Enhanced CT Image, Acquisition Context and their like."""
    first = frames[0].image
    types = {frame.frame_type for frame in frames}
    image.ImageType = [
        values.pop() if len(values) == 1 else "MIXED" for values in map(set, zip(*types, strict=True))
    ]
    image.PixelPresentation, image.VolumetricProperties = "MONOCHROME", "VOLUME"
    image.VolumeBasedCalculationTechnique = "NONE"
    image.AcquisitionDateTime = f"{first.AcquisitionDate}{first.AcquisitionTime}"
    image.AcquisitionDuration = 1.0
    image.ContentQualification = "RESEARCH"
    image.DeviceSerialNumber, image.SoftwareVersions = "0", "0"
    image.BurnedInAnnotation, image.LossyImageCompression = "NO", "00"
    image.PresentationLUTShape = "IDENTITY"
    image.AcquisitionContextSequence = Items([])
    image.MultienergyCTAcquisition = "NO"
    agents = [f.image.get("ContrastBolusAgent") for f in frames if f.image.get("ContrastBolusAgent")]
    if agents:
        image.ContrastBolusAgentSequence = Items([_agent(agents[0])])


def _agent(name: str) -> Dataset:
    agent, route = Dataset(), Dataset()
    agent.CodeValue, agent.CodingSchemeDesignator, agent.CodeMeaning = "385420005", "SCT", name
    route.CodeValue, route.CodingSchemeDesignator, route.CodeMeaning = "47625008", "SCT", "Intravenous route"
    agent.ContrastBolusAgentNumber = 1
    agent.ContrastBolusAdministrationRouteSequence = Items([route])
    agent.ContrastBolusVolume = None
    ingredient = Dataset()
    ingredient.CodeValue, ingredient.CodingSchemeDesignator = "44588005", "SCT"
    ingredient.CodeMeaning = "Iodine"
    agent.ContrastBolusIngredientCodeSequence = Items([ingredient])
    agent.ContrastBolusIngredientConcentration = None
    return agent


def _declare_dimensions(image: Dataset) -> None:
    """Multi-frame Dimension module (PS3.3 C.7.6.17)."""
    organization = derived_uid("dimensions", str(image.SeriesInstanceUID))
    item = Dataset()
    item.DimensionOrganizationUID = organization
    image.DimensionOrganizationSequence = Items([item])
    indices = []
    for pointer in _DIMENSIONS:
        index = Dataset()
        index.DimensionOrganizationUID = organization
        index.DimensionIndexPointer, index.FunctionalGroupPointer = pointer, _FRAME_CONTENT_SEQUENCE
        indices.append(index)
    image.DimensionIndexSequence = Items(indices)


def _concatenate(image: Dataset, *, number: int, total: int, first_frame: int) -> None:
    """Multi-frame Functional Groups module, what concerns concatenations (PS3.3 C.7.6.16)."""
    series = str(image.SeriesInstanceUID)
    image.ConcatenationUID = derived_uid("concatenation", series)
    image.SOPInstanceUIDOfConcatenationSource = derived_uid("concatenation source", series)
    image.InConcatenationNumber, image.InConcatenationTotalNumber = number, total
    image.ConcatenationFrameOffsetNumber = first_frame
    image.InstanceNumber = 1
