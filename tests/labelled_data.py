"""Writers of tiny labelled data sets in the layouts that `training.readers` reads."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import FileDataset

from ich_node.findings import IchSubtype
from ich_node.testing.phantom import HeadPhantom, head_phantom
from ich_node.testing.series import phantom_series
from training.scan import CLASSES, PRESENT, Labels, Scan, Volume, scan_labels_of

SLICES = 12
PIXELS = 64
KINDS = ("Epidural", "Intraparenchymal", "Intraventricular", "Subarachnoid", "Subdural")


@lru_cache(maxsize=8)
def small_head(seed: int = 0) -> HeadPhantom:
    """A coarse head of 12 slices with an epidural bleed."""
    return head_phantom(
        bleeds=[IchSubtype.EPIDURAL],
        seed=seed,
        slices=SLICES,
        rows=PIXELS,
        columns=PIXELS,
        slice_spacing_mm=10.0,
    )


def write_table(file: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    """Write a CSV."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as text:
        table = csv.writer(text)
        table.writerow(header)
        table.writerows(rows)
    return file


def write_series(
    folder: Path,
    *,
    seed: int = 0,
    change: Callable[[int, FileDataset], None] | None = None,
    file_name: Callable[[int], str] = "CT{:06d}.dcm".format,
    **options: Any,
) -> list[FileDataset]:
    """Write the small head as DICOM, and return what was written, inferior to superior."""
    folder.mkdir(parents=True, exist_ok=True)
    images = phantom_series(small_head(seed), **options)
    for index, image in enumerate(images):
        if change is not None:
            change(index, image)
        image.save_as(folder / file_name(index))
    return images


def write_rsna(root: Path, labels: Mapping[str, Mapping[str, int]], stage: int = 2) -> Path:
    """Write a table of the challenge: labels by image and subtype; what a subtype lacks is 0."""
    rows = [
        (f"{image}_{c}", found.get(c.value, int(c is IchSubtype.ANY and any(found.values()))))
        for image, found in labels.items()
        for c in CLASSES
    ]
    return write_table(root / f"stage_{stage}_train.csv", ("ID", "Label"), rows)


def write_rsna_series(
    root: Path, name: str, patient: str, *, folder: str = "stage_2_train", seed: int = 0
) -> list[str]:
    """Write one series as the challenge does, few attributes and ``ID_`` for UIDs; return its images, inferior first.

    By name the topmost slice comes first.
    """
    images = [f"ID_{name}{SLICES - 1 - i:02d}" for i in range(SLICES)]

    def strip(index: int, image: FileDataset) -> None:
        for element in list(image):
            if element.tag.group < 0x0020 and element.keyword != "Modality":
                del image[element.tag]
        del image.FrameOfReferenceUID, image.InstanceNumber, image.RescaleType
        image.PatientID = patient
        uids = (images[index], f"ID_study{name}", f"ID_series{name}")
        for tag, uid in zip((0x00080018, 0x0020000D, 0x0020000E), uids, strict=True):
            image[tag] = DataElement(tag, "UI", uid, validation_mode=config.IGNORE)

    write_series(root / folder, seed=seed, change=strip, file_name=lambda index: f"{images[index]}.dcm")
    return images


def write_cq500(root: Path, number: int, reads: Sequence[Mapping[str, int]]) -> list[FileDataset]:
    """Write one scan of CQ500 and add its row to ``reads.csv``; each of three readers names what is present."""
    columns = ("ICH", "IPH", "IVH", "SDH", "EDH", "SAH", "ChronicBleed", "Fracture")
    table = root / "reads.csv"
    if not table.exists():
        write_table(table, ("name", "Category", *(f"R{r}:{c}" for r in (1, 2, 3) for c in columns)), [])
    with table.open("a", newline="") as text:
        row = [reader.get(c, 0) for reader in reads for c in columns]
        csv.writer(text).writerow([f"CQ500-CT-{number}", "B1", *row])
    folder = root / f"CQ500CT{number} CQ500CT{number}" / "Unknown Study"
    who = {"patient_id": f"CQ500CT{number}", "patient_name": f"CQ500CT{number}", "name": f"cq500 {number}"}
    # a bone kernel, which the node never chooses
    write_series(
        folder / "CT BONE", series_description="BONE", convolution_kernel="BONE", series_number=3, **who
    )
    return write_series(folder / "CT Plain", series_description="Plain", **who)


def write_boxes(
    file: Path, rows: Sequence[tuple[FileDataset, str, tuple[float, float, float, float]]]
) -> Path:
    """Write a table of BHX: image, label and (x, y, width, height); the columns in an order of its own."""
    return write_table(
        file,
        ("", "labelName", "SOPInstanceUID", "data", "StudyInstanceUID", "SeriesInstanceUID"),
        [
            (
                number,
                label,
                image.SOPInstanceUID,
                str(dict(zip(("x", "y", "width", "height"), box, strict=True))),
                image.StudyInstanceUID,
                image.SeriesInstanceUID,
            )
            for number, (image, label, box) in enumerate(rows)
        ],
    )


def write_nifti(root: Path, patient: int, labels: Mapping[int, Sequence[str]], *, axes: str = "LPS") -> None:
    """Write one patient of CT-ICH v1.3.1: image, outline and rows of the table, the small head.

    Parameters
    ----------
    labels
        Kinds of hemorrhage by slice number, from 1 in stored order; the others have none.
    axes
        How the array is stored, by the directions in which its columns, rows and slices grow.
    """
    head = small_head()
    upright = nibabel.Nifti1Image(
        head.hu.transpose(2, 1, 0).astype(np.int16),
        np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.diag([3.5, 3.6, 10.0, 1.0]),
    )
    mask = nibabel.Nifti1Image(
        head.masks[IchSubtype.ANY].transpose(2, 1, 0).astype(np.uint8) * 255, upright.affine
    )
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(upright.affine), nibabel.orientations.axcodes2ornt(tuple(axes))
    )
    for folder, image in (("ct_scans", upright), ("masks", mask)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        nibabel.save(image.as_reoriented(turn), root / folder / f"{patient:03d}.nii")
    table = root / "hemorrhage_diagnosis_raw_ct.csv"
    if not table.exists():
        write_table(table, ("PatientNumber", "SliceNumber", *KINDS, "No_Hemorrhage", "Fracture_Yes_No"), [])
    with table.open("a", newline="") as text:
        for number in range(1, SLICES + 1):
            flags = [int(kind in labels.get(number, ())) for kind in KINDS]
            csv.writer(text).writerow([patient, number, *flags, int(not any(flags)), 0])


def made_scan(
    scan_id: str = "scan",
    *,
    patient_id: str | None = None,
    present: Mapping[int, Sequence[IchSubtype]] | None = None,
    slices: int = 4,
    read: Callable[[], Volume] | None = None,
    **attributes: Any,
) -> Scan:
    """A scan without files; its images hold numbers that follow from its name.

    Parameters
    ----------
    present
        Subtypes by slice; *any* follows. Everything else is absent.
    """
    labels: Labels = np.zeros((slices, len(CLASSES)), np.int8)
    for index, subtypes in (present or {}).items():
        labels[index, [CLASSES.index(c) for c in (IchSubtype.ANY, *subtypes)]] = PRESENT
    given = {
        "source": "made",
        "labels": labels,
        "scan_labels": scan_labels_of(labels),
        "slice_ids": tuple(f"{scan_id}/{i}" for i in range(slices)),
    }
    return Scan(
        scan_id=scan_id,
        patient_id=scan_id if patient_id is None else patient_id,
        read=read or (lambda: made_volume(scan_id, slices)),
        **{**given, **attributes},
    )


def made_volume(content: str, slices: int = 4, **attributes: Any) -> Volume:
    """Images of noise, the same for the same content."""
    hu = np.random.default_rng(list(content.encode())).normal(30, 50, (slices, 16, 16)).astype(np.float32)
    return Volume(**{"hu": hu, "spacing_mm": (5.0, 0.5, 0.5), **attributes})
