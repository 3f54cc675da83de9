"""The web application: routes from addresses to pages."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from ich_node.database import outbox
from ich_node.database.engine import Database
from ich_node.database.worklist import result_file, result_files, study_report, worklist, worklist_row
from ich_node.errors import ConfigurationError, StudyRejected, TransientError
from ich_node.receive.free_space import FreeSpace
from ich_node.receive.stow import StoreDesk
from ich_node.web import display
from ich_node.web.deliveries_page import delivery_lines
from ich_node.web.metrics import NodeMetrics
from ich_node.web.pictures import picture_source, sc_to_png
from ich_node.web.security import SECURITY_HEADERS, Guard
from ich_node.web.stow import StoreRoute
from ich_node.web.study_page import study_page, study_version
from ich_node.web.wording import DISCLAIMER
from ich_node.web.worklist_page import tallies, worklist_lines

logger = logging.getLogger(__name__)

LINES = 200
"""Studies on the page, the most urgent first."""

_UID = re.compile(r"[0-9.]{1,64}")
_IMMUTABLE = {"Cache-Control": "private, max-age=31536000, immutable"}
_HERE = Path(__file__).parent
_TRANSIENT_WORDS = "The database does not answer at the moment, so the worklist cannot be shown."

_ResultFiles = list[tuple[str, str, str]]
"""(kind, SOP Instance UID, file name), in viewing order."""


class _RevalidatedFiles(StaticFiles):
    """Static files that a browser asks for again after an upgrade."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Send a file."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


class _Pages:
    """Handlers of all addresses."""

    def __init__(
        self, database: Database, results_dir: Path, free_space: FreeSpace | None, destinations: Sequence[str]
    ) -> None:
        self._database = database
        self._results_dir = results_dir
        self._free_space = free_space
        self._metrics = NodeMetrics(database, free_space, destinations)
        self._templates = Environment(
            loader=PackageLoader("ich_node.web"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def worklist(self) -> Response:
        """The page that a radiologist keeps open."""
        return self._render("worklist.html", **self._worklist())

    def worklist_fragment(self) -> Response:
        """The part of the page that changes."""
        return self._render("worklist_fragment.html", **self._worklist())

    def study(self, study_instance_uid: str) -> Response:
        """One study with its overlays."""
        row, report, files = self._study(study_instance_uid)
        now = datetime.now(UTC)
        sources = {uid: picture_source(self._results_dir / name) for kind, uid, name in files if kind == "SC"}
        page = study_page(row, report, sources, now=now)
        return self._render("study.html", page=page, shown_at=display.local_time(now))

    def study_version(self, study_instance_uid: str) -> Response:
        """Whether an open study page still shows what is known."""
        row, report, _ = self._study(study_instance_uid)
        version = study_version(row, report)
        return JSONResponse({"version": version, "shown_at": display.local_time(datetime.now(UTC))})

    def picture(self, sop_instance_uid: str) -> Response:
        """A Secondary Capture as PNG."""
        path = self._result_path(sop_instance_uid, kinds=("SC",))
        try:
            return Response(sc_to_png(path), media_type="image/png", headers=_IMMUTABLE)
        except FileNotFoundError:
            raise HTTPException(404, "The object's file is no longer in the results folder.") from None
        except StudyRejected as error:
            logger.warning("result object %s cannot be shown: %s", sop_instance_uid, error)
            raise HTTPException(422, f"This object cannot be shown: {error.detail}.") from None

    def download(self, sop_instance_uid: str) -> Response:
        """A result object as it was sent to the PACS."""
        path = self._result_path(sop_instance_uid)
        if not path.is_file():
            raise HTTPException(404, "The object's file is no longer in the results folder.")
        name = f"{sop_instance_uid}.dcm"
        return FileResponse(path, media_type="application/dicom", filename=name, headers=_IMMUTABLE)

    def deliveries(self) -> Response:
        """What did not reach its destination at once, for who has to mend that."""
        with self._database.reading() as session:
            failed = outbox.deliveries(session, failed=True, limit=LINES + 1)
        now = datetime.now(UTC)
        return self._render(
            "deliveries.html",
            lines=delivery_lines(failed[:LINES], now=now),
            is_cut=len(failed) > LINES,
            shown_at=display.local_time(now),
        )

    def live(self) -> Response:
        """Whether this process answers."""
        return JSONResponse({"status": "live"})

    def ready(self) -> Response:
        """Whether the database answers and has the revision that this version needs.

        Low disk is said and is no fault here: objects are refused by the receiver, and their senders know, while
        whoever reads the worklist must not lose the page.
        """
        try:
            current, needed = self._database.revision()
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

    async def not_served(self, request: Request, error: Exception) -> Response:
        """Words for a request that cannot be served."""
        assert isinstance(error, HTTPException)
        words = error.detail if error.detail != "Not Found" else "There is no such page."
        return self._fault(request, error.status_code, words)

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
        shown_at = display.local_time(datetime.now(UTC))
        page = self._render("fault.html", status=status, words=words, shown_at=shown_at)
        page.status_code = status
        page.headers.update(SECURITY_HEADERS)  # the outermost error handler answers outside the middleware
        return page

    def _disk(self) -> dict[str, str]:
        if self._free_space is None:
            return {}
        return {"disk": "low" if self._free_space.is_low() else "ok"}

    def _worklist(self) -> dict[str, Any]:
        with self._database.reading() as session:
            rows = worklist(session, limit=LINES + 1)
        now = datetime.now(UTC)
        return {
            "lines": worklist_lines(rows[:LINES], now=now),
            "tallies": tallies(rows[:LINES]),
            "is_cut": len(rows) > LINES,
            "shown_at": display.local_time(now),
        }

    def _study(self, study_instance_uid: str) -> tuple[dict[str, Any], dict[str, Any], _ResultFiles]:
        _require_uid(study_instance_uid)
        with self._database.reading() as session:
            row = worklist_row(session, study_instance_uid)
            report = study_report(session, study_instance_uid)
            files = result_files(session, study_instance_uid)
        if row is None or report is None:
            raise HTTPException(404, f"No study {study_instance_uid} is here.")
        return row, report, files

    def _result_path(self, sop_instance_uid: str, *, kinds: tuple[str, ...] = ()) -> Path:
        _require_uid(sop_instance_uid)
        with self._database.reading() as session:
            found = result_file(session, sop_instance_uid)
        if found is None or (kinds and found[0] not in kinds):
            raise HTTPException(404, f"No such result object {sop_instance_uid} is here.")
        path = (self._results_dir / found[1]).resolve()
        if not path.is_relative_to(self._results_dir.resolve()):
            raise HTTPException(404, f"No such result object {sop_instance_uid} is here.")
        return path

    def _render(self, template: str, **values: Any) -> HTMLResponse:
        return HTMLResponse(self._templates.get_template(template).render(disclaimer=DISCLAIMER, **values))


def create_app(
    database: Database,
    results_dir: Path,
    store_desk: StoreDesk | None = None,
    *,
    free_space: FreeSpace | None = None,
    destinations: Sequence[str] = (),
) -> FastAPI:
    """Build the worklist application.

    Parameters
    ----------
    database
        Read only; whoever made it closes it.
    results_dir
        Folder of the result objects.
    store_desk
        Takes objects by STOW-RS, which is not served without it; whoever made it closes it.
    free_space
        Of the spool, for health and metrics.
    destinations
        Names of the PACS, for the metrics.
    """
    pages = _Pages(database, results_dir, free_space, destinations)
    app = FastAPI(title="ich_node", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard)
    for path, endpoint in (
        ("/", pages.worklist),
        ("/worklist", pages.worklist_fragment),
        ("/studies/{study_instance_uid}", pages.study),
        ("/studies/{study_instance_uid}/version", pages.study_version),
        ("/results/{sop_instance_uid}.png", pages.picture),
        ("/results/{sop_instance_uid}.dcm", pages.download),
        ("/deliveries", pages.deliveries),
        ("/health/live", pages.live),
        ("/health/ready", pages.ready),
        ("/metrics", pages.metrics),
    ):
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"])
    if store_desk is not None:
        store = StoreRoute(store_desk).store
        for path in ("/dicom-web/studies", "/dicom-web/studies/{study_instance_uid}"):
            app.add_api_route(path, store, methods=["POST"])
    app.mount("/static", _RevalidatedFiles(directory=_HERE / "static"), name="static")
    app.add_exception_handler(HTTPException, pages.not_served)
    app.add_exception_handler(TransientError, pages.database_away)
    app.add_exception_handler(ConfigurationError, pages.database_unfit)
    app.add_exception_handler(Exception, pages.broken)
    return app


def _require_uid(text: str) -> None:
    if _UID.fullmatch(text) is None:
        raise HTTPException(404, "This is no DICOM UID.")
