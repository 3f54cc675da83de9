"""DICOM series from arrays: CT Image Storage objects of the phantom, of its scout views, or of any head."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from scipy import ndimage

from ich_node.codes import IMPLEMENTATION_CLASS_UID
from ich_node.testing.phantom import HeadPhantom

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""Image Orientation (Patient) of an untilted axial slice, LPS."""
_ORIENTATION = {"frontal": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0), "lateral": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)}
_NAMESPACE = uuid.UUID("6d9f6a53-2d7c-4c4e-9a6f-7a3b9d1f5e20")
_NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
_COMPRESSED = (RLELossless, JPEG2000Lossless, JPEGLSLossless)
ENCODED_HERE = frozenset((*_NATIVE, *_COMPRESSED))
"""Transfer syntaxes that these builders write."""

View = Literal["frontal", "lateral"]


@dataclass(frozen=True, kw_only=True)
class SeriesOptions:
    """What the headers of a series say. Nobody real has this name or these numbers."""

    name: str = "phantom"
    """All UIDs follow from it, the series number and the place of the image: same name, same study."""
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    patient_name: str = "Phantom^Head"
    patient_id: str = "PHANTOM"
    patient_birth_date: str = "19000101"
    patient_sex: str = "O"
    accession_number: str = "PHANTOM"
    study_id: str = "1"
    study_date: str = "20200101"
    study_time: str = "120000"
    study_description: str = "CT HEAD WITHOUT CONTRAST"
    series_number: int = 2
    series_description: str = "HEAD AXIAL"
    protocol_name: str = "HEAD ROUTINE"
    body_part_examined: str = "HEAD"
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "AXIAL")
    image_comments: str = ""
    kvp: float = 120.0
    convolution_kernel: str = "STANDARD"
    contrast_bolus_agent: str = ""
    manufacturer: str = "ich_node"
    manufacturer_model_name: str = "head phantom"
    station_name: str = "PHANTOM_CT"
    source_ae_title: str = "MODALITY"
    """Source Application Entity Title (0002,0016) of the file meta information."""
    image_orientation: tuple[float, float, float, float, float, float] = AXIAL
    """Direction of rows and of columns; slices follow their cross product. Not together with a tilt."""
    gantry_tilt_deg: float = 0.0
    """The arrays count as acquired in a gantry tilted by this about the x axis: the table moves along z."""
    slice_thickness_mm: float | None = None
    """``None``: as the distance of the slices."""
    rescale_intercept: float = -1024.0
    signed: bool = False
    """Whether stored values are signed (Pixel Representation 1)."""
    transfer_syntax_uid: str = str(ExplicitVRLittleEndian)


def phantom_series(
    phantom: HeadPhantom, options: SeriesOptions | None = None, **changes: Any
) -> list[FileDataset]:
    """Make the CT series of a phantom, inferior to superior.

    Parameters
    ----------
    phantom
        From `ich_node.testing.phantom.head_phantom`.
    options, **changes
        `SeriesOptions`, and single fields of it that differ.

    Raises
    ------
    TypeError
        A change that is no field of `SeriesOptions`.
    ValueError
        A transfer syntax that this module does not write, or a tilt of a non-axial orientation.
    """
    return ct_series(phantom.hu, phantom.spacing_mm, options, **changes)


def ct_series(
    hu: npt.ArrayLike,
    spacing_mm: tuple[float, float, float],
    options: SeriesOptions | None = None,
    **changes: Any,
) -> list[FileDataset]:
    """Make a CT series of any stack of slices; the stack's centre is the origin of the patient frame.

    Parameters
    ----------
    hu
        (slices, rows, columns), HU, inferior to superior; stored as whole numbers.
    spacing_mm
        (slice, row, column) distance of neighbouring centres, mm; where it is assumed, say so in
        ``image_comments``.
    options, **changes
        As for `phantom_series`.

    Returns
    -------
    list of FileDataset
        One CT Image Storage object per slice, in the order of the array.
    """
    chosen = replace(options or SeriesOptions(), **changes)
    volume = np.asarray(hu)
    if volume.ndim != 3 or 0 in volume.shape:
        raise ValueError(f"expected (slices, rows, columns), got an array of shape {volume.shape}")
    count = volume.shape[0]
    orientation, step = _directions(chosen, spacing_mm[0])
    rows, columns = volume.shape[1:]
    in_plane = (spacing_mm[1], spacing_mm[2])
    centre_to_corner = _corner(orientation, (rows, columns), in_plane)
    images = []
    for index in range(count):
        position = centre_to_corner + (index - (count - 1) / 2) * step
        image = _image(chosen, volume[index], in_plane, index)
        image.SliceThickness = _decimal(chosen.slice_thickness_mm or spacing_mm[0])
        _place(image, position, orientation)
        images.append(encode(image, chosen.transfer_syntax_uid))
    return images


def localizer_series(
    phantom: HeadPhantom,
    options: SeriesOptions | None = None,
    *,
    views: Sequence[View] = ("frontal", "lateral"),
    **changes: Any,
) -> list[FileDataset]:
    """Make the scout views of a phantom: attenuation summed from front to back, and from side to side.

    With the ``name`` of the axial series it belongs to the same study.
    """
    scout: dict[str, Any] = {
        "series_number": 1,
        "series_description": "SCOUT",
        "image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER"),
        "slice_thickness_mm": 0.625,
    }
    chosen = replace(options or SeriesOptions(), **scout | changes)
    pixel_mm = phantom.spacing_mm[2]
    images = []
    for index, view in enumerate(views):
        projection = _projection(phantom, view)
        orientation = np.array(_ORIENTATION[view])
        image = _image(chosen, projection, (pixel_mm, pixel_mm), index)
        image.SliceThickness = _decimal(chosen.slice_thickness_mm or 0.625)
        _place(image, _corner(orientation, projection.shape, (pixel_mm, pixel_mm)), orientation)
        images.append(encode(image, chosen.transfer_syntax_uid))
    return images


def _projection(phantom: HeadPhantom, view: View) -> npt.NDArray[np.float32]:
    """Scout view, superior row first, on square pixels."""
    axis = 1 if view == "frontal" else 2
    pixel_mm = phantom.spacing_mm[axis]
    path_cm = (np.clip(phantom.hu, -1000, 2000) / 1000 + 1).sum(axis=axis) * pixel_mm / 10
    zoom = (phantom.spacing_mm[0] / phantom.spacing_mm[2], 1.0)
    smooth = ndimage.zoom(path_cm[::-1], zoom, order=1, mode="nearest", grid_mode=True)
    return np.asarray(smooth * 90 - 1000, np.float32)


def derived_uid(*parts: str | int) -> str:
    """UID of the form 2.25.<UUID> (PS3.5 B.2) that depends on the parts and on nothing else."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, repr(parts)).int}"


def _directions(
    options: SeriesOptions, slice_mm: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Orientation (6,) and the step from slice to slice (3,), LPS mm."""
    if options.gantry_tilt_deg == 0:
        orientation = np.array(options.image_orientation)
        return orientation, slice_mm * np.cross(orientation[:3], orientation[3:])
    if options.image_orientation != AXIAL:
        raise ValueError("a gantry tilt goes with the axial orientation only")
    tilt = math.radians(options.gantry_tilt_deg)
    orientation = np.array([1, 0, 0, 0, math.cos(tilt), -math.sin(tilt)])
    return orientation, np.array([0, 0, slice_mm / math.cos(tilt)])


def _corner(
    orientation: npt.NDArray[np.float64], shape: tuple[int, ...], spacing: tuple[float, float]
) -> npt.NDArray[np.float64]:
    """From the centre of an image to the centre of its first pixel, (3,) LPS mm."""
    along_row = orientation[:3] * spacing[1] * (shape[1] - 1) / 2
    along_column = orientation[3:] * spacing[0] * (shape[0] - 1) / 2
    return np.asarray(-along_row - along_column)


def _image(
    options: SeriesOptions, hu: npt.NDArray[Any], spacing: tuple[float, float], index: int
) -> FileDataset:
    """All but geometry and encoding."""
    series_uid = options.series_instance_uid or derived_uid("series", options.name, options.series_number)
    uid = derived_uid("image", series_uid, index)
    implicit = options.transfer_syntax_uid == ImplicitVRLittleEndian
    meta = _file_meta(options, uid)
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128, is_implicit_VR=implicit)
    image.SpecificCharacterSet = "ISO_IR 192"
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, uid
    image.SeriesInstanceUID = series_uid
    image.InstanceNumber = index + 1
    _patient_and_study(image, options)
    _equipment_and_acquisition(image, options)
    _pixels(image, hu, spacing, options)
    return image


def _file_meta(options: SeriesOptions, uid: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, UID(uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.SourceApplicationEntityTitle = options.source_ae_title
    return meta


def _patient_and_study(image: Dataset, options: SeriesOptions) -> None:
    image.PatientName, image.PatientID = options.patient_name, options.patient_id
    image.PatientBirthDate, image.PatientSex = options.patient_birth_date, options.patient_sex
    image.StudyInstanceUID = options.study_instance_uid or derived_uid("study", options.name)
    image.StudyID, image.AccessionNumber = options.study_id, options.accession_number
    image.StudyDate = image.SeriesDate = image.AcquisitionDate = image.ContentDate = options.study_date
    image.StudyTime = image.SeriesTime = image.AcquisitionTime = image.ContentTime = options.study_time
    image.ReferringPhysicianName = ""
    image.StudyDescription, image.SeriesDescription = options.study_description, options.series_description
    image.SeriesNumber, image.Modality = options.series_number, "CT"
    image.FrameOfReferenceUID = derived_uid("frame", str(image.StudyInstanceUID))
    image.PositionReferenceIndicator = ""


def _equipment_and_acquisition(image: Dataset, options: SeriesOptions) -> None:
    image.Manufacturer, image.ManufacturerModelName = options.manufacturer, options.manufacturer_model_name
    image.StationName = options.station_name
    image.ImageType = list(options.image_type)
    image.BodyPartExamined, image.PatientPosition = options.body_part_examined, "HFS"
    image.ProtocolName, image.ConvolutionKernel = options.protocol_name, options.convolution_kernel
    image.KVP, image.AcquisitionNumber = _decimal(options.kvp), 1
    image.GantryDetectorTilt = _decimal(options.gantry_tilt_deg)
    if options.contrast_bolus_agent:
        image.ContrastBolusAgent = options.contrast_bolus_agent
    if options.image_comments:
        image.ImageComments = options.image_comments


def _pixels(
    image: Dataset, hu: npt.NDArray[Any], spacing: tuple[float, float], options: SeriesOptions
) -> None:
    kind = np.int16 if options.signed else np.uint16
    limits = np.iinfo(kind)
    stored = np.clip(np.rint(hu - options.rescale_intercept), limits.min, limits.max).astype(kind)
    image.Rows, image.Columns = stored.shape
    image.PixelSpacing = [_decimal(spacing[0]), _decimal(spacing[1])]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelRepresentation = int(options.signed)
    image.RescaleIntercept, image.RescaleSlope = _decimal(options.rescale_intercept), "1"
    if "LOCALIZER" not in options.image_type:
        image.RescaleType = "HU"
    image.WindowCenter, image.WindowWidth = "40", "80"
    image.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    image["PixelData"].VR = "OW"


def _place(image: Dataset, position: npt.NDArray[np.float64], orientation: npt.NDArray[np.float64]) -> None:
    image.ImagePositionPatient = [_decimal(v) for v in position]
    image.ImageOrientationPatient = [_decimal(v) for v in orientation]
    image.SliceLocation = _decimal(position[2])


def encode(image: FileDataset, transfer_syntax_uid: str) -> FileDataset:
    """Give a native image its transfer syntax, in place.

    Raises
    ------
    ValueError
        A transfer syntax that this module does not write.
    """
    syntax = UID(transfer_syntax_uid)
    if syntax in _COMPRESSED:
        image.compress(syntax, generate_instance_uid=False)
    elif syntax in _NATIVE:
        image.file_meta.TransferSyntaxUID = syntax
    else:
        raise ValueError(f"no encoder here for transfer syntax {syntax.name}")
    return image


def _decimal(value: float) -> str:
    """Decimal String of at most 16 characters, to a millionth."""
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
