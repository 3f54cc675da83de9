"""Everything that is made of one reading, each object once, for all who want it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from pydicom import Dataset

from ich_node.report.compression import Compression, compress_capture
from ich_node.report.key_object_selection import build_key_object_selection
from ich_node.report.parametric_map import build_parametric_map
from ich_node.report.presentation_state import build_presentation_state
from ich_node.report.reading_report import ReadingReport
from ich_node.report.secondary_capture import build_secondary_captures
from ich_node.report.segmentation import build_segmentation
from ich_node.report.sr_class import SrClass, SrForm
from ich_node.report.structured_report import build_structured_report

logger = logging.getLogger(__name__)


class ResultKind(StrEnum):
    """Kinds of result objects, by the names that settings, rows and pages give them."""

    SR = "SR"
    """Structured report."""
    SC = "SC"
    """Secondary captures: summary and overlays."""
    SEG = "SEG"
    """Segmentation of the likelihood."""
    GSPS = "GSPS"
    """Grayscale softcopy presentation state for the source slices."""
    KOS = "KOS"
    """Key object selection of the suspicious slices."""
    PM = "PM"
    """Parametric map of the likelihood."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What one destination wants of each reading."""

    kinds: frozenset[ResultKind] = frozenset({ResultKind.SR, ResultKind.SC})
    sr_class: SrClass = SrClass.COMPREHENSIVE_3D
    sc_compression: Compression = Compression.NONE


@dataclass(frozen=True, kw_only=True)
class ResultObject:
    """One object, and who wants it."""

    kind: ResultKind
    form: str = ""
    """What tells it from the same content in the form that the node itself shows; empty for that."""
    dataset: Dataset
    destinations: tuple[str, ...]

    @property
    def name(self) -> str:
        """Kind and form, as rows and pages name it."""
        return f"{self.kind}/{self.form}" if self.form else str(self.kind)


def build_result_objects(report: ReadingReport, wishes: Mapping[str, Wish]) -> list[ResultObject]:
    """Make the objects of a reading.

    Parameters
    ----------
    report
        The reading.
    wishes
        Of each destination, by its name.

    Returns
    -------
    list of ResultObject
        In the order in which a person looks at them. The first is the structured report in its default form and the
        next are uncompressed secondary captures, which the node itself shows, whether a destination wants them or
        not. Kinds that do not exist for this reading, such as key objects where nothing is suspicious, are left out;
        so is, with its traceback in the log, an optional one that cannot be made: the report goes out without it
        rather than not at all.
    """
    making = _Making(report)
    return [
        *making.reports(wishes),
        *making.captures(wishes),
        *making.others(wishes),
    ]


class _Making:
    """What of a reading is made once and used more than once."""

    def __init__(self, report: ReadingReport) -> None:
        self._report = report

    @cached_property
    def segmentation(self) -> Dataset | None:
        return self._if_it_can_be_made(ResultKind.SEG, lambda: build_segmentation(self._report))

    def reports(self, wishes: Mapping[str, Wish]) -> Iterator[ResultObject]:
        """One structured report of each class, and with the segmentation where that goes with it."""
        forms: dict[SrForm, list[str]] = {SrForm(): []}
        for name, wish in wishes.items():
            if ResultKind.SR in wish.kinds:
                with_segmentation = ResultKind.SEG in wish.kinds and self.segmentation is not None
                form = SrForm(sr_class=wish.sr_class, with_segmentation=with_segmentation)
                forms.setdefault(form, []).append(name)
        for form, names in forms.items():
            segmentation = self.segmentation if form.with_segmentation else None
            made = build_structured_report(self._report, sr_class=form.sr_class, segmentation=segmentation)
            yield ResultObject(kind=ResultKind.SR, form=str(form), dataset=made, destinations=tuple(names))

    def captures(self, wishes: Mapping[str, Wish]) -> Iterator[ResultObject]:
        """The secondary captures in each compression; they are drawn once."""
        forms: dict[Compression, list[str]] = {Compression.NONE: []}
        for name in _wanting(wishes, ResultKind.SC):
            forms.setdefault(wishes[name].sc_compression, []).append(name)
        drawn = build_secondary_captures(self._report)
        compressed: list[ResultObject] = []
        for compression, names in list(forms.items())[1:]:
            try:
                made = [compress_capture(capture, compression) for capture in drawn]
            except Exception:  # an encoder's own; uncompressed is better than not at all
                logger.exception("secondary captures cannot be compressed as %s", compression)
                forms[Compression.NONE] += names
                continue
            compressed += [_capture(one, str(compression), names) for one in made]
        yield from (_capture(one, "", forms[Compression.NONE]) for one in drawn)
        yield from compressed

    def others(self, wishes: Mapping[str, Wish]) -> Iterator[ResultObject]:
        """What is made only where somebody wants it."""
        builders: dict[ResultKind, Callable[[], Dataset | None]] = {
            ResultKind.SEG: lambda: self.segmentation,
            ResultKind.GSPS: lambda: build_presentation_state(self._report),
            ResultKind.KOS: lambda: build_key_object_selection(self._report),
            ResultKind.PM: lambda: build_parametric_map(self._report),
        }
        for kind, build in builders.items():
            names = _wanting(wishes, kind)
            made = self._if_it_can_be_made(kind, build) if names else None
            if made is not None:
                yield ResultObject(kind=kind, dataset=made, destinations=tuple(names))

    def _if_it_can_be_made(self, kind: ResultKind, build: Callable[[], Dataset | None]) -> Dataset | None:
        try:
            return build()
        except Exception:  # whatever a library makes of a header that nobody has seen yet
            logger.exception(
                "%s cannot be made of a reading by %s", kind, self._report.finding.algorithm.name
            )
            return None


def _capture(dataset: Dataset, form: str, names: Collection[str]) -> ResultObject:
    return ResultObject(kind=ResultKind.SC, form=form, dataset=dataset, destinations=tuple(names))


def _wanting(wishes: Mapping[str, Wish], kind: ResultKind) -> Collection[str]:
    return [name for name, wish in wishes.items() if kind in wish.kinds]
