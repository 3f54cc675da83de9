"""Who sends a request, and what that person or system may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from starlette.requests import HTTPConnection


class Role(StrEnum):
    """What somebody may do; each may do what those before it may."""

    MACHINE = "machine"
    """Send images by STOW-RS and read the metrics; see no study. For tokens only."""
    VIEWER = "viewer"
    """Look at the worklist, studies and results."""
    RADIOLOGIST = "radiologist"
    """Say that a study was seen, agree or disagree, have it read again, perform workitems."""
    ADMIN = "admin"
    """See operations and deliveries."""

    def covers(self, needed: Role) -> bool:
        """Whether this role may do what ``needed`` may."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, kw_only=True)
class Caller:
    """A person or a system."""

    name: str
    role: Role
    source: str
    """Network address."""
    csrf_token: str = ""
    """That a form or script of our pages sends back; empty where there is no session in a cookie."""


def nobody(source: str) -> Caller:
    """Whoever was not let in, for the record."""
    return Caller(name="", role=Role.MACHINE, source=source)


def caller_of(request: HTTPConnection) -> Caller:
    """Who sends a request, as the middleware has found out."""
    caller = request.state.caller
    assert isinstance(caller, Caller)
    return caller
