"""Reading one study of 32 slices of 512 x 512, from files to saved result objects, against its floor.

The floor is what no reading can do without: decoding the pixels with pydicom and one pass of one network of each kind
of the default bundle over as many slices. Both run in turn in one process; medians and ratios are printed.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pydicom
import torch

from ich_node.findings import IchSubtype
from ich_node.model.bundle import DEFAULT_NAME, find_bundle
from ich_node.model.predict import Predictor, load_predictor
from ich_node.pipeline import History, read_series
from ich_node.receive.header import read_header
from ich_node.result_files import ResultFiles
from ich_node.study import Series
from ich_node.testing.phantom import head_phantom
from ich_node.testing.series import phantom_series
from ich_node.volume import load_volume

ROUNDS = 7


def run() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = _write_study(folder)
        series = _open(paths)
        predictor = load_predictor(find_bundle(DEFAULT_NAME), "cpu")
        (pair, *_), sizes = predictor.system.networks, predictor.system.preprocessing
        kinds = ((pair.vicar, 3, sizes.vicar.size), (pair.lite, 6, sizes.lite.size))
        volume = load_volume(series)
        rows: dict[str, list[float]] = {}
        for round_number in range(ROUNDS + 1):
            measured = {
                "floor: decode with pydicom": _time(lambda: [pydicom.dcmread(p).pixel_array for p in paths]),
                "floor: one network of each kind, one pass": _time(lambda: _one_pass(kinds, len(paths))),
                "reading: volume": _time(lambda: load_volume(series)),
                "reading: volume and model": _time(lambda: _predict(predictor, series)),
                "reading: all, objects saved": _time(lambda: _read(series, predictor, folder)),
            }
            if round_number:  # the first round warms caches and lazy imports
                for row, seconds in measured.items():
                    rows.setdefault(row, []).append(seconds)
        assert len(volume.hu) == len(paths)
    _print(rows)


def _print(rows: dict[str, list[float]]) -> None:
    print(f"{'':42}{'median ms':>10}{'min':>8}{'max':>8}")
    for row, seconds in rows.items():
        middle = statistics.median(seconds)
        print(f"{row:42}{middle * 1e3:10.0f}{min(seconds) * 1e3:8.0f}{max(seconds) * 1e3:8.0f}")
    floors = [row for row in rows if row.startswith("floor")]
    per_round = zip(rows["reading: all, objects saved"], *(rows[row] for row in floors), strict=True)
    ratios = [total / sum(parts) for total, *parts in per_round]
    print(f"reading / floor, median of {ROUNDS} rounds: {statistics.median(ratios):.2f}")
    print(f"threads: {torch.get_num_threads()}, peak resident memory: {_peak_mib():.0f} MiB\n")


def _write_study(folder: Path) -> list[Path]:
    images = phantom_series(head_phantom(bleeds=(IchSubtype.INTRAPARENCHYMAL,), seed=1), name="benchmark")
    paths = []
    for number, image in enumerate(images):
        paths.append(folder / f"{number:03d}.dcm")
        image.save_as(paths[-1], enforce_file_format=True)
    return paths


def _open(paths: list[Path]) -> Series:
    instances = tuple(read_header(path)[0] for path in paths)
    first = instances[0]
    return Series(
        series_instance_uid=first.series_instance_uid,
        study_instance_uid=first.study_instance_uid,
        instances=instances,
    )


def _one_pass(kinds: Sequence[tuple[torch.nn.Module, int, int]], slices: int) -> None:
    with torch.inference_mode():
        for network, channels, size in kinds:
            x, mask = (
                torch.zeros(slices, channels, size, size),
                torch.ones(slices, size, size, dtype=torch.bool),
            )
            network(x, mask)


def _predict(predictor: Predictor, series: Series) -> None:
    volume = load_volume(series)
    predictor.predict(volume.hu, volume.spacing_mm)


def _read(series: Series, predictor: Predictor, folder: Path) -> None:
    read_series(
        series,
        predictors=[predictor],
        history=History(last_run_numbers={}, earlier={}),
        content_sha256="0" * 64,
        results=ResultFiles(folder=folder / "results"),
    )


def _time(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
