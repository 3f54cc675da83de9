"""One study: its page, and the result objects that were made of it."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from ich_node.database.access import AccessAction
from ich_node.database.engine import Session
from ich_node.database.reviews import reviews_of
from ich_node.database.slices import count_present, read_series_of
from ich_node.database.worklist import result_file, result_files, study_report, worklist_row
from ich_node.errors import StudyRejected
from ich_node.viewer_settings import ViewerSettings
from ich_node.web import display
from ich_node.web.caller import caller_of
from ich_node.web.pictures import picture_source, sc_to_png
from ich_node.web.recent_views import RecentViews
from ich_node.web.site import Site, require_uid
from ich_node.web.study_page import study_page, study_version
from ich_node.web.study_reviews import study_reviews

logger = logging.getLogger(__name__)

IMMUTABLE = {"Cache-Control": "private, max-age=31536000, immutable"}

_ResultFiles = list[tuple[str, str, str]]
"""(kind, SOP Instance UID, file name), in viewing order."""


class StudyRoutes:
    """One study and its result objects.

    Parameters
    ----------
    views
        Of whom the access log knows that they look at a study now.
    viewer
        The site's own viewer.
    """

    def __init__(self, site: Site, views: RecentViews, viewer: ViewerSettings) -> None:
        self._site = site
        self._views = views
        self._viewer = viewer
        self._results_dir = site.settings.results_dir

    def router(self) -> APIRouter:
        """Addresses below ``/studies`` and ``/results``."""
        router = APIRouter()
        for path, endpoint in (
            ("/studies/{study_instance_uid}", self.page),
            ("/studies/{study_instance_uid}/version", self.version),
            ("/results/{sop_instance_uid}.png", self.picture),
            ("/results/{sop_instance_uid}.dcm", self.download),
        ):
            router.add_api_route(path, endpoint, methods=["GET", "HEAD"])
        return router

    def page(self, request: Request, study_instance_uid: str) -> Response:
        """One study with its overlays."""
        # One snapshot: a verdict is on the reading that is shown.
        with self._site.database.reading() as session:
            row, report, files = _study(session, study_instance_uid)
            series = read_series_of(session, study_instance_uid)
            present = count_present(session, series) if series is not None else 0
            said = reviews_of(session, study_instance_uid)
        sources = {uid: picture_source(self._results_dir / name) for kind, uid, name in files if kind == "SC"}
        page = study_page(
            row, report, sources, now=datetime.now(UTC), viewer_template=self._viewer.url_template
        )
        caller = caller_of(request)
        self._site.record(request, AccessAction.VIEW, study_instance_uid)
        self._views.is_new(caller, study_instance_uid)  # slices and pictures belong to this look
        return self._site.render(
            request,
            "study.html",
            page=page,
            reviews=study_reviews(said, report, series.reading_id if series else None, caller),
            has_slices=present > 0,
            slices_gone=series is not None and present == 0,
        )

    def version(self, study_instance_uid: str) -> Response:
        """Whether an open study page still shows what is known."""
        with self._site.database.reading() as session:
            row, report, _ = _study(session, study_instance_uid)
        version = study_version(row, report)
        return JSONResponse({"version": version, "shown_at": display.local_time(datetime.now(UTC))})

    def picture(self, request: Request, sop_instance_uid: str) -> Response:
        """A Secondary Capture as PNG."""
        path, study_instance_uid = self._result(sop_instance_uid, kinds=("SC",))
        if self._views.is_new(caller_of(request), study_instance_uid):
            self._site.record(request, AccessAction.VIEW, study_instance_uid, detail="pictures")
        try:
            return Response(sc_to_png(path), media_type="image/png", headers=IMMUTABLE)
        except FileNotFoundError:
            raise HTTPException(404, "The object's file is no longer in the results folder.") from None
        except StudyRejected as error:
            logger.warning("result object %s cannot be shown: %s", sop_instance_uid, error)
            raise HTTPException(422, f"This object cannot be shown: {error.detail}.") from None

    def download(self, request: Request, sop_instance_uid: str) -> Response:
        """A result object as it was sent to the PACS."""
        path, study_instance_uid = self._result(sop_instance_uid)
        if not path.is_file():
            raise HTTPException(404, "The object's file is no longer in the results folder.")
        self._site.record(request, AccessAction.RETRIEVE, study_instance_uid)
        name = f"{sop_instance_uid}.dcm"
        return FileResponse(path, media_type="application/dicom", filename=name, headers=IMMUTABLE)

    def _result(self, sop_instance_uid: str, *, kinds: tuple[str, ...] = ()) -> tuple[Path, str]:
        require_uid(sop_instance_uid)
        with self._site.database.reading() as session:
            found = result_file(session, sop_instance_uid)
        if found is None or (kinds and found.kind not in kinds):
            raise HTTPException(404, f"No such result object {sop_instance_uid} is here.")
        path = (self._results_dir / found.file_name).resolve()
        if not path.is_relative_to(self._results_dir.resolve()):
            raise HTTPException(404, f"No such result object {sop_instance_uid} is here.")
        return path, found.study_instance_uid


def _study(session: Session, study_instance_uid: str) -> tuple[dict[str, Any], dict[str, Any], _ResultFiles]:
    require_uid(study_instance_uid)
    row = worklist_row(session, study_instance_uid)
    report = study_report(session, study_instance_uid)
    if row is None or report is None:
        raise HTTPException(404, f"No study {study_instance_uid} is here.")
    return row, report, result_files(session, study_instance_uid)
