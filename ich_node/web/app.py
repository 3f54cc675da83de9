"""The web application: who is let in, which module answers which addresses, and words for what cannot be served."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from ich_node.database.engine import Database
from ich_node.errors import ConfigurationError, TransientError
from ich_node.receive.free_space import FreeSpace
from ich_node.receive.stow import StoreDesk
from ich_node.settings import Settings
from ich_node.web.api_routes import ApiRoutes
from ich_node.web.dicomweb_routes import DicomwebRoutes
from ich_node.web.login_routes import LoginRoutes
from ich_node.web.operations_routes import OperationsRoutes
from ich_node.web.recent_views import RecentViews
from ich_node.web.review_routes import ReviewRoutes
from ich_node.web.security import SECURITY_HEADERS, Guard
from ich_node.web.sessions import Admission
from ich_node.web.site import Site
from ich_node.web.slice_routes import SliceRoutes
from ich_node.web.stow import StoreRoute
from ich_node.web.study_routes import StudyRoutes
from ich_node.web.ups_events import UpsEvents
from ich_node.web.ups_routes import UpsRoutes
from ich_node.web.worklist_routes import WorklistRoutes

logger = logging.getLogger(__name__)

_HERE = Path(__file__).parent
_TRANSIENT_WORDS = "The database does not answer at the moment, so the worklist cannot be shown."


class _RevalidatedFiles(StaticFiles):
    """Static files that a browser asks for again after an upgrade."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Send a file."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


class _Faults:
    """Words for what cannot be served."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def not_served(self, request: Request, error: Exception) -> Response:
        """Words for a request that cannot be served."""
        assert isinstance(error, HTTPException)
        words = error.detail if error.detail != "Not Found" else "There is no such page."
        response = self._fault(request, error.status_code, words)
        response.headers.update(error.headers or {})
        return response

    async def not_understood(self, request: Request, error: Exception) -> Response:
        """Words for an address or a body that is not as it must be, without what stood in it."""
        assert isinstance(error, RequestValidationError)
        if "text/html" in request.headers.get("accept", ""):
            return self._fault(
                request, 422, "A part of this address, or of what was sent, is not as it must be."
            )
        detail = [{key: one[key] for key in ("type", "loc", "msg")} for one in error.errors()]
        # In ASCII: a key that was sent may hold what UTF-8 cannot.
        return Response(json.dumps({"detail": detail}), 422, media_type="application/json")

    async def database_away(self, request: Request, error: Exception) -> Response:
        """Words for a database that does not answer now."""
        logger.warning("%s", error)
        return self._fault(request, 503, _TRANSIENT_WORDS)

    async def database_unfit(self, request: Request, error: Exception) -> Response:
        """Words for a database that an administrator must mend."""
        logger.error("%s", error)
        return self._fault(request, 503, f"The worklist cannot be shown: {error}.")

    async def broken(self, request: Request, error: Exception) -> Response:
        """Words for a fault of this program; the server logs it."""
        return self._fault(request, 500, "This node has a fault; its log has the details.")

    def _fault(self, request: Request, status: int, words: str) -> Response:
        if "text/html" not in request.headers.get("accept", ""):
            return PlainTextResponse(f"{words}\n", status, headers=SECURITY_HEADERS)
        page = self._site.render(request, "fault.html", status=status, words=words)
        page.status_code = status
        page.headers.update(SECURITY_HEADERS)  # the outermost error handler answers outside the middleware
        return page


def create_app(
    settings: Settings,
    database: Database,
    store_desk: StoreDesk | None = None,
    *,
    free_space: FreeSpace | None = None,
) -> FastAPI:
    """Build the web application.

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
    site = Site(settings, database, store_desk=store_desk, free_space=free_space)
    app = FastAPI(title="ich_node", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Admission, site=site)
    app.add_middleware(Guard, web=settings.web)  # outside of the other
    worklist = WorklistRoutes(site)
    app.state.changes = worklist.changes
    views = RecentViews()
    study = StudyRoutes(site, views, settings.viewer)
    for routes in (LoginRoutes(site), worklist, study, OperationsRoutes(site)):
        app.include_router(routes.router())
    app.include_router(SliceRoutes(site, views).router())
    app.include_router(ReviewRoutes(site).router())
    app.include_router(ApiRoutes(site).router())
    app.include_router(DicomwebRoutes(site).router())
    app.include_router(UpsRoutes(site).router())
    app.include_router(UpsEvents(site).router())
    if store_desk is not None:
        store = StoreRoute(store_desk).store
        for path in ("/dicom-web/studies", "/dicom-web/studies/{study_instance_uid}"):
            app.add_api_route(path, store, methods=["POST"])
    app.mount("/static", _RevalidatedFiles(directory=_HERE / "static"), name="static")
    faults = _Faults(site)
    app.add_exception_handler(HTTPException, faults.not_served)
    app.add_exception_handler(RequestValidationError, faults.not_understood)
    app.add_exception_handler(TransientError, faults.database_away)
    app.add_exception_handler(ConfigurationError, faults.database_unfit)
    app.add_exception_handler(Exception, faults.broken)
    return app
