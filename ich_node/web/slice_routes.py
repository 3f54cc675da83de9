"""Slices of the series that was read, and its likelihood maps, for the viewer of the study page."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from ich_node.database.access import AccessAction
from ich_node.database.slices import (
    ReadSeries,
    SliceSource,
    maps_file_name,
    read_series,
    read_series_of,
    slice_source,
)
from ich_node.decoding import DecodeLimits
from ich_node.errors import StudyRejected, TransientError
from ich_node.web.caller import caller_of
from ich_node.web.recent_views import RecentViews
from ich_node.web.site import Site, require_uid
from ich_node.web.slice_images import slice_hu
from ich_node.web.slice_viewer import slice_geometry, viewer_facts

logger = logging.getLogger(__name__)

IMMUTABLE = {"Cache-Control": "private, max-age=31536000, immutable"}
_GONE = "The images of this study are no longer here; the PACS has them."
_FASTEST = 1
_MOST_READINGS = 2**31
_WORTH_PACKING = 0.95
"""A slice that packs worse than this is sent as it is."""


class SliceRoutes:
    """Pixels for the browser."""

    def __init__(self, site: Site, views: RecentViews) -> None:
        self._site = site
        self._views = views
        worker = site.settings.worker
        self._limits = DecodeLimits(
            max_image_bytes=worker.max_image_mib * 2**20,
            decoder_memory_bytes=worker.decoder_memory_mib * 2**20,
        )

    def router(self) -> APIRouter:
        """Addresses below ``/studies``."""
        router = APIRouter()
        for path, endpoint in (
            ("/studies/{study_instance_uid}/viewer", self.facts),
            ("/studies/{study_instance_uid}/series/{series_instance_uid}/slices/{index}", self.slice),
            ("/studies/{study_instance_uid}/readings/{reading_id}/maps", self.maps),
        ):
            router.add_api_route(path, endpoint, methods=["GET", "HEAD"])
        return router

    def facts(self, request: Request, study_instance_uid: str) -> Response:
        """What the viewer has to know of the slices, without their pixels."""
        require_uid(study_instance_uid)
        with self._site.database.reading() as session:
            series = read_series_of(session, study_instance_uid)
            source = slice_source(session, series, 0) if series is not None and series.slices else None
        if series is None:
            raise HTTPException(404, "This study was not read: there are no slices to show with a result.")
        self._record(request, study_instance_uid)
        geometry = None if source is None else slice_geometry(self._path(source), source)
        return JSONResponse(viewer_facts(study_instance_uid, series, geometry))

    def slice(
        self, request: Request, study_instance_uid: str, series_instance_uid: str, index: int, of: str
    ) -> Response:
        """One slice as rows x columns little-endian int16, HU, counted from 0 at the lowest.

        ``of`` names the content that was read, so that an address means the same pixels for ever.
        """
        require_uid(study_instance_uid)
        require_uid(series_instance_uid)
        with self._site.database.reading() as session:
            series = read_series(session, study_instance_uid, series_instance_uid, of)
            if series is None or not 0 <= index < len(series.slices):
                raise HTTPException(404, "There is no such slice.")
            source = slice_source(session, series, index)
        if source is None:
            raise HTTPException(410, _GONE)
        self._record(request, study_instance_uid)
        tag = f'"{source.content_hash[:16]}-{source.frame_number or 0}"'
        headers = {**IMMUTABLE, "ETag": tag, "Vary": "Accept-Encoding"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return _packed(self._pixels(source, series, index), request, headers)

    def maps(self, request: Request, study_instance_uid: str, reading_id: int) -> Response:
        """The likelihood maps of a reading, as `ich_node.report.likelihood_maps` writes them."""
        require_uid(study_instance_uid)
        with self._site.database.reading() as session:
            is_number = 0 < reading_id < _MOST_READINGS  # a database takes no larger one
            name = maps_file_name(session, study_instance_uid, reading_id) if is_number else None
        if name is None:
            raise HTTPException(404, "There are no likelihood maps of this reading, or none any more.")
        self._record(request, study_instance_uid)
        try:
            content = (self._site.settings.results_dir / Path(name).name).read_bytes()
        except OSError:
            raise HTTPException(
                404, "The file of likelihood maps is no longer in the results folder."
            ) from None
        headers = {**IMMUTABLE, "Content-Type": "application/octet-stream", "Vary": "Accept-Encoding"}
        if not _takes_gzip(request):
            return Response(gzip.decompress(content), headers=headers)
        return Response(content, headers={**headers, "Content-Encoding": "gzip"})

    def _pixels(self, source: SliceSource, series: ReadSeries, index: int) -> bytes:
        path = self._path(source)
        if not path.is_file():
            raise HTTPException(410, _GONE)
        try:
            return slice_hu(path, source.frame_number, limits=self._limits).tobytes()
        except StudyRejected as rejected:
            logger.warning(
                "slice %d of series %s cannot be shown: %s",
                index,
                series.series_instance_uid,
                rejected.reason,
            )
            raise HTTPException(422, f"This slice cannot be shown: {rejected.detail}") from None
        except TransientError as error:
            logger.warning("a slice cannot be shown now: %s", error)
            raise HTTPException(503, "This slice cannot be decoded at the moment; try again.") from None

    def _path(self, source: SliceSource) -> Path:
        root = self._site.settings.spool_dir.resolve()
        path = (root / source.file_name).resolve()
        if not path.is_relative_to(root):
            raise HTTPException(410, _GONE)
        return path

    def _record(self, request: Request, study_instance_uid: str) -> None:
        if self._views.is_new(caller_of(request), study_instance_uid):
            self._site.record(request, AccessAction.VIEW, study_instance_uid, detail="slices")


def _packed(pixels: bytes, request: Request, headers: dict[str, str]) -> Response:
    headers = {**headers, "Content-Type": "application/octet-stream"}
    if _takes_gzip(request):
        packed = gzip.compress(pixels, _FASTEST, mtime=0)
        if len(packed) < _WORTH_PACKING * len(pixels):
            return Response(packed, headers={**headers, "Content-Encoding": "gzip"})
    return Response(pixels, headers=headers)


def _takes_gzip(request: Request) -> bool:
    """Whether Accept-Encoding (RFC 9110 12.5.3) names gzip, not with a weight of 0."""
    for item in request.headers.get("accept-encoding", "").lower().split(","):
        coding, _, parameters = item.partition(";")
        if coding.strip() == "gzip":
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
