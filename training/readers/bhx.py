"""Boxes of BHX around the bleeds of CQ500.

Reis et al., "Brain Hemorrhage Extended (BHX): Bounding box extrapolation from thick to thin slice CT images",
PhysioNet 2020, version 1.1, doi 10.13026/9cft-hg92.
"""

from __future__ import annotations

import ast
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ich_node.findings import IchSubtype
from training.readers.faults import FaultKind, ReadOptions
from training.readers.label_table import Row, rows

TABLES = (
    "1_Initial_Manual_Labeling.csv",
    "2_Extrapolation_to_All_Series.csv",
    "3_Extrapolation_to_Selected_Series.csv",
)
CITATION = (
    "Reis et al., Brain Hemorrhage Extended (BHX): Bounding box extrapolation from thick to thin slice CT images, "
    "PhysioNet v1.1, doi 10.13026/9cft-hg92"
)
_NAMES = {
    "epidural": IchSubtype.EPIDURAL,
    "intraparenchymal": IchSubtype.INTRAPARENCHYMAL,
    "intraventricular": IchSubtype.INTRAVENTRICULAR,
    "subarachnoid": IchSubtype.SUBARACHNOID,
    "subdural": IchSubtype.SUBDURAL,
    # of no subtype that is told apart here; CQ500 counts blood of any age
    "chronic": IchSubtype.ANY,
}
_SIDES = ("x", "y", "width", "height")


@dataclass(frozen=True, kw_only=True)
class ImageBox:
    """One box in the stored image, pixels, from the corner of the image."""

    subtype: IchSubtype
    left: float
    top: float
    right: float
    bottom: float
    drawn: Literal["manual", "extrapolated"]


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """What the tables hold."""

    by_image: dict[str, tuple[ImageBox, ...]]
    """By SOPInstanceUID."""
    by_series: dict[str, frozenset[str]]
    """SOPInstanceUIDs with boxes, by SeriesInstanceUID."""


def find_tables(root: Path) -> list[Path]:
    """Tables of BHX in a folder or one below it; none where it has none."""
    return [f for name in TABLES for f in (root / name, *sorted(root.glob(f"*/{name}"))) if f.is_file()]


def read_boxes(tables: list[Path], options: ReadOptions) -> Boxes:
    """Read tables; a box that several have counts once, as drawn by hand where one says so.

    Parameters
    ----------
    tables
        With the columns ``SOPInstanceUID``, ``SeriesInstanceUID``, ``labelName``, and ``data``
        (``{'x': 1, 'y': 2, 'width': 3, 'height': 4}``) or the four of it as columns. Where ``labelType`` is absent, the
        table of the manual labelling is drawn by hand and the others are extrapolated.
    options
        Rows that are no box are reported and left out.

    Raises
    ------
    ValueError
        A column is missing.
    """
    found: dict[str, dict[tuple[object, ...], ImageBox]] = defaultdict(dict)
    series: dict[str, set[str]] = defaultdict(set)
    for table in tables:
        needed = ("SOPInstanceUID", "SeriesInstanceUID", "labelName")
        for line, row in rows(table, needed, one_of=("data", "x")):
            box = _box(row, table)
            if isinstance(box, str):
                options.report(FaultKind.CONFLICTING, f"{table}, line {line}", f"{box}; the row is left out")
                continue
            uid = row["sopinstanceuid"]
            place = (box.subtype, *(round(side, 1) for side in (box.left, box.top, box.right, box.bottom)))
            if box.drawn == "manual" or place not in found[uid]:
                found[uid][place] = box
            series[row["seriesinstanceuid"]].add(uid)
    return Boxes(
        by_image={uid: tuple(boxes.values()) for uid, boxes in found.items()},
        by_series={uid: frozenset(images) for uid, images in series.items()},
    )


def _box(row: Row, table: Path) -> ImageBox | str:
    """A box, or what is wrong with the row."""
    name = row["labelname"].casefold()
    subtype = next((s for word, s in _NAMES.items() if word in name), None)
    if subtype is None:
        return f"labelName {row['labelname'][:40]!r} is none of {', '.join(_NAMES)}"
    try:
        data = ast.literal_eval(row["data"]) if row.get("data") else row
        left, top, width, height = (float(data[side]) for side in _SIDES)
    except (ValueError, SyntaxError, KeyError, TypeError):
        return f"data {row.get('data', '')[:60]!r} has no x, y, width and height"
    if not all(map(math.isfinite, (left, top, width, height))) or min(width, height) <= 0:
        return f"the box is {width} wide and {height} high"
    drawn = row.get("labeltype", "") or ("manual" if table.name == TABLES[0] else "extrapolated")
    return ImageBox(
        subtype=subtype,
        left=left,
        top=top,
        right=left + width,
        bottom=top + height,
        drawn="extrapolated" if "extra" in drawn.casefold() else "manual",
    )
