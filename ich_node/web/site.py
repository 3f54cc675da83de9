"""What every page needs: settings, database, templates, and the record of who looked."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from ich_node.database.access import Access, AccessAction, AccessLog
from ich_node.database.engine import Database
from ich_node.receive.free_space import FreeSpace
from ich_node.receive.stow import StoreDesk
from ich_node.settings import Settings
from ich_node.web import display
from ich_node.web.caller import Caller, Role, caller_of
from ich_node.web.wording import DISCLAIMER

_UID = re.compile(r"[0-9.]{1,64}")


class Site:
    """The installation as the web service sees it.

    Parameters
    ----------
    settings
        Folders and destinations among them.
    database
        Whoever made it closes it.
    store_desk
        Takes objects by STOW-RS, which is not served without it; whoever made it closes it.
    free_space
        Of the spool, for health and metrics.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        store_desk: StoreDesk | None = None,
        free_space: FreeSpace | None = None,
    ) -> None:
        self.settings = settings
        self.database = database
        self.store_desk = store_desk
        self.free_space = free_space
        self._access_log = AccessLog(database, export=bool(settings.web.audit.host))
        self._templates = Environment(
            loader=PackageLoader("ich_node.web"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def render(self, request: Request, template: str, **values: Any) -> HTMLResponse:
        """Fill a template; it sees ``caller`` (``None`` where nobody was let in) beside the values."""
        text = self._templates.get_template(template).render(
            disclaimer=DISCLAIMER,
            caller=getattr(request.state, "caller", None),
            Role=Role,
            shown_at=display.local_time(datetime.now(UTC)),
            **values,
        )
        return HTMLResponse(text)

    def record(
        self,
        request: HTTPConnection,
        action: AccessAction,
        study_instance_uid: str | None = None,
        *,
        detail: str | None = None,
        refused: bool = False,
        caller: Caller | None = None,
    ) -> None:
        """Write down that the caller did something, or tried to.

        A database that cannot be written keeps no page from who reads it: what could not be written is kept in
        memory and written with the next access that can.

        Parameters
        ----------
        detail
            Of a search it may be the search's address. What was searched for is left out: those are names.
        """
        if action is AccessAction.QUERY and detail:
            detail = _without_values(detail)
        who = caller or caller_of(request)
        self._access_log.add(
            Access(
                at=datetime.now(UTC),
                caller=who.name or "unknown",
                role=who.role if who.name else "",
                source=who.source,
                action=action,
                study_instance_uid=study_instance_uid,
                refused=refused,
                detail=detail,
            )
        )


def _without_values(detail: str) -> str:
    """An address with the names of its keys alone."""
    what, _, query = detail.partition("?")
    names = dict.fromkeys(name for name, _ in parse_qsl(query, keep_blank_values=True))
    return f"{what}?{'&'.join(names)}" if names else what


def require_uid(text: str) -> None:
    """Refuse an address with anything else in the place of a UID."""
    if _UID.fullmatch(text) is None:
        raise HTTPException(404, "This is no DICOM UID.")
