"""Reader of CT-ICH v1.0.0, pictures in two windows, as labelled scans; `training.ct_ich` says what they lack."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from training import ct_ich
from training.ct_ich import estimated_spacing_mm
from training.readers.faults import ReadOptions
from training.scan import Scan, Volume, labels_of, scan_labels_of

SOURCE = "ct-ich"


def read_ct_ich_jpeg(root: Path, options: ReadOptions | None = None) -> list[Scan]:
    """One scan a patient, by patient number.

    Parameters
    ----------
    root
        With ``Patients_CT`` and ``hemorrhage_diagnosis.csv``.
    options
        Nothing of it is needed.

    Raises
    ------
    FileNotFoundError
        The table, or an image that the table lists, is not there.
    """
    return [_scan(scan) for scan in ct_ich.read_scans(root)]


def _scan(scan: ct_ich.Scan) -> Scan:
    labels = np.stack([labels_of(subtypes) for subtypes in scan.subtypes])
    return Scan(
        source=SOURCE,
        scan_id=scan.patient,
        patient_id=scan.patient,
        slice_ids=tuple(f"{scan.patient}/{number}" for number in scan.slice_numbers),
        labels=labels,
        scan_labels=scan_labels_of(labels),
        read=partial(_volume, scan),
    )


def _volume(scan: ct_ich.Scan) -> Volume:
    hu = scan.hu()
    return Volume(hu=hu, spacing_mm=estimated_spacing_mm(hu), spacing_is_estimated=True, is_of_pictures=True)
