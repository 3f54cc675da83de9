"""Draws where a run's networks fail on patients that they never saw: ``docs/images/lite-mil-failures.png``.

    python -m docs.failures --data CT_ICH --run training-runs/lite-mil --out PNG

First the slices with hemorrhage that got the lowest scores, then those without that got the highest, at most two of a
patient. Beside each slice is what the network of its fold sees. Nothing is chosen by eye.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from PIL import Image

from docs.side_by_side import draw_row
from ich_node.model.predict import load_predictor
from ich_node.report import drawing
from training.ct_ich import read_scans
from training.predictions import Predictions
from training.run import predictions_of

_OF_A_PATIENT = 2


@click.command()
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True, help="CT-ICH v1.0.0.")
@click.option("--run", type=click.Path(exists=True, path_type=Path), required=True, help="Cross-validation.")
@click.option("--count", default=4, show_default=True, help="Slices of each kind.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(data: Path, run: Path, count: int, out: Path) -> None:
    """Draw the worst slices of a cross-validation."""
    predictions = predictions_of(run)
    if predictions is None:
        raise click.ClickException(f"{run}: not all folds are done")
    scans = {scan.patient: scan for scan in read_scans(data)}
    rows = []
    for row in worst(predictions, count):
        scan = int(predictions.scan[row])
        fold = int(predictions.fold[scan])
        (bundle,) = (run / f"fold{fold}").glob(f"*-fold{fold}")
        index = int(row - np.flatnonzero(predictions.scan == scan)[0])
        rows.append(draw_row(scans[str(predictions.scan_ids[scan])], index, [load_predictor(bundle, "cpu")]))
    columns = 2
    width, height = rows[0].width, rows[0].height
    picture = Image.new("RGB", (columns * width, -(-len(rows) // columns) * height), drawing.BACKGROUND)
    for number, row in enumerate(rows):
        picture.paste(row, (number % columns * width, number // columns * height))
    picture.save(out, optimize=True)


def worst(predictions: Predictions, count: int) -> list[int]:
    """Rows of the slices that failed most: positives by rising score, then negatives by falling score."""
    label, score = predictions.labels[:, 0], predictions.logits[:, 0]
    inside = np.isfinite(score)
    found: list[int] = []
    for wanted, order in ((1, np.argsort(score)), (0, np.argsort(-score))):
        taken: list[int] = []
        for row in order:
            scan = predictions.scan[row]
            alike = sum(predictions.scan[other] == scan for other in taken)
            if inside[row] and label[row] == wanted and alike < _OF_A_PATIENT and len(taken) < count:
                taken.append(int(row))
        found += taken
    return found


if __name__ == "__main__":
    main()
