"""Case after case: which input has which number, what is checked between them, and where findings go."""

from __future__ import annotations

import gc
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.expected import Finding
from tests.fuzz.generators import generated, generated_for
from tests.fuzz.receiver_under_test import resident_bytes
from tests.fuzz.targets import Targets

_WARM_UP_CASES = 2000
_CHECKED_EVERY = 500
GROWTH_AT_MOST_BYTES = 48 * 2**20
"""Of resident memory over a campaign of any length: what the allocator needs to settle, and no more."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One input; the same seed and number make the same one."""

    number: int
    target: str
    content: bytes

    @classmethod
    def make(cls, seed: int, number: int, target: str | None = None) -> Case:
        """Generate an input, for one target or, with the usual shares, for any."""
        random = Random(f"{seed} {number}")
        if target is not None:
            return cls(number=number, target=target, content=generated_for(target, random))
        target, content = generated(random)
        return cls(number=number, target=target, content=content)

    def save(self, folder: Path, words: str) -> Path:
        """Write it beside what was found, to be replayed."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.target}-{self.number}.bin"
        path.write_bytes(self.content)
        path.with_suffix(".txt").write_text(words, encoding="utf-8")
        return path


@dataclass(kw_only=True)
class Count:
    """What a campaign did so far."""

    cases: Counter[str] = field(default_factory=Counter)
    accepted: int = 0
    """Associations that the receiver accepted."""
    answered: int = 0
    """Requests that it answered."""
    stored: int = 0
    """Objects that it acknowledged."""
    findings: int = 0
    resident_bytes: int = 0

    @property
    def total(self) -> int:
        """Of all cases."""
        return self.cases.total()

    def noted(self) -> dict[str, Any]:
        """As plain values, for a file."""
        return {**vars(self), "cases": dict(self.cases)}

    @classmethod
    def from_note(cls, noted: dict[str, Any]) -> Count:
        """The reverse of `noted`."""
        return cls(**{**noted, "cases": Counter(noted["cases"])})


def run(
    targets: Targets,
    cases: Iterable[Case],
    *,
    on_finding: Callable[[Case, str], None],
    on_case: Callable[[Case, Count], None] = lambda case, count: None,
) -> Count:
    """Run cases, one after the other.

    Parameters
    ----------
    targets
        What is fuzzed. Its receiver must be `watched`.
    cases
        The inputs.
    on_finding
        Gets every case in which something did not hold, with the words for it. May raise.
    on_case
        Called before each case.
    """
    count = Count()
    settled_bytes = 0
    for case in cases:
        on_case(case, count)
        words = _words(lambda case=case: targets.run(case.target, case.content))  # type: ignore[misc]
        count.cases[case.target] += 1
        if words is None and count.total % _CHECKED_EVERY == 0:
            words = _words(targets.receiver.check_node)
            count.resident_bytes = resident_bytes()
            if count.total == _WARM_UP_CASES:
                settled_bytes = count.resident_bytes
            elif settled_bytes and count.resident_bytes - settled_bytes > GROWTH_AT_MOST_BYTES:
                words = f"memory has grown from {settled_bytes} to {count.resident_bytes} bytes"
                settled_bytes = count.resident_bytes
        if words is not None:
            count.findings += 1
            on_finding(case, words)
        receiver = targets.receiver
        count.accepted, count.answered, count.stored = receiver.accepted, receiver.answered, receiver.stored
    gc.collect()
    count.resident_bytes = resident_bytes()
    return count


def _words(work: Callable[[], None]) -> str | None:
    """What was found, if anything was."""
    try:
        work()
    except Finding as finding:
        return str(finding)
    except Exception as error:
        return "".join(traceback.format_exception(error))
    return None
