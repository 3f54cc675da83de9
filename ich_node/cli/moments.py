"""A point in time on the command line."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

_SPAN = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)\s*([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Moment(click.ParamType[datetime]):
    """``8h`` (so long ago), or a date and time by ISO 8601: without a zone it is local time."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Give it in UTC."""
        if isinstance(value, datetime):
            return value
        text = str(value).strip()
        try:
            if span := _SPAN.fullmatch(text):
                return datetime.now(UTC) - timedelta(**{_UNITS[span[2]]: float(span[1])})
            return datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError, OSError):
            self.fail(
                f"{text!r} is neither 90m, 8h, 7d or 2w nor a time such as 2026-01-31T18:00", param, ctx
            )


MOMENT = Moment()


def local(iso: str | None) -> str:
    """A stored time for people: the time of day where it is recent, else the date too."""
    if not iso:
        return ""
    time = datetime.fromisoformat(iso).astimezone()
    recent = abs(datetime.now(UTC) - time) < timedelta(hours=12)
    return time.strftime("%H:%M:%S" if recent else "%Y-%m-%d %H:%M")
