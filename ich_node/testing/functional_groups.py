"""Functional groups of Enhanced CT (PS3.3 C.7.6.16.2 and C.8.15.3) of the slices of a single-frame series."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from ich_node.testing.series import derived_uid

VOLUME_FRAME = ("ORIGINAL", "PRIMARY", "VOLUME", "NONE")
"""Frame Type (0008,9007) of a plain reconstruction (PS3.3 C.8.16.1)."""


@dataclass(frozen=True, kw_only=True)
class EnhancedFrame:
    """One frame to be: a native single-frame CT image, and what only a multi-frame object says of it."""

    image: Dataset
    """From `ich_node.testing.series.ct_series`, not compressed."""
    stack_id: str = "1"
    temporal_position: int = 1
    frame_type: tuple[str, str, str, str] = VOLUME_FRAME
    region: tuple[str, str, str] = ("69536005", "SCT", "Head")
    """Anatomic Region (0008,2218): code value, scheme, meaning."""
    contrast_administered: bool = True
    """Of the agent that the image names in Contrast/Bolus Agent; nothing where it names none."""


def functional_groups(frames: Sequence[EnhancedFrame]) -> tuple[Dataset, list[Dataset]]:
    """Make the one shared item and the items per frame, in the order of the frames."""
    shared, each = Dataset(), [Dataset() for _ in frames]
    for keyword, make in _MACROS.items():
        items = [item for item in map(make, frames) if item is not None]
        if len(items) < len(frames):
            continue
        if keyword not in _NEVER_SHARED and all(item == items[0] for item in items[1:]):
            setattr(shared, keyword, Items([items[0]]))
        else:
            for group, item in zip(each, items, strict=True):
                setattr(group, keyword, Items([item]))
    for group, content in zip(each, _frame_contents(frames), strict=True):
        group.FrameContentSequence = Items([content])
    return shared, each


def _frame_contents(frames: Sequence[EnhancedFrame]) -> list[Dataset]:
    """Frame Content (C.7.6.16.2.2); in-stack positions are counted in the order of the frames."""
    stacks = sorted({frame.stack_id for frame in frames})
    counted: dict[tuple[str, int], int] = {}
    contents = []
    for frame in frames:
        place = (frame.stack_id, frame.temporal_position)
        counted[place] = counted.get(place, 0) + 1
        content = Dataset()
        content.FrameAcquisitionNumber = int(frame.image.AcquisitionNumber)
        content.FrameReferenceDateTime = f"{frame.image.AcquisitionDate}{frame.image.AcquisitionTime}"
        content.FrameAcquisitionDateTime = content.FrameReferenceDateTime
        content.FrameAcquisitionDuration = 1000.0
        content.StackID, content.InStackPositionNumber = frame.stack_id, counted[place]
        content.TemporalPositionIndex = frame.temporal_position
        content.DimensionIndexValues = [
            stacks.index(frame.stack_id) + 1,
            frame.temporal_position,
            counted[place],
        ]
        contents.append(content)
    return contents


def _pixel_measures(frame: EnhancedFrame) -> Dataset:
    item = Dataset()
    item.PixelSpacing, item.SliceThickness = frame.image.PixelSpacing, frame.image.SliceThickness
    return item


def _plane_position(frame: EnhancedFrame) -> Dataset:
    item = Dataset()
    item.ImagePositionPatient = frame.image.ImagePositionPatient
    return item


def _plane_orientation(frame: EnhancedFrame) -> Dataset:
    item = Dataset()
    item.ImageOrientationPatient = frame.image.ImageOrientationPatient
    return item


def _frame_anatomy(frame: EnhancedFrame) -> Dataset:
    region = Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = frame.region
    item = Dataset()
    item.AnatomicRegionSequence, item.FrameLaterality = Items([region]), "U"
    return item


def _window(frame: EnhancedFrame) -> Dataset:
    item = Dataset()
    item.WindowCenter, item.WindowWidth = frame.image.WindowCenter, frame.image.WindowWidth
    return item


def _transformation(frame: EnhancedFrame) -> Dataset:
    item = Dataset()
    item.RescaleIntercept = frame.image.RescaleIntercept
    item.RescaleSlope, item.RescaleType = frame.image.RescaleSlope, "HU"
    return item


def _frame_type(frame: EnhancedFrame) -> Dataset:
    item = Dataset()
    item.FrameType = list(frame.frame_type)
    item.PixelPresentation, item.VolumetricProperties = "MONOCHROME", "VOLUME"
    item.VolumeBasedCalculationTechnique = "NONE"
    return item


def _acquisition_type(_: EnhancedFrame) -> Dataset:
    item = Dataset()
    item.AcquisitionType, item.ConstantVolumeFlag, item.FluoroscopyFlag = "SPIRAL", "NO", "NO"
    return item


def _acquisition_details(frame: EnhancedFrame) -> Dataset:
    item = Dataset()
    item.RotationDirection, item.RevolutionTime = "CW", 1.0
    item.SingleCollimationWidth = item.TotalCollimationWidth = float(frame.image.SliceThickness)
    item.TableHeight, item.DataCollectionDiameter = "0", "500"
    item.GantryDetectorTilt = frame.image.GantryDetectorTilt
    return item


def _table_dynamics(_: EnhancedFrame) -> Dataset:
    item = Dataset()
    item.TableSpeed = item.TableFeedPerRotation = 20.0
    item.SpiralPitchFactor = 1.0
    return item


def _position(frame: EnhancedFrame) -> Dataset:
    item = Dataset()
    centre = [float(v) for v in frame.image.ImagePositionPatient]
    item.TablePosition, item.ReconstructionTargetCenterPatient = centre[2], centre
    item.DataCollectionCenterPatient = centre
    return item


def _geometry(_: EnhancedFrame) -> Dataset:
    item = Dataset()
    item.DistanceSourceToDetector, item.DistanceSourceToDataCollectionCenter = 1000.0, 600.0
    return item


def _reconstruction(frame: EnhancedFrame) -> Dataset:
    item = Dataset()
    item.ReconstructionAlgorithm, item.ConvolutionKernel = "FILTER_BACK_PROJ", frame.image.ConvolutionKernel
    item.ConvolutionKernelGroup = "BONE" if "BONE" in str(frame.image.ConvolutionKernel).upper() else "BRAIN"
    rows, columns = (float(v) for v in frame.image.PixelSpacing)
    item.ReconstructionFieldOfView = [columns * frame.image.Columns, rows * frame.image.Rows]
    item.ReconstructionPixelSpacing, item.ReconstructionAngle = [rows, columns], 360.0
    item.ImageFilter = "NONE"
    return item


def _exposure(_: EnhancedFrame) -> Dataset:
    item = Dataset()
    item.ExposureTimeInms, item.XRayTubeCurrentInmA, item.ExposureInmAs = 1000.0, 300.0, 300.0
    item.ExposureModulationType, item.CTDIvol = "NONE", 50.0
    phantom = Dataset()
    phantom.CodeValue, phantom.CodingSchemeDesignator = "113690", "DCM"
    phantom.CodeMeaning = "IEC Head Dosimetry Phantom"
    item.CTDIPhantomTypeCodeSequence = Items([phantom])
    return item


def _x_ray_details(frame: EnhancedFrame) -> Dataset:
    item = Dataset()
    item.KVP, item.FocalSpots = frame.image.KVP, 1.0
    item.FilterType, item.FilterMaterial = "FLAT", "ALUMINUM"
    return item


def _irradiation(frame: EnhancedFrame) -> Dataset:
    item = Dataset()
    item.IrradiationEventUID = derived_uid("irradiation", str(frame.image.StudyInstanceUID))
    return item


def _contrast(frame: EnhancedFrame) -> Dataset | None:
    if not frame.image.get("ContrastBolusAgent"):
        return None
    item = Dataset()
    administered = "YES" if frame.contrast_administered else "NO"
    item.ContrastBolusAgentNumber, item.ContrastBolusAgentAdministered = 1, administered
    item.ContrastBolusAgentDetected = administered
    return item


_NEVER_SHARED = frozenset(("PlanePositionSequence", "CTPositionSequence"))
_MACROS: dict[str, Callable[[EnhancedFrame], Dataset | None]] = {
    "PixelMeasuresSequence": _pixel_measures,
    "PlanePositionSequence": _plane_position,
    "PlaneOrientationSequence": _plane_orientation,
    "FrameAnatomySequence": _frame_anatomy,
    "FrameVOILUTSequence": _window,
    "PixelValueTransformationSequence": _transformation,
    "CTImageFrameTypeSequence": _frame_type,
    "CTAcquisitionTypeSequence": _acquisition_type,
    "CTAcquisitionDetailsSequence": _acquisition_details,
    "CTTableDynamicsSequence": _table_dynamics,
    "CTPositionSequence": _position,
    "CTGeometrySequence": _geometry,
    "CTReconstructionSequence": _reconstruction,
    "CTExposureSequence": _exposure,
    "CTXRayDetailsSequence": _x_ray_details,
    "IrradiationEventIdentificationSequence": _irradiation,
    "ContrastBolusUsageSequence": _contrast,
}
