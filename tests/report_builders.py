"""Readings for the tests of the report: hand-made findings on phantom-like or real headers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import Dataset

from ich_node.findings import (
    AlgorithmIdentification,
    IchSubtype,
    Localization,
    OperatingPoints,
    SeriesFinding,
    SliceFinding,
)
from ich_node.report import ReadingReport
from ich_node.testing.series import ct_series

ALGORITHM = AlgorithmIdentification(
    name="test-model",
    version="1.2.3",
    weights_sha256="0123456789abcdef" * 4,
    operating_points=OperatingPoints(high_confidence=0.8, sensitive=0.4),
)
READ_AT = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
SUBTYPE_SHARES = {
    IchSubtype.EPIDURAL: 0.02,
    IchSubtype.INTRAPARENCHYMAL: 0.9,
    IchSubtype.INTRAVENTRICULAR: 0.1,
    IchSubtype.SUBARACHNOID: 0.5,
    IchSubtype.SUBDURAL: 0.05,
}


def series_finding(
    shape: tuple[int, int, int], suspicion: float = 0.9, *, with_subtypes: bool = True
) -> SeriesFinding:
    """A finding that peaks at ``suspicion`` in the middle slice and halves with every slice away from it."""
    slices, rows, columns = shape
    x, y = columns * 0.625, rows * 0.375
    found = []
    for index in range(slices):
        score = suspicion * 0.5 ** abs(index - slices // 2)
        shares = {IchSubtype.ANY: 1.0, **(SUBTYPE_SHARES if with_subtypes else {})}
        found.append(
            SliceFinding(
                probabilities={s: score * f for s, f in shares.items()},
                localizations=_places(x, y, score) if score >= 0.4 else (),
                likelihood_maps=(
                    {s: _map(shape[1:], x, y, score * f) for s, f in shares.items()} if score >= 0.4 else {}
                ),
            )
        )
    subtypes = {s: suspicion * f for s, f in SUBTYPE_SHARES.items()} if with_subtypes else {}
    return SeriesFinding(slices=tuple(found), suspicion=suspicion, subtypes=subtypes, algorithm=ALGORITHM)


def _places(x: float, y: float, score: float) -> tuple[Localization, ...]:
    box = (x - 4, y - 3, x + 4, y + 3)
    return (
        Localization(kind="point", subtype=IchSubtype.ANY, coordinates=(x, y), score=score),
        Localization(kind="box", subtype=IchSubtype.INTRAVENTRICULAR, coordinates=box, score=score / 2),
    )


def _map(shape: tuple[int, int], x: float, y: float, score: float) -> npt.NDArray[np.float32]:
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    away = ((columns - x) / (shape[1] / 8)) ** 2 + ((rows - y) / (shape[0] / 8)) ** 2
    return (score * np.exp(-away)).astype(np.float32)


def head(shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """A disc of brain inside a ring of bone, in air: (slices, rows, columns) float32, HU."""
    _, rows, columns = shape
    y, x = np.mgrid[:rows, :columns]
    away = np.hypot((x - columns / 2) / columns, (y - rows / 2) / rows)
    slice_hu = np.where(away < 0.34, 35.0, np.where(away < 0.40, 900.0, -1000.0))
    return np.broadcast_to(slice_hu, shape).astype(np.float32)


def make_report(
    suspicion: float = 0.9,
    *,
    shape: tuple[int, int, int] = (12, 64, 64),
    with_subtypes: bool = True,
    header: dict[str, Any] | None = None,
    **changes: Any,
) -> ReadingReport:
    """A report on a small head; ``header`` sets attributes of every image, or deletes them where None."""
    hu = head(shape)
    images: list[Dataset] = list(ct_series(hu, (5.0, 3.0, 3.0), name="report"))
    for image in images:
        del image.PixelData
        for keyword, value in (header or {}).items():
            if value is None:
                image.pop(keyword, None)
            else:
                setattr(image, keyword, value)
    report = ReadingReport(
        finding=series_finding(shape, suspicion, with_subtypes=with_subtypes),
        source_images=images,
        hu=hu,
        spacing_mm=(5.0, 3.0, 3.0),
        run_number=1,
        read_at=READ_AT,
    )
    return replace(report, **changes)


def real_report(paths: Sequence[Path], suspicion: float = 0.9, **changes: Any) -> ReadingReport:
    """A report with a hand-made finding on the headers and pixels of real files."""
    images = [pydicom.dcmread(path) for path in paths]
    row, column = np.split(np.asarray(images[0].ImageOrientationPatient, dtype=float), 2)
    normal = np.cross(row, column)
    images.sort(key=lambda image: float(np.asarray(image.ImagePositionPatient, dtype=float) @ normal))
    hu = np.stack([i.pixel_array * float(i.RescaleSlope) + float(i.RescaleIntercept) for i in images])
    spacing = [float(v) for v in images[0].PixelSpacing]
    for image in images:
        del image.PixelData
    report = ReadingReport(
        finding=series_finding(hu.shape, suspicion),
        source_images=images,
        hu=hu.astype(np.float32),
        spacing_mm=(5.0, spacing[0], spacing[1]),
        run_number=1,
        read_at=READ_AT,
        caveats=("Gantry tilt of 18.5 degrees.",),
    )
    return replace(report, **changes)
