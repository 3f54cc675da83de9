"""The page that a radiologist keeps open."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from ich_node.database.access import AccessAction
from ich_node.database.changes import worklist_version
from ich_node.database.engine import Session
from ich_node.database.worklist import page_end, worklist
from ich_node.findings import Priority
from ich_node.web.caller import caller_of
from ich_node.web.clock import now
from ich_node.web.events import Changes, ChangeStream
from ich_node.web.site import Site
from ich_node.web.worklist_filter import WorklistFilter
from ich_node.web.worklist_page import filter_choices, tallies, worklist_lines

LINES = 200
"""Studies on the page, the most urgent first."""
_RECORD_AGAIN_S = 900.0
"""An open page fetches the same list again and again; that is written down so often."""
_MOST_REMEMBERED = 10_000


class WorklistRoutes:
    """The worklist, the part of it that changes, and the stream that says when."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._recorded: dict[tuple[str, str, str], float] = {}
        self.changes = Changes(self._version)

    def router(self) -> APIRouter:
        """Addresses of the worklist."""
        router = APIRouter()
        router.add_api_route("/", self.page, methods=["GET", "HEAD"])
        router.add_api_route("/worklist", self.fragment, methods=["GET", "HEAD"])
        router.add_api_route("/events", self.events, methods=["GET"])
        return router

    def page(self, request: Request) -> Response:
        """The whole page."""
        return self._list(request, "worklist.html")

    def fragment(self, request: Request) -> Response:
        """The part of the page that changes."""
        return self._list(request, "worklist_fragment.html")

    async def events(self, request: Request) -> Response:
        """Server-sent events: that something has changed, not what."""
        if self.changes.is_full:
            raise HTTPException(503, "As many pages listen as may; this one asks every few seconds instead.")
        return ChangeStream(self.changes)

    def _version(self) -> str:
        with self._site.database.reading() as session:
            return worklist_version(session)

    def _list(self, request: Request, template: str) -> Response:
        wanted = WorklistFilter.of(request.query_params)
        moment = now()
        with self._site.database.reading() as session:
            rows = worklist(session, limit=LINES + 1, **wanted.criteria(moment))
            shown, older = _page(rows)
            hidden = self._hidden_stat(session, wanted, shown)
        self._record(request, wanted)
        return self._site.render(
            request,
            template,
            lines=worklist_lines(shown, now=moment),
            tallies=tallies(shown),
            wanted=wanted,
            choices=filter_choices(wanted, shown),
            older=None if older is None else wanted.page_after(older),
            hidden_stat=hidden,
        )

    def _hidden_stat(
        self, session: Session, wanted: WorklistFilter, shown: Sequence[Mapping[str, Any]]
    ) -> int:
        """How many STAT studies nobody has seen and this list does not show: no filter may hide that they are."""
        if not (wanted.is_active or wanted.before):
            return 0
        here = {row["study_instance_uid"] for row in shown}
        stat = worklist(session, limit=LINES, priorities=[Priority.STAT], unreviewed=True)
        return sum(row["study_instance_uid"] not in here for row in stat)

    def _record(self, request: Request, wanted: WorklistFilter) -> None:
        caller = caller_of(request)
        what = (caller.name, caller.source, wanted.query)
        clock = time.monotonic()
        if clock < self._recorded.get(what, 0.0):
            return
        if len(self._recorded) >= _MOST_REMEMBERED:
            self._recorded.clear()
        self._recorded[what] = clock + _RECORD_AGAIN_S
        self._site.record(request, AccessAction.QUERY, detail=f"worklist?{wanted.query}"[:500])


def _page(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str | None]:
    """Without the one row too many, and where the next page goes on; ``None`` where there is no next page."""
    if len(rows) <= LINES:
        return rows, None
    extra = page_end(rows)
    shown = [row for row in rows if row["study_instance_uid"] != extra]
    return shown, page_end(shown)
