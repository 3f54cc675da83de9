"""What became of a notice, in words that can be shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

MAX_DETAIL_CHARACTERS = 200
_HIDDEN = "***"


class NoticeResult(StrEnum):
    """What became of one notice."""

    SENT = "SENT"
    """The receiver has said that it took it."""
    REFUSED = "REFUSED"
    """The same notice will be refused again: a person must look."""
    TRANSIENT = "TRANSIENT"
    """Worth another attempt."""


@dataclass(frozen=True, kw_only=True)
class NoticeOutcome:
    """What the receiver said of one notice."""

    result: NoticeResult
    detail: str
    """One printable line of at most 200 characters. May quote what the receiver wrote, and with it identifying data
    where those are allowed, so it is shown and stored but not logged. Never holds a secret of the sender."""
    retry_after_s: float | None = None
    """How long the receiver asks to be left alone, in seconds; ``None`` where it does not ask."""


def outcome(
    result: NoticeResult, detail: str, *, secrets: Iterable[str] = (), retry_after_s: float | None = None
) -> NoticeOutcome:
    """Make an outcome of whatever a receiver wrote.

    Parameters
    ----------
    result
        What became of the notice.
    detail
        One sentence; may hold any characters, and the secrets, which receivers like to echo.
    secrets
        What must not be seen. Taken out after everything unprintable, so that nothing can hide one from that.
    retry_after_s
        How long the receiver asks to be left alone.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in detail).split())
    # The longest first: one secret may be a part of another.
    for secret in sorted((s for s in secrets if s), key=len, reverse=True):
        line = line.replace(secret, _HIDDEN)
    return NoticeOutcome(result=result, detail=line[:MAX_DETAIL_CHARACTERS], retry_after_s=retry_after_s)
