"""Draws what several bundles see in the same slices of CT-ICH, side by side: ``docs/images/systems.png``.

    python -m docs.side_by_side --data CT_ICH --slice 049:15 --bundle vicar-attention-v1 --bundle FOLDER ... --out PNG

Each row is a slice. The first column is the slice with the outline of the intracranial space, the others are what
each system shows: likelihood maps of all its classes with their contours, points or boxes. Maps are drawn whether or
not the slice reaches the bundle's operating point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw
from pydicom import Dataset
from pydicom.uid import generate_uid

from ich_node.findings import (
    AlgorithmIdentification,
    IchSubtype,
    OperatingPoints,
    SeriesFinding,
    SliceFinding,
)
from ich_node.model.bundle import find_bundles
from ich_node.model.intracranial import CoarseMask, intracranial_mask
from ich_node.model.predict import Predictor, load_predictor
from ich_node.report import ReadingReport, drawing
from ich_node.report.contours import contours
from ich_node.report.slice_picture import render_slice
from ich_node.report.viewport import head_region
from training.ct_ich import Scan, estimated_spacing_mm, read_scans

PANE = 380
CAPTION = 66


@click.command()
@click.option(
    "--data", type=click.Path(exists=True, path_type=Path), required=True, help="Folder of CT-ICH v1.0.0."
)
@click.option(
    "--slice", "slices", multiple=True, required=True, help="PATIENT:SLICE as the table numbers them."
)
@click.option(
    "--bundle", "bundles", multiple=True, required=True, help="A shipped bundle's name, or a folder."
)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(data: Path, slices: Sequence[str], bundles: Sequence[str], out: Path) -> None:
    """Draw slices as several bundles see them."""
    shipped = find_bundles()
    predictors = [load_predictor(shipped.get(name, Path(name)), "cpu") for name in bundles]
    scans = {scan.patient: scan for scan in read_scans(data)}
    rows = []
    for text in slices:
        patient, number = text.split(":")
        scan = scans[patient]
        rows.append(draw_row(scan, scan.slice_numbers.index(int(number)), predictors))
    picture = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), drawing.BACKGROUND)
    top = 0
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height
    picture.save(out, optimize=True)


def draw_row(scan: Scan, index: int, predictors: Sequence[Predictor]) -> Image.Image:
    """One slice, and beside it what each predictor sees in it."""
    hu = scan.hu()
    spacing_mm = estimated_spacing_mm(hu)
    mask = intracranial_mask(hu, spacing_mm)
    found = scan.subtypes[index]
    truth = ", ".join(sorted(found)) or "no hemorrhage"
    row = Image.new("RGB", (PANE * (1 + len(predictors)), PANE + CAPTION), drawing.BACKGROUND)
    draw = ImageDraw.Draw(row)
    for column, predictor in enumerate([None, *predictors]):
        picture = (
            _plain(hu, spacing_mm, index, mask)
            if predictor is None
            else _seen(hu, spacing_mm, index, predictor)
        )
        row.paste(picture[0], (column * PANE, CAPTION))
        title = (
            f"patient {scan.patient}, slice {scan.slice_numbers[index]}" if predictor is None else picture[1]
        )
        detail = f"labelled {truth}" if predictor is None else picture[2]
        drawing.write(draw, (column * PANE + 10, 8), title, size=17)
        drawing.write(draw, (column * PANE + 10, 36), detail, size=14, color=drawing.MUTED)
    return row


def _plain(
    hu: np.ndarray, spacing_mm: tuple[float, float, float], index: int, mask: CoarseMask
) -> tuple[Image.Image, str, str]:
    finding = SliceFinding(probabilities={IchSubtype.ANY: 0.0})
    report = _report(hu, spacing_mm, index, finding)
    view = head_region(report, [0], PANE)
    picture = render_slice(report, 0, view, letter_size=14)
    draw = ImageDraw.Draw(picture)
    for contour in contours(mask.on_source_grid(index).astype(np.float32), [0.5]):
        points = [view.to_picture(float(x), float(y)) for x, y in contour.line]
        draw.line(points, fill=drawing.SKY, width=1)
    return picture, "", ""


def _seen(
    hu: np.ndarray, spacing_mm: tuple[float, float, float], index: int, predictor: Predictor
) -> tuple[Image.Image, str, str]:
    about = predictor.algorithm
    # every slice is shown, so that the picture also tells what a system does not see
    predictor.algorithm = replace(
        about, operating_points=OperatingPoints(high_confidence=1.0, sensitive=1e-9)
    )
    finding = predictor.predict(hu, spacing_mm)
    predictor.algorithm = about
    one = finding.slices[index]
    if not one.likelihood_maps:
        raise click.ClickException(f"{about.name}: the slice is not among those whose maps are kept")
    report = _report(hu, spacing_mm, index, one)
    probability = one.probabilities[IchSubtype.ANY]
    detail = f"any {probability:.0%} in this slice, suspicion of the scan {finding.suspicion:.0%}"
    return render_slice(report, 0, head_region(report, [0], PANE), letter_size=14), about.name, detail


def _report(
    hu: np.ndarray, spacing_mm: tuple[float, float, float], index: int, finding: SliceFinding
) -> ReadingReport:
    """A report of the one slice: what the node's own pictures are drawn from."""
    image = Dataset()
    image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID = (generate_uid() for _ in range(3))
    image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    points = OperatingPoints(high_confidence=1.0, sensitive=0.5)
    algorithm = AlgorithmIdentification(
        name="picture", version="1", weights_sha256="0" * 64, operating_points=points
    )
    return ReadingReport(
        finding=SeriesFinding(slices=(finding,), suspicion=0.0, subtypes={}, algorithm=algorithm),
        source_images=[image],
        hu=hu[index : index + 1],
        spacing_mm=spacing_mm,
        run_number=1,
        read_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


if __name__ == "__main__":
    main()
