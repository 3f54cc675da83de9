"""Builds a small data set in the layout of CT-ICH v1.0.0 from phantoms."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from ich_node.findings import IchSubtype
from ich_node.testing.phantom import head_phantom


def write_pictures(root: Path) -> None:
    """Write four patients, the first and the third with an epidural bleed, 14 slices of 144 x 144 each."""
    with (root / "hemorrhage_diagnosis.csv").open("w", newline="") as file:
        table = csv.writer(file)
        kinds = ["Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural", "Subdural"]
        table.writerow(["PatientNumber", "SliceNumber", *kinds, "No_Hemorrhage", "Fracture_Yes_No"])
        for patient in range(1, 5):
            bleeds = [IchSubtype.EPIDURAL] if patient % 2 else []
            head = head_phantom(
                bleeds=bleeds, seed=700 + patient, rows=144, columns=144, slices=14, slice_spacing_mm=10
            )
            for number, (hu, found) in enumerate(
                zip(head.hu, head.subtypes_by_slice(), strict=True), start=1
            ):
                for window, low, width in (("brain", -20, 120), ("bone", -900, 3200)):
                    folder = root / "Patients_CT" / f"{patient:03d}" / window
                    folder.mkdir(parents=True, exist_ok=True)
                    grey = np.clip((hu - low) / width * 255, 0, 255).astype(np.uint8)
                    Image.fromarray(grey).save(folder / f"{number}.jpg", quality=95)
                flags = [int(IchSubtype(k.lower()) in found) for k in kinds]
                table.writerow([patient, number, *flags, int(not any(flags)), 0])


TINY_RECIPE = """architecture = "{architecture}"
name = "tiny"
source = "seconds of training, for tests"

[network]
{network}

[preprocessing]
size = 64
pitch_mm = 3.2

[localization]
threshold = 0.3
height = 0.01

[mix]
positives = 2
negatives = 2
transplants = 2
phantoms = 2

[augment]
rotation_deg = 5

[schedule]
epochs = 1
steps_per_epoch = 2
average_decay = 0.5

[loss]
positions = 1.0
"""
"""A recipe whose training takes a second; ``architecture`` and ``network`` are to be filled in."""


def write_recipe(
    file: Path, architecture: str = "vicar-mil", network: str = "widths = [4, 8, 8]\nattention_width = 8"
) -> Path:
    """Write a recipe whose training takes a second."""
    file.write_text(TINY_RECIPE.format(architecture=architecture, network=network), encoding="utf-8")
    return file
