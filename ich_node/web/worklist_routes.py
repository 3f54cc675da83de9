"""The page that a radiologist keeps open."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ich_node.database.worklist import worklist
from ich_node.web.site import Site
from ich_node.web.worklist_page import tallies, worklist_lines

LINES = 200
"""Studies on the page, the most urgent first."""


class WorklistRoutes:
    """The worklist and the part of it that changes."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def router(self) -> APIRouter:
        """Addresses of the worklist."""
        router = APIRouter()
        router.add_api_route("/", self.page, methods=["GET", "HEAD"])
        router.add_api_route("/worklist", self.fragment, methods=["GET", "HEAD"])
        return router

    def page(self, request: Request) -> Response:
        """The whole page."""
        return self._site.render(request, "worklist.html", **self._values())

    def fragment(self, request: Request) -> Response:
        """The part of the page that changes."""
        return self._site.render(request, "worklist_fragment.html", **self._values())

    def _values(self) -> dict[str, Any]:
        with self._site.database.reading() as session:
            rows = worklist(session, limit=LINES + 1)
        return {
            "lines": worklist_lines(rows[:LINES], now=datetime.now(UTC)),
            "tallies": tallies(rows[:LINES]),
            "is_cut": len(rows) > LINES,
        }
