"""Receiving CT slices: this node's receiver against DCMTK's storescp and Orthanc, with 1, 4 and 8 senders.

Every receiver gets the same files from the same ``storescu`` commands, in turn and several times over, into empty
storage below one folder. A second part looks at the memory of this node's receiver over many small objects
and during one of 1 GiB. ``python -m tests.benchmarks.receive --help`` names what can be left out.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tests.benchmarks import synchronized_copy
from tests.benchmarks.receive_images import split, write_slices
from tests.benchmarks.receive_memory import LEAST_OBJECTS, measure_memory
from tests.benchmarks.receive_table import (
    MEMORY_HEADINGS,
    SPEED_HEADINGS,
    Case,
    Measurement,
    markdown,
    memory_rows,
    plain,
    speed_rows,
)
from tests.benchmarks.receivers import (
    RECEIVERS,
    SENDING_PROGRAMS,
    MeasurementFailed,
    Orthanc,
    Ours,
    Receiver,
    is_installed,
    send,
    version,
)

FULL_RUNS = 5
DEFAULT_GROWTH = 5000
_NAGLE_RECEIVERS = ("ours", "storescp", "orthanc")
_FILES_ALONE = "none: the files alone, synchronized"
_WARM_UP_IMAGES = 100
_WARM_UP_BYTES = 4 * 2**30


def run(arguments: Sequence[str] = ()) -> None:
    """Measure and print.

    Parameters
    ----------
    arguments
        Of the command line; none: everything.
    """
    options = _options(arguments)
    names = _installed(options.receivers)
    if not names:
        return
    with tempfile.TemporaryDirectory(prefix="receive-", dir=options.folder) as name:
        folder = Path(name)
        _describe_machine(folder)
        results = _measure_speed(folder, names, options)
        growth = options.growth if "ours" in names else 0
        memory = measure_memory(folder / "memory", growth) if growth else None
    tables: list[tuple[Sequence[str], list[tuple[str, ...]]]] = [
        (SPEED_HEADINGS, speed_rows(results, Ours.label))
    ]
    if memory is not None:
        tables.append((MEMORY_HEADINGS, memory_rows(memory)))
    for layout in (plain, markdown):
        for headings, rows in tables:
            print(f"\n{layout(headings, rows)}")
    print(flush=True)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.receive")
    parser.add_argument("--runs", type=_positive, default=FULL_RUNS, help="rounds (default: %(default)s)")
    parser.add_argument("--senders", type=_positive, nargs="+", default=[1, 4, 8], help="default: 1 4 8")
    parser.add_argument("--images", type=_positive, default=800, help="slices (default: %(default)s)")
    parser.add_argument("--receivers", nargs="+", choices=RECEIVERS, default=list(RECEIVERS))
    parser.add_argument("--folder", type=Path, help="where everything is stored (default: temporary)")
    parser.add_argument(
        "--nagle-images",
        type=int,
        default=100,
        help="slices with Nagle's algorithm on, 0: none (default: 100)",
    )
    parser.add_argument(
        "--growth",
        type=int,
        help=f"small objects of the memory's part, 0: without it (default: {DEFAULT_GROWTH}, "
        f"with fewer than {FULL_RUNS} runs 0)",
    )
    options = parser.parse_args(arguments)
    if options.growth is None:
        options.growth = DEFAULT_GROWTH if options.runs >= FULL_RUNS else 0
    if options.images < max(options.senders):
        parser.error("every sender needs an image")
    if 0 < options.growth < LEAST_OBJECTS:
        parser.error(f"--growth: at least {LEAST_OBJECTS}")
    if options.nagle_images > options.images:
        options.nagle_images = options.images
    return options


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _installed(names: Sequence[str]) -> list[str]:
    if missing := [program for program in SENDING_PROGRAMS if not is_installed(program)]:
        print(f"left out, because not installed: {', '.join(missing)}\n")
        return []
    for name in names:
        if not RECEIVERS[name].is_installed():
            print(f"without {name}, which is not installed")
    return [name for name in dict.fromkeys(names) if RECEIVERS[name].is_installed()]


def _measure_speed(
    folder: Path, names: Sequence[str], options: argparse.Namespace
) -> dict[Case, dict[str, list[Measurement]]]:
    paths = write_slices(folder / "images", options.images)
    cases = [Case(nagle=False, senders=n, images=len(paths)) for n in dict.fromkeys(options.senders)]
    if options.nagle_images > 0:
        cases.append(Case(nagle=True, senders=1, images=options.nagle_images))
    parts = {
        case: split(paths[: case.images], case.senders, folder / f"send-{number}")
        for number, case in enumerate(cases)
    }
    _warm_up(folder, names, paths)
    results: dict[Case, dict[str, list[Measurement]]] = {
        case: {RECEIVERS[name].label: [] for name in _taking_part(names, case)} for case in cases
    }
    for case in cases:
        if not case.nagle:
            results[case][_FILES_ALONE] = []
    for number in range(options.runs):
        for case in cases:
            for name in _turned(_taking_part(names, case), number):
                measured = measure(RECEIVERS[name], case, parts[case], folder / "storage")
                results[case][RECEIVERS[name].label].append(measured)
                print(f"round {number + 1}, senders {case}, {name}: {measured.seconds:.2f} s", flush=True)
            if not case.nagle:
                measured = measure_files(case, parts[case], folder / "storage")
                results[case][_FILES_ALONE].append(measured)
                print(f"round {number + 1}, files {case}: {measured.seconds:.2f} s", flush=True)
    return results


def measure(kind: type[Receiver], case: Case, parts: Sequence[Path], storage: Path) -> Measurement:
    """Start a receiver on empty storage, send, check that everything is there, and end it.

    Raises
    ------
    MeasurementFailed
        An object was refused or is missing.
    """
    try:
        with kind(storage, nagle=case.nagle) as receiver:
            processes = receiver.processes
            cpu_before = processes.cpu_seconds()
            with processes.peaks() as peaks:
                seconds = send(receiver.port, [("+sd", str(part)) for part in parts], nagle=case.nagle)
                end = time.perf_counter()
                receiver.wait_for_rows(case.images)
                rows_after = time.perf_counter() - end
            stored = receiver.stored_objects()
            if stored != case.images:
                raise MeasurementFailed(f"{kind.label} has {stored} of {case.images} objects")
            return Measurement(
                images=case.images,
                seconds=seconds,
                cpu_seconds=processes.cpu_seconds() - cpu_before,
                peak=peaks[0],
                rows_after_seconds=rows_after if kind is Ours else None,
            )
    finally:
        _empty(storage.rename(storage.with_name(f"{storage.name}-{uuid.uuid4().hex}")))
        os.sync()  # what one receiver has left unwritten must not slow down the next one


def measure_files(case: Case, parts: Sequence[Path], storage: Path) -> Measurement:
    """Copy the files durably without a receiver, in a process for each sender.

    Raises
    ------
    MeasurementFailed
        A file was not written.
    """
    storage.mkdir()
    try:
        program, before = synchronized_copy.__file__, resource.getrusage(resource.RUSAGE_CHILDREN)
        begin = time.perf_counter()
        copies = [subprocess.Popen([sys.executable, program, str(part), str(storage)]) for part in parts]
        codes = [process.wait() for process in copies]
        seconds = time.perf_counter() - begin
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if any(codes):
            raise MeasurementFailed("files were not written")
        cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Measurement(
            images=case.images, seconds=seconds, cpu_seconds=cpu_seconds, peak=None, rows_after_seconds=None
        )
    finally:
        _empty(storage.rename(storage.with_name(f"{storage.name}-{uuid.uuid4().hex}")))
        os.sync()


def _empty(storage: Path) -> None:
    """Give the space of its files back, and keep them to the end of the benchmark.

    ext4 without a journal passes over the inodes of files that were deleted in the last minutes one by one,
    whenever a file is made, and that can take longer than the rest.
    """
    for path in storage.rglob("*"):
        if path.is_file():
            os.truncate(path, 0)


def _warm_up(folder: Path, names: Sequence[str], paths: Sequence[Path]) -> None:
    """Touch memory, files and programs once: the first touch is slow, on virtual machines above all."""
    with Path("/proc/meminfo").open() as file:
        available = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    np.ones(min(_WARM_UP_BYTES, available // 2), np.uint8)
    case = Case(nagle=False, senders=1, images=min(_WARM_UP_IMAGES, len(paths)))
    parts = split(paths[: case.images], case.senders, folder / "send-warm-up")
    for name in names:
        measure(RECEIVERS[name], case, parts, folder / "storage")
    for path in paths:
        path.read_bytes()


def _taking_part(names: Sequence[str], case: Case) -> list[str]:
    """With Nagle's algorithm on every transfer waits for acknowledgements: variants would say nothing new."""
    return [name for name in names if not case.nagle or name in _NAGLE_RECEIVERS]


def _turned(names: Sequence[str], by: int) -> Iterator[str]:
    """Begin each round with another receiver, so that none always follows the same one."""
    yield from (names[(by + place) % len(names)] for place in range(len(names)))


def _describe_machine(folder: Path) -> None:
    with Path("/proc/cpuinfo").open() as file:
        models = {line.partition(":")[2].strip() for line in file if line.startswith("model name")}
    versions = [version("storescp")] if is_installed("storescp") else []
    versions += [version(Orthanc.program)] if is_installed(Orthanc.program) else []
    print(
        f"{os.cpu_count()} cores ({', '.join(models) or platform.machine()}), Linux {platform.release()}, ",
        end="",
    )
    print(f"{_file_system(folder)}; {'; '.join(versions)}; Python {platform.python_version()}\n", flush=True)


def _file_system(folder: Path) -> str:
    """Type of the file system that holds a folder."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    holding = [(len(at), kind) for at, kind in mounts if folder.resolve().is_relative_to(at)]
    return max(holding)[1]


if __name__ == "__main__":
    run(sys.argv[1:])
