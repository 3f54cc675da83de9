"""What the slice viewer of a study page has to know before the first pixel: slices, places, classes, geometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ich_node.database.slices import ReadSeries, SliceSource
from ich_node.errors import StudyRejected
from ich_node.findings import IchSubtype
from ich_node.geometry import is_usable_orientation
from ich_node.receive.frames import read_frames_header
from ich_node.receive.header import read_header
from ich_node.study import Instance
from ich_node.web import display
from ich_node.web.wording import SUBTYPE

LETTERS: dict[str, str] = {
    IchSubtype.ANY: "ANY",
    IchSubtype.EPIDURAL: "EDH",
    IchSubtype.INTRAPARENCHYMAL: "IPH",
    IchSubtype.INTRAVENTRICULAR: "IVH",
    IchSubtype.SUBARACHNOID: "SAH",
    IchSubtype.SUBDURAL: "SDH",
}
"""As radiologists write the classes; in the pictures that go to the PACS too."""
COLORS: dict[str, str] = {
    IchSubtype.ANY: "#eef1f5",
    IchSubtype.EPIDURAL: "#009e73",
    IchSubtype.INTRAPARENCHYMAL: "#eb6a14",
    IchSubtype.INTRAVENTRICULAR: "#cc79a7",
    IchSubtype.SUBARACHNOID: "#56b4e9",
    IchSubtype.SUBDURAL: "#f0e442",
}
"""Okabe and Ito's, which people with any common color blindness tell apart; as in those pictures."""
_COLOR_OF_ANY_ALONE = "#e69f00"
_BOTH_LETTERS_FROM = 0.3
"""A direction that leans so far to a second side (0.3 is 17 degrees) is named by both."""


def viewer_facts(
    study_instance_uid: str, series: ReadSeries, geometry: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What the viewer's script is told, as JSON.

    Parameters
    ----------
    geometry
        As `slice_geometry` gives it; ``None``: no slice's header can be read.
    """
    base = f"/studies/{study_instance_uid}"
    codes = [c for c in IchSubtype if any(_knows(found, c) for found in series.slices)]
    return {
        "slices_at": f"{base}/series/{series.series_instance_uid}/slices/",
        "of": series.content,
        "maps_at": f"{base}/readings/{series.reading_id}/maps" if series.maps_file_name else None,
        "geometry": geometry,
        "classes": [_class(code, is_alone=len(codes) == 1) for code in codes],
        "slices": [
            _slice(index, found, series.sensitive, codes) for index, found in enumerate(series.slices)
        ],
    }


def slice_geometry(path: Path, source: SliceSource) -> dict[str, Any] | None:
    """Pixel grid of a slice, and which side of the patient each edge is; ``None`` where its header cannot be read.

    All slices of a reading have the same, for the volume that was read is one grid.
    """
    try:
        image = _header(path, source.frame_number, source.content_hash)
    except (StudyRejected, OSError):
        return None
    if image is None or not image.rows or not image.columns:
        return None
    return {
        "rows": image.rows,
        "columns": image.columns,
        "pixel_spacing_mm": image.pixel_spacing_mm or (1.0, 1.0),
        "edges": edge_letters(image),
    }


def edge_letters(image: Instance) -> dict[str, str]:
    """Side of the patient (L, R, A, P, H, F) that each edge of the image as stored points to (PS3.3 C.7.6.1.1.1)."""
    if not is_usable_orientation(image):
        return {}
    cosines = image.image_orientation_patient
    assert cosines is not None
    right, bottom = cosines[:3], cosines[3:]
    return {
        "right": _side(right),
        "left": _side([-c for c in right]),
        "bottom": _side(bottom),
        "top": _side([-c for c in bottom]),
    }


def _side(direction: Sequence[float]) -> str:
    named = [
        (abs(component), letters[component < 0])
        for component, letters in zip(direction, ("LR", "PA", "HF"), strict=True)
    ]
    named.sort(reverse=True)
    return named[0][1] + "".join(letter for size, letter in named[1:2] if size >= _BOTH_LETTERS_FROM)


@lru_cache(maxsize=32)
def _header(path: Path, frame_number: int | None, _content_hash: str) -> Instance | None:
    if frame_number is None:
        return read_header(path)[0]
    return next((f for f in read_frames_header(path) if f.frame_number == frame_number), None)


def _class(code: str, *, is_alone: bool) -> dict[str, Any]:
    # A white veil would look like blood: beside subtypes ANY is an outline.
    is_any = code == IchSubtype.ANY
    return {
        "code": code,
        "name": SUBTYPE[code],
        "letters": LETTERS[code],
        "color": _COLOR_OF_ANY_ALONE if is_any and is_alone else COLORS[code],
        "fills": is_alone or not is_any,
    }


def _knows(found: Mapping[str, Any], code: str) -> bool:
    return found["probabilities"].get(code) is not None


def _slice(index: int, found: Mapping[str, Any], sensitive: float, codes: Sequence[str]) -> dict[str, Any]:
    shown_on = found.get("shown_on")
    score = float(found["probabilities"].get(IchSubtype.ANY) or 0.0)
    return {
        "score": score,
        "percent": display.percent(score),
        "suspicious": score >= sensitive,
        "shown_on": index if shown_on is None else shown_on,
        "percents": {c: display.percent(found["probabilities"].get(c)) for c in codes},
        "places": [
            {
                "kind": place["kind"],
                "code": place["subtype"],
                "at": place["coordinates"],
                "percent": display.percent(place["score"]),
            }
            for place in found["localizations"]
        ],
    }
