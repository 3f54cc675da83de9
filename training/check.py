"""What is wrong with labelled data before anything is trained on it: missing, doubled, damaged, leaking."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ich_node.findings import IchSubtype
from training.readers.faults import Fault, FaultKind
from training.scan import ABSENT, CLASSES, PRESENT, UNKNOWN, Scan
from training.split import Split

_SHOWN = 20
_ANY = CLASSES.index(IchSubtype.ANY)
Unit = Literal["slices", "scans", "patients"]


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """How many slices, scans or patients of one class."""

    unit: Unit
    subtype: str
    present: int
    absent: int
    unknown: int


@dataclass(frozen=True, kw_only=True)
class Range:
    """Lowest, middle and highest of one measure over scans."""

    measure: str
    lowest: float
    median: float
    highest: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the check found."""

    sources: tuple[str, ...]
    scans: int
    slices: int
    patients: int
    synthetic_scans: int
    """Of the scans; they are in no other number."""
    images_were_read: bool
    counts: tuple[ClassCount, ...]
    ranges: tuple[Range, ...]
    faults: tuple[Fault, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing leaks, and nothing is damaged, doubled or contradictory."""
        return not {f.kind for f in self.faults} & {
            FaultKind.LEAKING,
            FaultKind.DAMAGED,
            FaultKind.DOUBLED,
            FaultKind.CONFLICTING,
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "is_sound": self.is_sound}

    def text(self) -> str:
        """As plain text, tables aligned."""
        return "\n".join(_lines(self)) + "\n"


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What reading one scan showed."""

    digests: tuple[bytes, ...] = ()
    """Of each slice; empty for a blank one."""
    measures: Mapping[str, float] | None = None
    faults: tuple[Fault, ...] = ()


def check(
    scans: Sequence[Scan],
    split: Split | None = None,
    *,
    faults: Iterable[Fault] = (),
    read_images: bool = False,
    processes: int = 1,
) -> Report:
    """Look for what spoils training or makes a measurement untrue.

    Parameters
    ----------
    scans
        From any readers.
    split
        Patients that lie on both sides of it are found.
    faults
        What the readers found.
    read_images
        Decode everything: damaged scans and identical images are found so, and spacings are known.
    processes
        How many decode.
    """
    real = [s for s in scans if not s.synthetic]
    seen = list(_looked_at(scans, processes)) if read_images else []
    found = [*faults, *_doubled(scans), *_contradictions(scans), *_two_patients(scans)]
    if split is not None:
        found += _outside(real, split)
        found += _one_patient_two_names(real, split)
    found += [fault for s in seen for fault in s.faults]
    found += _identical(scans, seen, split)
    order = list(FaultKind)
    return Report(
        sources=tuple(sorted({s.source for s in scans})),
        scans=len(scans),
        slices=sum(len(s.labels) for s in real),
        patients=len({s.patient_id for s in real}),
        synthetic_scans=len(scans) - len(real),
        images_were_read=read_images,
        counts=tuple(_counts(real)),
        ranges=tuple(_ranges(real, [s for s, scan in zip(seen, scans, strict=False) if not scan.synthetic])),
        faults=tuple(sorted(found, key=lambda f: order.index(f.kind))),
    )


# --- labels and names


def _doubled(scans: Sequence[Scan]) -> Iterator[Fault]:
    by_name = Counter((s.source, s.scan_id) for s in scans)
    for (source, name), times in by_name.items():
        if times > 1:
            yield Fault(kind=FaultKind.DOUBLED, where=f"{source} {name}", what=f"{times} scans have this id")
    where: dict[tuple[str, str], list[str]] = defaultdict(list)
    for scan in scans:
        if by_name[scan.source, scan.scan_id] == 1:
            for name in scan.slice_ids:
                where[scan.source, name].append(scan.scan_id)
    for (source, name), names in where.items():
        if len(names) > 1:
            what = f"this slice is in scans {', '.join(names)}"
            yield Fault(kind=FaultKind.DOUBLED, where=f"{source} {name}", what=what)


def _contradictions(scans: Sequence[Scan]) -> Iterator[Fault]:
    for scan in scans:
        subtypes = np.delete(scan.labels, _ANY, axis=1)
        odd = int(((scan.labels[:, _ANY] == ABSENT) & (subtypes == PRESENT).any(axis=1)).sum())
        if odd:
            what = f"{odd} slices show a subtype and no hemorrhage"
            yield Fault(kind=FaultKind.CONFLICTING, where=f"{scan.source} {scan.scan_id}", what=what)
        for c, name in enumerate(CLASSES):
            if scan.scan_labels[c] == ABSENT and (scan.labels[:, c] == PRESENT).any():
                what = f"{name} is in a slice and not in the scan"
                yield Fault(kind=FaultKind.CONFLICTING, where=f"{scan.source} {scan.scan_id}", what=what)
            if scan.scan_labels[c] == PRESENT and (scan.labels[:, c] == ABSENT).all():
                what = f"{name} is in the scan and in none of its slices"
                yield Fault(kind=FaultKind.CONFLICTING, where=f"{scan.source} {scan.scan_id}", what=what)


def _two_patients(scans: Sequence[Scan]) -> Iterator[Fault]:
    """Scans, or slices, that two patients have by name."""
    owners: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for scan in scans:
        owners[scan.source, "scan", scan.scan_id].add(scan.patient_id)
        for name in scan.slice_ids:
            owners[scan.source, "slice", name].add(scan.patient_id)
    for (source, kind, name), patients in owners.items():
        if len(patients) > 1:
            what = f"this {kind} is under patients {', '.join(sorted(patients))}"
            yield Fault(kind=FaultKind.LEAKING, where=f"{source} {name}", what=what)


def _outside(scans: Sequence[Scan], split: Split) -> Iterator[Fault]:
    known = split.folds.keys() | split.held_out.keys()
    for patient in sorted({s.patient_id for s in scans} - known):
        what = f"split {split.name} has no part for this patient"
        yield Fault(kind=FaultKind.LEFT_OUT, where=f"patient {patient}", what=what)
    for patient in sorted(known - {s.patient_id for s in scans}):
        what = f"split {split.name} names a patient of whom there is no scan"
        yield Fault(kind=FaultKind.LABEL_WITHOUT_IMAGE, where=f"patient {patient}", what=what)


def _one_patient_two_names(scans: Sequence[Scan], split: Split) -> Iterator[Fault]:
    """Patients whose names differ by case, blanks or leading zeros only: tables that lost them are common."""
    alike: dict[str, set[str]] = defaultdict(set)
    for scan in scans:
        alike[scan.patient_id.strip().casefold().lstrip("0")].add(scan.patient_id)
    for names in alike.values():
        parts = {_part(split, name) for name in names}
        if len(parts - {None}) > 1:
            what = "these are most likely one patient, and in different parts of the split"
            yield Fault(kind=FaultKind.LEAKING, where=f"patients {', '.join(sorted(names))}", what=what)


def _part(split: Split, patient: str) -> int | str | None:
    return split.folds.get(patient, split.held_out.get(patient))


# --- images


def _looked_at(scans: Sequence[Scan], processes: int) -> Iterator[_Seen]:
    if processes < 2:
        yield from map(_look, scans)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_look, scans)


def _look(scan: Scan) -> _Seen:
    where = f"{scan.source} {scan.scan_id}"
    try:
        volume = scan.read()
    except (OSError, ValueError) as error:
        return _Seen(faults=(Fault(kind=FaultKind.DAMAGED, where=where, what=f"cannot be read: {error}"),))
    if len(volume.hu) != len(scan.slice_ids):
        what = f"has {len(volume.hu)} images and {len(scan.slice_ids)} labelled slices"
        return _Seen(faults=(Fault(kind=FaultKind.DAMAGED, where=where, what=what),))
    faults = []
    if volume.lesion is not None:
        outlined = np.asarray(volume.lesion.any(axis=(2, 3)))
        for what, odd in (
            ("are outlined and labelled absent", outlined & (scan.labels == ABSENT)),
            ("are labelled present and not outlined", ~outlined[:, _ANY] & (scan.labels[:, _ANY] == PRESENT)),
        ):
            count = int(odd.reshape(len(odd), -1).any(axis=1).sum())
            if count:
                faults.append(Fault(kind=FaultKind.CONFLICTING, where=where, what=f"{count} slices {what}"))
    return _Seen(
        digests=tuple(map(_digest, volume.hu)),
        measures={
            "slice distance, mm" + (", estimated" if volume.spacing_is_estimated else ""): volume.spacing_mm[
                0
            ],
            "pixel distance, mm" + (", estimated" if volume.spacing_is_estimated else ""): volume.spacing_mm[
                2
            ],
            "field of view, mm": volume.spacing_mm[2] * volume.hu.shape[2],
        },
        faults=tuple(faults),
    )


def _digest(image: npt.NDArray[np.float32]) -> bytes:
    """Hash of whole HU with the size; empty for an image of one value, which many scans end with."""
    if image.min() == image.max():
        return b""
    whole = np.rint(image).astype(np.int16)
    return hashlib.sha256(repr(whole.shape).encode() + np.ascontiguousarray(whole).tobytes()).digest()


def _identical(scans: Sequence[Scan], seen: Sequence[_Seen], split: Split | None) -> Iterator[Fault]:
    """Identical images, told once for each set of scans that shares some."""
    holders: dict[bytes, list[int]] = defaultdict(list)
    for index, one in enumerate(seen):
        for digest in one.digests:
            if digest:
                holders[digest].append(index)
    shared = Counter(tuple(sorted(indices)) for indices in holders.values() if len(indices) > 1)
    for indices, times in shared.items():
        own = [scans[i] for i in dict.fromkeys(indices)]
        patients = sorted({s.patient_id for s in own})
        parts = {_part(split, p) for p in patients} - {None} if split is not None else set()
        where = ", ".join(f"{s.source} {s.scan_id}" for s in own)
        if len(patients) > 1:
            across = f", in parts {', '.join(sorted(map(str, parts)))} of the split" if len(parts) > 1 else ""
            what = f"{times} identical images under patients {', '.join(patients)}{across}"
            yield Fault(kind=FaultKind.LEAKING, where=where, what=what)
        else:
            yield Fault(kind=FaultKind.DOUBLED, where=where, what=f"{times} images are there more than once")


# --- numbers


def _counts(scans: Sequence[Scan]) -> Iterator[ClassCount]:
    if not scans:
        return
    patients: dict[str, list[npt.NDArray[np.int8]]] = defaultdict(list)
    for scan in scans:
        patients[scan.patient_id].append(scan.scan_labels)
    labels: dict[Unit, npt.NDArray[np.int8]] = {
        "slices": np.concatenate([s.labels for s in scans]),
        "scans": np.stack([s.scan_labels for s in scans]),
        "patients": np.stack([_of_patient(np.stack(own)) for own in patients.values()]),
    }
    for unit, values in labels.items():
        for c, name in enumerate(CLASSES):
            present, absent, unknown = (int((values[:, c] == v).sum()) for v in (PRESENT, ABSENT, UNKNOWN))
            yield ClassCount(unit=unit, subtype=name.value, present=present, absent=absent, unknown=unknown)


def _of_patient(scan_labels: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    present, absent = (scan_labels == PRESENT).any(axis=0), (scan_labels == ABSENT).all(axis=0)
    return np.where(present, PRESENT, np.where(absent, ABSENT, UNKNOWN)).astype(np.int8)


def _ranges(scans: Sequence[Scan], seen: Sequence[_Seen]) -> Iterator[Range]:
    measured: dict[str, list[float]] = defaultdict(list)
    measured["slices a scan"] = [float(len(s.labels)) for s in scans]
    for one in seen:
        for name, value in (one.measures or {}).items():
            measured[name].append(value)
    for name, values in measured.items():
        if values:
            yield Range(
                measure=name, lowest=min(values), median=float(np.median(values)), highest=max(values)
            )


# --- text


def _lines(report: Report) -> Iterator[str]:
    yield f"{', '.join(report.sources) or 'nothing'}: {report.patients} patients, {report.slices} slices"
    yield f"{report.scans} scans, {report.synthetic_scans} of them phantoms, which are not counted below"
    yield ""
    yield from _table(
        ("", "class", "present", "absent", "unknown"),
        [(c.unit, c.subtype, str(c.present), str(c.absent), str(c.unknown)) for c in report.counts],
    )
    yield ""
    yield from _table(
        ("", "lowest", "median", "highest"),
        [(r.measure, f"{r.lowest:.2f}", f"{r.median:.2f}", f"{r.highest:.2f}") for r in report.ranges],
    )
    yield ""
    if not report.images_were_read:
        yield "Images were not read: damaged pixels and identical images would not show."
    if not report.faults:
        yield "Nothing is wrong."
    for kind in FaultKind:
        own = [f for f in report.faults if f.kind is kind]
        if own:
            yield f"{kind}: {len(own)}"
            yield from (f"  {f.where}: {f.what}" for f in own[:_SHOWN])
            if len(own) > _SHOWN:
                yield f"  and {len(own) - _SHOWN} more"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns aligned: words to the left, numbers to the right."""
    table = [header, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    words = [i == 0 or not any(row[i][:1].isdigit() for row in rows) for i in range(len(header))]
    for row in table:
        cells = (
            cell.ljust(width) if is_word else cell.rjust(width)
            for cell, width, is_word in zip(row, widths, words, strict=True)
        )
        yield "  ".join(cells).rstrip()
