"""Checks side by side, each with a time limit: a doctor that waits for a dead host helps nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ich_node.errors import IchNodeError

NETWORK_SECONDS = 8.0
"""Longer than what is asked waits for its peer itself, so that its own words are heard."""


class Outcome(StrEnum):
    """What a check came to."""

    OK = "OK"
    WARN = "WARN"
    """It works, and somebody should look."""
    FAIL = "FAIL"


Look = Callable[[], tuple[bool | Outcome, str]]
"""Whether all is well and what was found, in words. Not all well is the worst outcome that the check has."""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """Something to look at."""

    name: str
    look: Look
    mend: str
    worst: Outcome = Outcome.FAIL
    seconds: float = NETWORK_SECONDS
    """After that it is taken for hanging."""
    needs: str = ""
    """Another examination, earlier in the list: where that fails, this one says nothing of its own."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the doctor's report."""

    name: str
    outcome: Outcome
    found: str
    mend: str
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether it is no fault."""
        return self.outcome is not Outcome.FAIL

    def as_json(self) -> dict[str, Any]:
        """For another program."""
        return {
            "name": self.name,
            "outcome": self.outcome,
            "ok": self.ok,
            "found": self.found,
            "mend": self.mend,
            "seconds": round(self.seconds, 3),
        }


@dataclass(kw_only=True)
class _Running:
    examination: Examination
    begun: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)
    check: Check | None = None

    def work(self) -> None:
        self.check = _examine(self.examination)
        self.done.set()

    def result(self) -> Check:
        self.done.wait(max(0.0, self.begun + self.examination.seconds - time.monotonic()))
        one = self.examination
        return self.check or Check(
            name=one.name,
            outcome=one.worst,
            found=f"no answer within {one.seconds:.0f} s",
            mend=one.mend,
            seconds=one.seconds,
        )


def run_examinations(examinations: Sequence[Examination]) -> list[Check]:
    """Look at everything at once; a check that breaks or hangs is a fault, not an end."""
    running = [_Running(examination=each) for each in examinations]
    for one in running:
        # A daemon: what hangs must not keep the process from its end.
        threading.Thread(target=one.work, name=f"check {one.examination.name}", daemon=True).start()
    checks: dict[str, Check] = {}
    for one in running:
        examination = one.examination
        needed = checks.get(examination.needs)
        is_known = needed is None or needed.ok
        checks[examination.name] = one.result() if is_known else _not_known(examination)
    return list(checks.values())


def _examine(examination: Examination) -> Check:
    begun = time.monotonic()
    try:
        well, found = examination.look()
    except (IchNodeError, OSError) as error:
        well, found = False, str(error)
    except Exception as error:
        well, found = False, f"the check itself failed: {type(error).__name__}: {error}"
    usual = Outcome.OK if well else examination.worst
    return Check(
        name=examination.name,
        outcome=well if isinstance(well, Outcome) else usual,
        found=found,
        mend=examination.mend,
        seconds=time.monotonic() - begun,
    )


def _not_known(examination: Examination) -> Check:
    return Check(
        name=examination.name,
        outcome=Outcome.WARN,
        found=f"not known: the {examination.needs} does not answer",
        mend=f"mend the {examination.needs} first",
    )
