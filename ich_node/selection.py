"""Which series of a study is the non-contrast axial head CT, and why the others are not.

Every series of a study comes out either as a candidate or with one exclusion. Rules look at headers only. An
absent or silent attribute never excludes; a statement that something else was imaged does.

Rules come in two tables, both first match wins: those of `ich_node.image_rules` judge each image, so that a
localizer or a dose sheet that a scanner filed into the axial series is set aside and the series is still read
(`load_volume` does the same by `readable_images` and records a caveat); `_SERIES_RULES` judge what is left of the
series. Multi-frame objects come as their frames (`ich_node.receive.frames`), which are judged like single images.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ich_node import geometry
from ich_node.errors import RejectionReason, StudyRejected
from ich_node.image_rules import Fault, image_fault
from ich_node.scans import MAX_TIMES, check_concatenations, split_scans, time_points, vertical_extent_mm
from ich_node.series_words import (
    Contrast,
    Kernel,
    Region,
    contrast,
    is_projection,
    kernel,
    names_agent,
    region,
)
from ich_node.study import Instance, Series, Study

MAX_HEAD_FIELD_OF_VIEW_MM = 350.0
"""Where headers do not say head, a wider field of view is a body scan: head protocols use 200 to 300 mm."""
MAX_COVERAGE_MM = 450.0
"""More than head and neck together."""
MAX_UNREAD_MM = 10.0
"""How far a stack of frames that is not read may reach beyond the one that is."""


@dataclass(frozen=True, kw_only=True)
class SeriesExclusion:
    """Why a series is not read."""

    series_instance_uid: str
    reason: RejectionReason
    detail: str
    """One sentence for a person, without identifying values."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The series of a study, judged."""

    candidates: tuple[Series, ...]
    """Series worth reading, best first, with all their instances (strays included: `load_volume` sets them
    aside)."""
    exclusions: tuple[SeriesExclusion, ...]
    """One for each other series, in the study's order."""


def select_series(study: Study) -> Selection:
    """Judge every series of a study.

    Parameters
    ----------
    study
        All series that are here now.

    Returns
    -------
    Selection
        Each series is in exactly one of candidates and exclusions. Series with a soft-tissue kernel that
        cover the whole head in 2.5 to 5 mm slices come first; the order does not hang on the order of
        arrival.
    """
    candidates, exclusions = [], []
    for series in study.series:
        try:
            images, _ = readable_images(series)
            rejection = _rejection(images)
            if rejection is not None:
                raise rejection
        except StudyRejected as rejection:
            exclusions.append(
                SeriesExclusion(
                    series_instance_uid=series.series_instance_uid,
                    reason=rejection.reason,
                    detail=rejection.detail,
                )
            )
        else:
            candidates.append((_rank(images), series.series_instance_uid, series))
    candidates.sort(key=lambda entry: entry[:2])
    return Selection(candidates=tuple(series for _, _, series in candidates), exclusions=tuple(exclusions))


def readable_images(series: Series) -> tuple[list[Instance], tuple[str, ...]]:
    """Take the axial CT slices out of a series and set strays aside.

    Parameters
    ----------
    series
        As received; localizers, dose sheets and reports may be among its slices.

    Returns
    -------
    tuple of list of Instance and tuple of str
        The slices, sorted by UID, and one caveat per kind of object that was set aside.

    Raises
    ------
    StudyRejected
        Where no slice is left, or the strays outnumber the slices: with the reason that most strays share.
    """
    if not series.instances:
        raise StudyRejected(RejectionReason.NO_IMAGES, "The series has no objects.")
    kept: list[Instance] = []
    strays: list[tuple[Instance, Fault]] = []
    for instance in sorted(series.instances, key=geometry.by_identity):
        fault = image_fault(instance)
        if fault is None:
            kept.append(instance)
        else:
            strays.append((instance, fault))
    _refuse_strays(kept, strays)
    check_concatenations(kept)
    scan, caveats = _one_scan(kept)
    faults = Counter(fault for _, fault in strays)
    return scan, (
        *(
            f"{count} of {len(series.instances)} {_objects(series)} of the series are set aside ({reason})."
            for (reason, _), count in sorted(faults.items())
        ),
        *caveats,
    )


def _refuse_strays(kept: Sequence[Instance], strays: Sequence[tuple[Instance, Fault]]) -> None:
    """Refuse a series of strays; frames that are another stack altogether are no strays in this one."""
    stacks = {image.stack_id for image in kept}
    among = [fault for image, fault in strays if image.stack_id in stacks]
    if strays and (not kept or (among and len(kept) <= len(among))):
        faults = Counter(among or [fault for _, fault in strays])
        (reason, detail), _ = min(faults.items(), key=lambda item: (-item[1], item[0]))
        raise StudyRejected(reason, detail)


def _objects(series: Series) -> str:
    return "objects" if all(i.frame_number is None for i in series.instances) else "frames"


def _one_scan(images: list[Instance]) -> tuple[list[Instance], tuple[str, ...]]:
    """Choose the scan to read of a series that has several in its multi-frame objects, and say so."""
    scans = split_scans(images)
    if len(scans) == 1:
        return images, ()
    rejections = [_rejection(scan) for scan in scans]
    sound = [scan for scan, rejection in zip(scans, rejections, strict=True) if rejection is None]
    if not sound:
        raise next(rejection for rejection in rejections if rejection is not None)
    best = min(sound, key=lambda scan: (_rank(scan), geometry.by_identity(scan[0])))
    for scan, rejection in zip(scans, rejections, strict=True):
        if scan is not best and (rejection is None or rejection.reason is RejectionReason.TOO_FEW_SLICES):
            _check_covered(scan, best)
    others = len(images) - len(best)
    return best, (f"{others} of {len(images)} frames are other stacks or reconstructions and are not read.",)


def _rejection(images: Sequence[Instance]) -> StudyRejected | None:
    try:
        for rule in _SERIES_RULES:
            rule(images)
    except StudyRejected as rejection:
        return rejection
    return None


def _check_covered(scan: Sequence[Instance], best: Sequence[Instance]) -> None:
    (low, high), (lowest, highest) = vertical_extent_mm(scan), vertical_extent_mm(best)
    if low < lowest - MAX_UNREAD_MM or high > highest + MAX_UNREAD_MM:
        raise StudyRejected(
            RejectionReason.INCONSISTENT_GEOMETRY,
            "The series has several stacks of frames that do not fit together, and none covers all that was imaged.",
        )


def names_head(images: Sequence[Instance]) -> bool:
    """Whether any text of any image's header names the head."""
    texts = {text for image in images for text in _region_texts(image).values()}
    return any(region(text) is Region.HEAD for text in texts)


# --- one series: each rule raises StudyRejected or passes


def _check_projection(images: Sequence[Instance]) -> None:
    if any(is_projection(image.series_description) for image in images):
        raise StudyRejected(
            RejectionReason.DERIVED,
            "Series Description (0008,103E) names a reformation, a projection or a perfusion map.",
        )


def _check_region(images: Sequence[Instance]) -> None:
    """The first text that names a region decides, but codes of a protocol, often wrong, may be overruled."""
    said = {name: region(text) for name, text in _region_texts(images[0]).items()}
    name, first = next(((n, r) for n, r in said.items() if r is not Region.SILENT), ("", Region.SILENT))
    if first is Region.OTHER:
        overruled = name in _OVERRULED and Region.HEAD in said.values()
        if not overruled or _field_of_view_mm(images) > MAX_HEAD_FIELD_OF_VIEW_MM:
            raise StudyRejected(RejectionReason.NOT_HEAD, f"{name} names another body region than the head.")
    if first is Region.SILENT and _field_of_view_mm(images) > MAX_HEAD_FIELD_OF_VIEW_MM:
        raise StudyRejected(
            RejectionReason.NOT_HEAD,
            "Nothing in the header says head, and the field of view is that of a body scan "
            f"({_field_of_view_mm(images):.0f} mm).",
        )


def _check_contrast(images: Sequence[Instance]) -> None:
    if any(names_agent(agent) for agent in {image.contrast_bolus_agent for image in images}):
        raise StudyRejected(
            RejectionReason.CONTRAST,
            "Contrast/Bolus Agent (0018,0010) names an agent; only scans without contrast are read.",
        )
    said = contrast(images[0].series_description)
    if said in (Contrast.WITH, Contrast.BOTH):
        raise StudyRejected(
            RejectionReason.CONTRAST,
            "Series Description (0008,103E) says contrast, angiography or perfusion.",
        )
    # A protocol names the whole examination, often its contrast phase too: it counts where the series says
    # nothing.
    if said is Contrast.SILENT and contrast(images[0].protocol_name) is Contrast.WITH:
        raise StudyRejected(
            RejectionReason.CONTRAST,
            "Protocol Name (0018,1030) says contrast, and the series does not say without.",
        )


def _check_kernel(images: Sequence[Instance]) -> None:
    if _kernel(images) is Kernel.BONE:
        name = "\\".join(images[0].convolution_kernel)[:32] or "named in Series Description"
        raise StudyRejected(
            RejectionReason.BONE_KERNEL,
            f"The reconstruction is for bone or lung (kernel {name}); blood needs soft tissue.",
        )


def _check_geometry(images: Sequence[Instance]) -> None:
    geometry.require_attributes(images)
    grid, _ = geometry.majority_grid(images)
    ordered, offsets = geometry.sort_upward(grid)
    places = geometry.positions(offsets)
    coverage = offsets[-1]
    if len(places) < geometry.MIN_POSITIONS or coverage < geometry.MIN_COVERAGE_MM:
        raise StudyRejected(
            RejectionReason.TOO_FEW_SLICES,
            f"{len(places)} slice positions over {coverage:.0f} mm; a head needs {geometry.MIN_POSITIONS} "
            f"over {geometry.MIN_COVERAGE_MM:.0f} mm.",
        )
    if len(ordered) > MAX_TIMES * len(places) or time_points(ordered) > 1:
        raise StudyRejected(
            RejectionReason.DUPLICATE_POSITIONS,
            f"{len(ordered)} images at {len(places)} positions: a dynamic (perfusion) series.",
        )
    if coverage > MAX_COVERAGE_MM:
        raise StudyRejected(
            RejectionReason.NOT_HEAD,
            f"The series covers {coverage:.0f} mm, more than a head and neck together.",
        )


_SERIES_RULES: tuple[Callable[[Sequence[Instance]], None], ...] = (
    _check_projection,
    _check_region,
    _check_contrast,
    _check_kernel,
    _check_geometry,
)


_OVERRULED = ("Body Part Examined (0018,0015)", "Anatomic Region (0008,2218)")


def _region_texts(image: Instance) -> dict[str, str]:
    """Texts that may name the region, the one that speaks of this series most closely first."""
    return {
        "Series Description (0008,103E)": image.series_description,
        "Anatomic Region (0008,2218)": image.anatomic_region,
        "Body Part Examined (0018,0015)": image.body_part_examined,
        "Protocol Name (0018,1030)": image.protocol_name,
        "Study Description (0008,1030)": image.study_description,
    }


def _field_of_view_mm(images: Sequence[Instance]) -> float:
    widths = [i.columns * i.pixel_spacing_mm[1] for i in images if i.columns and i.pixel_spacing_mm]
    return statistics.median(widths) if widths else 0.0


def _kernel(images: Sequence[Instance]) -> Kernel:
    return kernel(images[0].convolution_kernel, images[0].series_description)


# --- ranking

_WHOLE_HEAD_MM = 110.0
_KERNEL_ORDER = (Kernel.SOFT, Kernel.UNKNOWN, Kernel.SHARP)
_THICKNESS_ORDER_MM = ((2.4, 5.5), (0.9, 2.4), (5.5, 10.5))


def _rank(images: Sequence[Instance]) -> tuple[float, ...]:
    """Smaller is better; the most important comes first."""
    grid, _ = geometry.majority_grid(images)
    _, offsets = geometry.sort_upward(grid)
    places = geometry.positions(offsets)
    thickness = statistics.median(
        [i.slice_thickness_mm for i in grid if i.slice_thickness_mm] or [offsets[-1] / (len(places) - 1)]
    )
    thickness_class = next(
        (k for k, (low, high) in enumerate(_THICKNESS_ORDER_MM) if low <= thickness < high),
        len(_THICKNESS_ORDER_MM),
    )
    return (
        offsets[-1] < _WHOLE_HEAD_MM,
        _KERNEL_ORDER.index(_kernel(images)),
        images[0].image_type[:1] == ("DERIVED",),
        thickness_class,
        len(grid) > len(places),
        # 5 mm steps: a slice more or less is no reason to prefer a series
        -round(offsets[-1] / 5.0),
        -(images[0].series_number or 0),
    )
