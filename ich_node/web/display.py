"""Values as a person reads them: names, dates, ages, percentages. Plain text; the templates escape it."""

from __future__ import annotations

import math
import re
import unicodedata
from datetime import datetime

_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They could make a name read as another one."""
_DATE = re.compile(r"(\d{4})(\d{2})(\d{2})")
_TIME = re.compile(r"(\d{2})(\d{2})?(\d{2})?(\.\d{1,6})?")


def plain_text(value: object) -> str:
    """Text without control and writing-direction characters; ``None`` is empty."""
    text = "" if value is None else str(value)
    kept = (
        " " if c.isspace() else c
        for c in text
        if c not in _BIDI_CONTROLS and (c.isspace() or unicodedata.category(c) not in ("Cc", "Cs"))
    )
    return " ".join("".join(kept).split())


def patient_name(value: str) -> str:
    """Write a PN value (PS3.5 6.2) as ``Family, Given Middle``; an ideographic form follows in brackets.

    Prefix and suffix are left out, as on a ward list.
    """
    alphabetic, _, others = plain_text(value).partition("=")
    ideographic = others.partition("=")[0]
    shown = [name for name in (_name_group(alphabetic, ", "), _name_group(ideographic, " ")) if name]
    if not shown:
        return ""
    return f"{shown[0]} ({shown[1]})" if len(shown) > 1 else shown[0]


def dicom_date(value: str) -> str:
    """Write a DA value as ``2026-11-21``; anything else stays as it came."""
    text = plain_text(value)
    match = _DATE.fullmatch(text)
    return "-".join(match.groups()) if match else text


def dicom_time(value: str) -> str:
    """Write a TM value as ``13:58`` in the scanner's zone, which is not told; anything else stays."""
    text = plain_text(value)
    match = _TIME.fullmatch(text)
    return f"{match[1]}:{match[2] or '00'}" if match else text


def local_time(moment: str | datetime | None) -> str:
    """A stored time in the server's zone, with the zone: ``2026-11-21 14:03:22 CET``."""
    parsed = _parse(moment)
    if parsed is None:
        return plain_text(moment)
    return parsed.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def clock_time(moment: str | datetime | None, *, now: datetime) -> tuple[str, str]:
    """Hours and minutes of a stored time in the server's zone, and the date where that is not today's.

    Such as ``("14:03 CET", "")`` or ``("23:56 CET", "2026-11-20")``.
    """
    parsed = _parse(moment)
    if parsed is None:
        return plain_text(moment), ""
    local = parsed.astimezone()
    same_day = local.date() == now.astimezone().date()
    return local.strftime("%H:%M %Z"), "" if same_day else local.strftime("%Y-%m-%d")


def age(moment: str | datetime | None, *, now: datetime) -> str:
    """How long ago, in the unit that matters: ``12 s``, ``4 min``, ``2 h 05 min``, ``3 d``."""
    parsed = _parse(moment)
    if parsed is None:
        return ""
    seconds = max(0, int((now - parsed).total_seconds()))
    if seconds < 60:
        return f"{seconds} s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if minutes < 60:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60:02d} min" if hours < 24 else f"{days} d"


def percent(score: object) -> str:
    """A score of 0 to 1 as whole percent, never rounded up to certainty nor down to none; else a dash."""
    if not isinstance(score, int | float) or not math.isfinite(score):
        return "–"
    if 0 < score < 0.01:
        return "<1 %"
    if 0.99 < score < 1:
        return ">99 %"
    return f"{100 * score:.0f} %"


def _name_group(group: str, comma: str) -> str:
    family, given, middle, *_ = [*(part.strip() for part in group.split("^")), "", "", ""]
    first = " ".join(part for part in (given, middle) if part)
    return comma.join(part for part in (family, first) if part)


def _parse(moment: str | datetime | None) -> datetime | None:
    if isinstance(moment, datetime):
        return moment
    try:
        parsed = datetime.fromisoformat(moment or "")
    except ValueError:
        return None
    return parsed if parsed.tzinfo is not None else None
