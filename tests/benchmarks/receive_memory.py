"""Memory of this node's receiver: over many small objects, and while one very large object arrives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.process_tree import Memory
from tests.benchmarks.receive_images import SLICES_PER_SERIES, write_large_object, write_small_objects
from tests.benchmarks.receivers import MeasurementFailed, Ours, send

STAGES = 10
REPORTED_STAGES = (1, 5, 10)
SENDERS = 4
LEAST_OBJECTS = STAGES * SENDERS
LARGE_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class MemoryResult:
    """Resident memory of the receiver's processes."""

    after_objects: dict[int, Memory]
    """By the number of objects that have come since its start."""
    before_large: Memory
    peak_large: Memory


def measure_memory(folder: Path, objects: int) -> MemoryResult:
    """Send small objects in ten stages of four associations each, then one object of 1 GiB, to one receiver.

    Parameters
    ----------
    folder
        For files to send and the receiver's storage.
    objects
        How many small ones, rounded down to a multiple of 40.

    Raises
    ------
    MeasurementFailed
        Something was not received.
    """
    per_sender = objects // LEAST_OBJECTS
    originals = write_small_objects(folder / "small", SENDERS)
    large = write_large_object(folder / "large.dcm", LARGE_BYTES)
    after_objects: dict[int, Memory] = {}
    with Ours(folder / "receiver") as receiver:
        for stage in range(1, STAGES + 1):
            send(receiver.port, [_copies(original, per_sender) for original in originals])
            sent = stage * per_sender * SENDERS
            receiver.wait_for_rows(sent)
            if stage in REPORTED_STAGES:
                after_objects[sent] = receiver.processes.resident()
        receiver.processes.wait_until_idle()
        before = receiver.processes.resident()
        receiver.processes.forget_peaks()
        with receiver.processes.peaks() as peaks:
            send(receiver.port, [("--required", str(large))])
            receiver.wait_for_rows(sent + 1)
        _check(receiver, sent + 1)
    return MemoryResult(after_objects=after_objects, before_large=before, peak_large=peaks[0])


def _copies(original: Path, count: int) -> tuple[str, ...]:
    """Options that send an object again and again with new UIDs, a new study after every 100."""
    series = ("--invent-series", str(SLICES_PER_SERIES), "--invent-study", "1")
    return ("--repeat", str(count), *series, str(original))


def _check(receiver: Ours, count: int) -> None:
    sizes = [path.stat().st_size for path in receiver.data_dir.glob("spool/*/*.dcm")]
    if len(sizes) != count or max(sizes) < LARGE_BYTES:
        raise MeasurementFailed(
            f"{len(sizes)} of {count} objects are there, the largest of {max(sizes)} bytes"
        )
