"""Draws where networks fail: ``failures.png`` beside the card of ``vicar-attention-v1``.

    python -m docs.failures --data CT_ICH --bundle vicar-attention-v1 --out PNG
    python -m docs.failures --data CT_ICH --run training-runs/lite-mil --out PNG

A run's networks on patients that they never saw, or a bundle on all patients: if it was trained on them, it fails less
than on others. First the slices with hemorrhage that got the lowest scores, then those without that got the highest,
at most two of a patient. Nothing is chosen by eye.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from PIL import Image

from docs.side_by_side import draw_row
from ich_node.model.bundle import find_bundles
from ich_node.model.predict import load_predictor
from ich_node.report import drawing
from training import reading
from training.ct_ich import read_scans
from training.predictions import Predictions
from training.readers.ct_ich_jpeg import read_ct_ich_jpeg
from training.run import predictions_of

_OF_A_PATIENT = 2


@click.command()
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True, help="CT-ICH v1.0.0.")
@click.option("--run", type=click.Path(exists=True, path_type=Path), help="Cross-validation.")
@click.option("--bundle", "name", help="A shipped bundle's name, or a folder.")
@click.option("--count", default=4, show_default=True, help="Slices of each kind.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(data: Path, run: Path | None, name: str | None, count: int, out: Path) -> None:
    """Draw the worst slices of a cross-validation or of a bundle."""
    if (run is None) == (name is None):
        raise click.UsageError("give --run or --bundle")
    if run is not None:
        predictions = predictions_of(run)
        if predictions is None:
            raise click.ClickException(f"{run}: not all folds are done")
        bundles = [
            bundle
            for n in range(predictions.fold.max() + 1)
            for bundle in (run / f"fold{n}").glob(f"*-fold{n}")
        ]
    else:
        bundles = [find_bundles().get(str(name), Path(str(name)))]
        predictions = reading.read_scans(
            bundles[0], read_ct_ich_jpeg(data), system="", split="", places=False
        )
    scans = {scan.patient: scan for scan in read_scans(data)}
    rows = []
    for row in worst(predictions, count):
        scan = int(predictions.scan[row])
        index = int(row - np.flatnonzero(predictions.scan == scan)[0])
        predictor = load_predictor(bundles[int(predictions.fold[scan])], "cpu")
        rows.append(draw_row(scans[str(predictions.scan_ids[scan])], index, [predictor]))
    columns = 2
    width, height = rows[0].width, rows[0].height
    picture = Image.new("RGB", (columns * width, -(-len(rows) // columns) * height), drawing.BACKGROUND)
    for number, drawn in enumerate(rows):
        picture.paste(drawn, (number % columns * width, number // columns * height))
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
