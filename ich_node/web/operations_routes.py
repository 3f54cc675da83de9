"""For who keeps the node running: how it does, what did not reach its destination, health and metrics."""

from __future__ import annotations

import logging

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from ich_node.database import outbox
from ich_node.errors import ConfigurationError
from ich_node.web.caller import Role, caller_of
from ich_node.web.clock import now
from ich_node.web.deliveries_page import delivery_lines
from ich_node.web.drift_watch import DriftWatch
from ich_node.web.metrics import NodeMetrics
from ich_node.web.operations_page import HEIGHT, WIDTH, operations_page
from ich_node.web.site import Site

logger = logging.getLogger(__name__)

LINES = 200
"""Deliveries on the page."""


class OperationsRoutes:
    """The operations page, deliveries, health and metrics."""

    def __init__(self, site: Site) -> None:
        self._site = site
        destinations = [pacs.name for pacs in site.settings.pacs]
        self._metrics = NodeMetrics(site.database, site.free_space, destinations)
        self.drift = DriftWatch(site.database)

    def router(self) -> APIRouter:
        """Addresses for who keeps the node running."""
        router = APIRouter()
        for path, endpoint in (
            ("/operations", self.operations),
            ("/deliveries", self.deliveries),
            ("/health/live", self.live),
            ("/health/ready", self.ready),
            ("/metrics", self.metrics),
        ):
            router.add_api_route(path, endpoint, methods=["GET", "HEAD"])
        return router

    def operations(self, request: Request) -> Response:
        """How the node does."""
        _require_admin(request)
        settings = self._site.settings
        revision, _ = self._site.database.revision()
        with self._site.database.reading() as session:
            page = operations_page(
                session,
                now=now(),
                revision=str(revision),
                bundles=settings.model.bundles,
                destinations=[each.name for each in (*settings.pacs, *settings.notified)],
                free_space=self._site.free_space,
                drifts=self.drift.latest(),
            )
        return self._site.render(
            request, "operations.html", page=page, chart_width=WIDTH, chart_height=HEIGHT
        )

    def deliveries(self, request: Request) -> Response:
        """What did not reach its destination at once, for who has to mend that."""
        _require_admin(request)
        with self._site.database.reading() as session:
            failed = outbox.deliveries(session, failed=True, limit=LINES + 1)
        lines = delivery_lines(failed[:LINES], now=now())
        return self._site.render(request, "deliveries.html", lines=lines, is_cut=len(failed) > LINES)

    def live(self) -> Response:
        """Whether this process answers."""
        return JSONResponse({"status": "live"})

    def ready(self) -> Response:
        """Whether the database answers and has the revision that this version needs.

        Low disk is said and is no fault here: objects are refused by the receiver, and their senders know, while
        whoever reads the worklist must not lose the page.
        """
        try:
            current, needed = self._site.database.revision()
        except Exception as error:  # whatever is wrong with the database, a probe gets an answer
            logger.warning("the database is not ready: %s", type(error).__name__)
            reason = str(error) if isinstance(error, ConfigurationError) else "the database does not answer"
            return JSONResponse({"status": "not ready", "reason": reason}, 503)
        if current != needed:
            reason = f"the database is at revision {current or 'none'}, this version needs {needed}"
            return JSONResponse({"status": "not ready", "reason": reason}, 503)
        return JSONResponse({"status": "ready", "revision": current, **self._disk()})

    def metrics(self, request: Request) -> Response:
        """What a monitor wants to know, in the Prometheus text format."""
        content, media_type = self._metrics.render(request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": media_type})

    def _disk(self) -> dict[str, str]:
        if self._site.free_space is None:
            return {}
        return {"disk": "low" if self._site.free_space.is_low() else "ok"}


def _require_admin(request: Request) -> None:
    if not caller_of(request).role.covers(Role.ADMIN):
        raise HTTPException(403, "This page is for administrators of the node.")
