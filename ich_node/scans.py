"""What of a multi-frame series is one scan: stacks, reconstructions, contrast phases and times told apart.

A multi-frame object may hold several stacks of frames (PS3.3 C.7.6.16.2.2), each a scan or a part of one, and a
concatenation holds one image in several objects. Series of single frames are one scan always.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from ich_node import geometry
from ich_node.errors import RejectionReason, StudyRejected
from ich_node.series_words import names_agent
from ich_node.study import Concatenation, Instance

MAX_TIMES = 3
"""More images than this at one place are a dynamic (perfusion) series, whatever part of it is without contrast."""
_OVERLAP = 0.5
"""Two stacks that share less than this part of the shorter one continue each other."""


def split_scans(images: Sequence[Instance]) -> list[list[Instance]]:
    """Split the slices of a series into scans, the largest first.

    Frames are of one scan where Stack ID, reconstruction kernel and contrast are the same; stacks of one pixel grid
    that continue or interleave each other make one scan.

    Parameters
    ----------
    images
        Slices that were each found readable; nothing is split where they are single frames, or where a frame
        does not say where it lies.
    """
    if all(image.frame_number is None for image in images) or not all(map(_is_placed, images)):
        return [list(images)]
    scans: list[list[Instance]] = []
    for stack in sorted(_stacks(images), key=lambda s: (-len(s), geometry.by_identity(s[0]))):
        scan = next((scan for scan in scans if _belongs(scan, stack)), None)
        if scan is None:
            scans.append(stack)
        else:
            scan.extend(stack)
    return sorted(scans, key=lambda s: (-len(s), geometry.by_identity(s[0])))


def time_points(images: Sequence[Instance]) -> int:
    """How many temporal positions the frames at one place have, at most; 1 for single frames."""
    if all(image.temporal_position is None for image in images):
        return 1
    ordered, offsets = geometry.sort_upward(images)
    return max(
        len({ordered[k].temporal_position for k in place} - {None}) for place in geometry.positions(offsets)
    )


def vertical_extent_mm(images: Sequence[Instance]) -> tuple[float, float]:
    """Lowest and highest z of the slices' centres, LPS mm, for slices that say where they lie."""
    heights = []
    for image in images:
        assert image.image_position_patient_mm is not None
        assert image.image_orientation_patient is not None
        assert image.pixel_spacing_mm is not None
        row_z, column_z = image.image_orientation_patient[2], image.image_orientation_patient[5]
        across = row_z * image.pixel_spacing_mm[1] * ((image.columns or 1) - 1) / 2
        down = column_z * image.pixel_spacing_mm[0] * ((image.rows or 1) - 1) / 2
        heights.append(image.image_position_patient_mm[2] + across + down)
    return min(heights), max(heights)


def check_concatenations(images: Sequence[Instance]) -> None:
    """Refuse frames of a concatenation (PS3.3 C.7.6.16) of which objects are not here.

    Raises
    ------
    StudyRejected
        ``MISSING_SLICES``.
    """
    parts: dict[str, dict[str, tuple[Concatenation, int]]] = defaultdict(dict)
    for image in images:
        if image.concatenation is not None:
            found = parts[image.concatenation.concatenation_uid]
            found[image.sop_instance_uid] = (image.concatenation, image.number_of_frames)
    for found in parts.values():
        missing = _missing(list(found.values()))
        if missing:
            raise StudyRejected(
                RejectionReason.MISSING_SLICES,
                f"Of a multi-frame image that is sent in several objects (concatenation) {missing}; "
                "send the series again.",
            )


def _missing(parts: Sequence[tuple[Concatenation, int]]) -> str:
    """What is not here of one concatenation, in words; empty where nothing seems to be missing."""
    totals = {part.in_concatenation_total_number for part, _ in parts} - {None}
    numbers = {part.in_concatenation_number for part, _ in parts}
    if totals:
        total = max(t for t in totals if t is not None)
        return f"{len(numbers)} of {total} objects are here" if len(numbers) < total else ""
    expected = 0
    for part, frames in sorted(parts, key=lambda p: p[0].concatenation_frame_offset_number or 0):
        if part.concatenation_frame_offset_number not in (None, expected):
            return f"the object that begins with frame {expected + 1} is not here"
        expected += frames
    return ""


def _is_placed(image: Instance) -> bool:
    has_grid = image.rows is not None and image.columns is not None and image.pixel_spacing_mm is not None
    return has_grid and image.image_position_patient_mm is not None and geometry.is_usable_orientation(image)


def _stacks(images: Sequence[Instance]) -> list[list[Instance]]:
    families: dict[Hashable, list[Instance]] = defaultdict(list)
    for image in images:
        key = (image.stack_id, image.convolution_kernel) if image.frame_number is not None else None
        families[key].append(image)
    stacks: list[list[Instance]] = []
    for family in families.values():
        # A dynamic series has times before the contrast comes: no scan of its own.
        plain = [i for i in family if not names_agent(i.contrast_bolus_agent)]
        if plain and len(plain) < len(family) and _images_per_place(family) <= MAX_TIMES:
            stacks.extend((plain, [i for i in family if names_agent(i.contrast_bolus_agent)]))
        else:
            stacks.append(family)
    return stacks


def _images_per_place(images: Sequence[Instance]) -> int:
    _, offsets = geometry.sort_upward(images)
    return max(map(len, geometry.positions(offsets)))


def _belongs(scan: Sequence[Instance], stack: Sequence[Instance]) -> bool:
    one, other = scan[0], stack[0]
    if one.convolution_kernel != other.convolution_kernel or not geometry.same_plane(one, other):
        return False
    if names_agent(one.contrast_bolus_agent) != names_agent(other.contrast_bolus_agent):
        return False
    normal = geometry.upward_normal(one)
    places, others = (np.sort(geometry.offsets_mm(images, normal)) for images in (scan, stack))
    shared = min(places[-1], others[-1]) - max(places[0], others[0])
    shorter = min(places[-1] - places[0], others[-1] - others[0])
    if shared < -geometry.SAME_POSITION_MM or shared < _OVERLAP * shorter:
        return True
    return one.slice_thickness_mm == other.slice_thickness_mm and _interleave(places, others)


def _interleave(places: geometry.Vector, others: geometry.Vector) -> bool:
    """Whether no slice of one stack lies where one of the other does."""
    after = (
        np.clip(np.searchsorted(places, others), 1, len(places) - 1) if len(places) > 1 else np.zeros(1, int)
    )
    nearest = np.minimum(np.abs(places[after] - others), np.abs(places[after - 1] - others))
    return bool((nearest >= geometry.SAME_POSITION_MM).all())
