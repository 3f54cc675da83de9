"""The long run: ``python -m tests.fuzz --cases 1000000 --seed 7``. It goes on where it was broken off.

Each process runs its share of the numbered cases and writes what is found into a folder. One that hangs or
dies is replaced, and the case that it was at is a finding. ``--replay FILE...`` runs such cases again.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import json
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.campaign import Case, Count, run
from tests.fuzz.expected import Finding
from tests.fuzz.targets import Targets, by_name

_HANGS_LOOKS = 600
"""So many looks at a process, half a second apart, without another case. Not by the clock: the machine, or all of
this, may be stopped for a while."""
_LOOKED_EVERY_SECONDS = 0.5
_REPORTED_EVERY_SECONDS = 30.0
_NOTED_EVERY_CASES = 200
_PR_SET_PDEATHSIG = 1
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(kw_only=True)
class _Share:
    """Every ``processes``-th case, from ``worker`` on."""

    seed: int
    worker: int
    processes: int
    cases: int
    target: str | None
    findings: Path

    @property
    def notes(self) -> Path:
        """Where its progress is noted."""
        target = self.target or "all"
        return self.findings / f"progress-{target}-{self.seed}-{self.worker}-of-{self.processes}.json"

    def progress(self) -> dict[str, Any]:
        """As noted last."""
        try:
            noted: dict[str, Any] = json.loads(self.notes.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"next": self.worker, "count": Count().noted()}
        return noted


def main() -> int:
    """Run or replay."""
    options = _parser().parse_args()
    if options.replay:
        return _replay([Path(name) for name in options.replay])
    options.folder.mkdir(parents=True, exist_ok=True)
    shares = [
        _Share(
            seed=options.seed,
            worker=worker,
            processes=options.processes,
            cases=options.cases,
            target=options.target,
            findings=options.folder,
        )
        for worker in range(options.processes)
    ]
    return _supervise(shares, time.monotonic() + 60 * options.minutes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000, help="how many, over all processes")
    parser.add_argument("--seed", type=int, default=1, help="another seed makes other cases")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--target", choices=sorted(by_name), help="fuzz this one only")
    parser.add_argument(
        "--folder", type=Path, default=Path("fuzz-findings"), help="for findings and progress"
    )
    parser.add_argument("--replay", nargs="+", metavar="FILE", help="run saved cases: <target>-<number>.bin")
    return parser


def _supervise(shares: list[_Share], deadline_s: float) -> int:
    began = time.monotonic()
    at_start = _sum(shares).total
    running = {share.worker: _Worker(share) for share in shares}
    reported = began
    told_to_end = threading.Event()
    for number in _ENDING_SIGNALS:
        signal.signal(number, lambda *_: told_to_end.set())
    while running and time.monotonic() < deadline_s and not told_to_end.is_set():
        for number, worker in list(running.items()):
            worker.process.join(_LOOKED_EVERY_SECONDS / len(running))
            if worker.process.exitcode == 0:
                del running[number]
            elif worker.process.exitcode is not None or worker.hangs():
                running[number] = worker.replaced()
        if time.monotonic() - reported > _REPORTED_EVERY_SECONDS:
            reported = time.monotonic()
            _report(shares, at_start, reported - began)
    for worker in running.values():
        worker.stop()
    count = _report(shares, at_start, time.monotonic() - began)
    return 1 if count.findings else 0


class _Worker:
    """A process that runs a share."""

    def __init__(self, share: _Share) -> None:
        context = multiprocessing.get_context("spawn")
        self._share = share
        self._at = context.Value("q", -1)
        self._looks, self._seen = 0, -1
        self._stopping = context.Event()
        self.process = context.Process(target=_work, args=(share, self._at, self._stopping))
        self.process.start()

    def hangs(self) -> bool:
        """Whether its case takes too long; to be asked every half second."""
        at = int(self._at.value)
        self._looks = self._looks + 1 if at == self._seen else 0
        self._seen = at
        return self._looks > _HANGS_LOOKS

    def replaced(self) -> _Worker:
        """Another process that goes on after the case that this one was at."""
        if self.process.exitcode is None and self.process.pid is not None:
            os.kill(self.process.pid, signal.SIGABRT)  # faulthandler says where it is
        self.process.join()
        number = int(self._at.value)
        if self.process.exitcode == 1:
            raise SystemExit("the fuzzer itself failed")
        noted = self._share.progress()
        if self.process.exitcode != _STARTS_FRESH:
            Case.make(self._share.seed, number, self._share.target).save(
                self._share.findings, f"the process hung or died: exit code {self.process.exitcode}"
            )
            noted["count"]["findings"] += 1
        _note(self._share, {**noted, "next": number + self._share.processes})
        return _Worker(self._share)

    def stop(self) -> None:
        """Let it finish its case."""
        self._stopping.set()
        self.process.join()


_STARTS_FRESH = 3
"""Exit code of a process whose receiver hung, which it has noted as a finding."""


def _work(share: _Share, at: Any, stopping: Any) -> None:
    faulthandler.enable()
    for number in _ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # who has started it says when to end
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # Linux: nobody else would end it
    noted = share.progress()
    before = Count.from_note(noted["count"])
    numbers = range(noted["next"], share.cases, share.processes)

    def note(case: Case, count: Count) -> None:
        at.value = case.number
        if count.total % _NOTED_EVERY_CASES == 0 or stopping.is_set():
            _note(share, {"next": case.number, "count": _added(before, count).noted()})
        if stopping.is_set():
            os._exit(0)

    def found(case: Case, words: str) -> None:
        print(f"finding in case {case.number}: {words.splitlines()[0]}", flush=True)
        case.save(share.findings, words)
        if "hangs" in words:
            os._exit(_STARTS_FRESH)

    place = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=place) as folder:
        targets = Targets(Path(folder))
        with targets.receiver.watched():
            cases = (Case.make(share.seed, number, share.target) for number in numbers)
            count = run(targets, cases, on_finding=found, on_case=note)
        targets.close()
    _note(
        share,
        {"next": noted["next"] + len(numbers) * share.processes, "count": _added(before, count).noted()},
    )


def _note(share: _Share, content: dict[str, Any]) -> None:
    temporary = share.notes.with_suffix(".part")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(share.notes)


def _added(one: Count, other: Count) -> Count:
    total = Count(resident_bytes=max(one.resident_bytes, other.resident_bytes))
    total.cases.update(one.cases)
    total.cases.update(other.cases)
    for name in ("accepted", "answered", "stored", "findings"):
        setattr(total, name, getattr(one, name) + getattr(other, name))
    return total


def _sum(shares: list[_Share]) -> Count:
    total = Count()
    for share in shares:
        total = _added(total, Count.from_note(share.progress()["count"]))
    return total


def _report(shares: list[_Share], at_start: int, seconds: float) -> Count:
    count = _sum(shares)
    kinds = ", ".join(f"{number} {target}" for target, number in sorted(count.cases.items()))
    print(
        f"{count.total} cases ({kinds}), {(count.total - at_start) / seconds:.0f} a second; "
        f"{count.accepted} associations, {count.answered} answers, {count.stored} objects stored; "
        f"{count.resident_bytes / 2**20:.0f} MiB; {count.findings} findings",
        flush=True,
    )
    return count


def _replay(paths: list[Path]) -> int:
    failed = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        targets = Targets(Path(folder))
        with targets.receiver.watched():
            for path in paths:
                target = path.stem.rpartition("-")[0]
                try:
                    targets.run(target, path.read_bytes())
                    print(f"{path}: holds")
                except Finding as finding:
                    failed += 1
                    print(f"{path}: {finding}")
        targets.close()
    return 1 if failed else 0
