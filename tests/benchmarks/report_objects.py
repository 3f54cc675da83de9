"""Writing one flagged reading as result objects, against a plain highdicom build of the same content.

Ours: the structured report with its image library and the secondary captures, built and saved to memory. Plain:
highdicom's `MeasurementReport` with its own `ImageLibrary` in a `Comprehensive3DSR`, and `SCImage` for the same pages,
which come drawn: nothing is drawn plainly. Processor time of one thread; both run in turn.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from ich_node.findings import IchSubtype, SliceFinding
from ich_node.report import ReadingReport, build_secondary_captures, build_structured_report
from ich_node.testing.phantom import head_phantom
from ich_node.testing.series import phantom_series
from tests.highdicom_report import plain_secondary_capture, plain_structured_report
from tests.report_builders import READ_AT, series_finding

ROUNDS = 7
SLICES = (40, 400)
SUSPICIOUS = 9
"""Slices, so that the overlays are as many as they ever get."""


def run() -> None:
    """Measure and print."""
    print(f"{'slices':>6}  {'':24}{'median ms':>10}{'min':>8}{'max':>8}")
    for slices in SLICES:
        _print(slices, _measured(flagged_report(slices)))
    print()


def flagged_report(slices: int) -> ReadingReport:
    """A reading with maps and places on `SUSPICIOUS` slices of 512 x 512."""
    phantom = head_phantom(bleeds=[IchSubtype.INTRAPARENCHYMAL], slices=slices, slice_spacing_mm=160 / slices)
    images: list[Dataset] = list(phantom_series(phantom, name="benchmark"))
    for image in images:
        del image.PixelData
    one = series_finding((1, *phantom.hu.shape[1:]))
    nothing = SliceFinding(probabilities=dict.fromkeys(IchSubtype, 0.01))
    first = (slices - SUSPICIOUS) // 2
    found = [one.slices[0] if 0 <= n - first < SUSPICIOUS else nothing for n in range(slices)]
    return ReadingReport(
        finding=replace(one, slices=tuple(found)),
        source_images=images,
        hu=phantom.hu,
        spacing_mm=phantom.spacing_mm,
        run_number=1,
        read_at=READ_AT,
        caveats=("Gantry tilt of 18.5 degrees.",),
    )


def _measured(report: ReadingReport) -> dict[str, list[float]]:
    pages = [np.asarray(capture.pixel_array) for capture in build_secondary_captures(report)]
    rows: dict[str, list[float]] = {}
    for round_number in range(ROUNDS + 1):
        measured = {
            "ours: SR": _time(lambda: [build_structured_report(report)]),
            "ours: SC": _time(lambda: build_secondary_captures(report)),
            "plain highdicom: SR": _time(lambda: [plain_structured_report(report)]),
            "plain highdicom: SC": _time(lambda: _plain_captures(report, pages)),
        }
        if round_number:  # the first round warms caches and lazy imports
            for row, seconds in measured.items():
                rows.setdefault(row, []).append(seconds)
    return rows


def _plain_captures(report: ReadingReport, pages: Sequence[npt.NDArray[np.uint8]]) -> list[Dataset]:
    return [plain_secondary_capture(report, page, number) for number, page in enumerate(pages, start=1)]


def _time(build: Callable[[], Iterable[Dataset]]) -> float:
    """Processor seconds of building some objects and saving them."""
    begin = time.process_time()
    for dataset in build():
        dataset.save_as(io.BytesIO(), enforce_file_format=True)
    return time.process_time() - begin


def _print(slices: int, rows: dict[str, list[float]]) -> None:
    ours = [sr + sc for sr, sc in zip(rows["ours: SR"], rows["ours: SC"], strict=True)]
    plain = [sr + sc for sr, sc in zip(rows["plain highdicom: SR"], rows["plain highdicom: SC"], strict=True)]
    for row, seconds in {**rows, "ours: both": ours, "plain highdicom: both": plain}.items():
        middle = statistics.median(seconds) * 1e3
        print(f"{slices:6}  {row:24}{middle:10.0f}{min(seconds) * 1e3:8.0f}{max(seconds) * 1e3:8.0f}")
    ratios = [a / b for a, b in zip(ours, plain, strict=True)]
    print(f"{slices:6}  ours / plain, median of {ROUNDS} rounds: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    run()
