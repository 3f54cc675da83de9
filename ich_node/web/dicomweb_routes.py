"""DICOMweb: searching for studies, series and objects and retrieving them (PS3.18 10.4 and 10.6)."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from ich_node.database.access import AccessAction
from ich_node.database.holdings import HeldInstance
from ich_node.database.retention import Folder
from ich_node.decoding import shared_decoder
from ich_node.errors import RejectionReason, StudyRejected, TransientError
from ich_node.web.caller import Role, caller_of
from ich_node.web.dicomweb_frames import (
    OCTETS,
    PICTURES,
    choose_frames,
    frame_numbers,
    frame_parts,
    object_offers,
)
from ich_node.web.dicomweb_json import Attributes, element, in_order
from ich_node.web.dicomweb_levels import Level
from ich_node.web.dicomweb_media_types import DICOM_JSON, JSON, Choice, Offer, choose, content_type
from ich_node.web.dicomweb_openapi import BULK_PATTERN, description
from ich_node.web.dicomweb_pixels import StoredPixels, file_part, stored_pixels
from ich_node.web.dicomweb_query import Query, parse_query
from ich_node.web.dicomweb_rendered import parse_rendering, render
from ich_node.web.dicomweb_retrieve import (
    Part,
    answer,
    bulk_value,
    explicit_object,
    json_array,
    metadata,
)
from ich_node.web.dicomweb_search import Found, Search, address_of
from ich_node.web.dicomweb_shelf import Shelf
from ich_node.web.recent_views import RecentViews
from ich_node.web.site import Site, require_uid

logger = logging.getLogger(__name__)

PREFIX = "/dicom-web"
_STUDY = "/studies/{study_instance_uid}"
_SERIES = f"{_STUDY}/series/{{series_instance_uid}}"
_OBJECT = f"{_SERIES}/instances/{{sop_instance_uid}}"
_METADATA = (Offer(name=DICOM_JSON), Offer(name=JSON))
_FUZZY = "The fuzzymatching parameter is not supported. Only literal matching has been performed."
_NAMING = frozenset(
    ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "PatientID", "PatientName", "AccessionNumber")
)
"""Keys by which somebody searches for certain studies rather than leafing through all of them."""
_PIXEL_DATA = "7FE00010"
_NO_PICTURE = "There is no picture of this: retrieve it as application/dicom."
_STATUS = {RejectionReason.NO_IMAGES: 404, RejectionReason.UNSUPPORTED_TRANSFER_SYNTAX: 406}
_TRIED_FOR_THUMBNAIL = 8


@dataclass(frozen=True, kw_only=True)
class _Place:
    """What a path names."""

    study_instance_uid: str | None
    series_instance_uid: str | None
    sop_instance_uid: str | None

    @classmethod
    def of(cls, request: Request) -> _Place:
        uids = [request.path_params.get(name) for name in cls.__dataclass_fields__]
        for uid in uids:
            if uid is not None:
                require_uid(uid)
        return cls(study_instance_uid=uids[0], series_instance_uid=uids[1], sop_instance_uid=uids[2])


class DicomwebRoutes:
    """Everything below ``/dicom-web`` that is asked for by GET."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._shelf = Shelf(site.settings, site.database)
        self._decoder = shared_decoder(site.settings.worker.decoder_memory_mib * 2**20)
        self._looks = RecentViews()

    def router(self) -> APIRouter:
        """Addresses of QIDO-RS and WADO-RS."""
        router = APIRouter(prefix=PREFIX)

        def add(path: str, kind: str, level: Level, endpoint: Callable[[Request], Response]) -> None:
            name = f"{kind}{re.sub(r'[^a-z]+', '_', path)}".strip("_")
            router.add_api_route(
                path, self._admitting(endpoint), methods=["GET"], response_class=Response,
                operation_id=f"dicomweb_{name}", **description(path, kind, level),
            )  # fmt: skip

        for path, level in (
            ("/studies", Level.STUDY),
            ("/series", Level.SERIES),
            ("/instances", Level.INSTANCE),
            (f"{_STUDY}/series", Level.SERIES),
            (f"{_STUDY}/instances", Level.INSTANCE),
            (f"{_SERIES}/instances", Level.INSTANCE),
        ):
            add(path, "search", level, partial(self.search, level))
        for path, level in ((_STUDY, Level.STUDY), (_SERIES, Level.SERIES), (_OBJECT, Level.INSTANCE)):
            add(path, "objects", level, self.objects)
            add(f"{path}/metadata", "metadata", level, self.metadata)
            add(f"{path}/rendered", "rendered", level, self.rendered)
            add(f"{path}/thumbnail", "thumbnail", level, self.thumbnail)
        add(f"{_OBJECT}/frames/{{frames}}", "frames", Level.INSTANCE, self.frames)
        add(f"{_OBJECT}/frames/{{frames}}/rendered", "rendered", Level.INSTANCE, self.rendered)
        add(f"{_OBJECT}/frames/{{frames}}/thumbnail", "thumbnail", Level.INSTANCE, self.thumbnail)
        add(f"{_OBJECT}/bulkdata/{{place}}", "bulkdata", Level.INSTANCE, self.bulkdata)
        return router

    def search(self, level: Level, request: Request) -> Response:
        """Search (10.6)."""
        place = _Place.of(request)
        offer = choose(request, _METADATA, single=True, multipart=False).offer
        query = parse_query(level, request.query_params.multi_items())
        base = _base(request)
        with self._site.database.reading() as session:
            found = Search(
                self._shelf,
                session,
                query,
                base=base,
                study_instance_uid=place.study_instance_uid,
                series_instance_uid=place.series_instance_uid,
            ).answer()
        self._record_search(request, place, query, found)
        headers = _warnings(base, query, found)
        if not found.results:
            return Response(status_code=204, headers=headers)
        content = json.dumps(found.results, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return Response(content.encode(), media_type=offer.name, headers=headers)

    def objects(self, request: Request) -> Response:
        """Retrieve a study, a series or an object (10.4.1.1.1)."""
        instances = self._instances(request)
        with _worded():
            choices = [self._choose_object(request, one, single=len(instances) == 1) for one in instances]
            self._record(request, instances, detail=f"{len(instances)} objects")
            if choices[0].offer.is_stored and not choices[0].is_multipart:
                path = self._path(instances[0])
                path.stat()
                return FileResponse(path, media_type=content_type(choices[0].offer))
            pairs = zip(instances, choices, strict=True)
            parts = (Part(offer=choice.offer, pieces=self._object(one, choice)) for one, choice in pairs)
            return answer(parts, is_multipart=choices[0].is_multipart)

    def metadata(self, request: Request) -> Response:
        """Retrieve attributes without pixels (10.4.1.1.2)."""
        instances = self._instances(request)
        offer = choose(request, _METADATA, single=True, multipart=False).offer
        self._record(request, instances, detail="metadata")
        with _worded():
            written = json_array(self._entries(instances, _base(request)))
            begun = next(written)
        return StreamingResponse(chain((begun,), written), media_type=offer.name)

    def frames(self, request: Request) -> Response:
        """Retrieve frames (10.4.1.1.6)."""
        (one,) = self._instances(request)
        with _worded():
            pixels = self._pixels(one)
            numbers = frame_numbers(request.path_params["frames"], pixels)
            choice = choose_frames(request, pixels, numbers)
            self._record_look(request, one, "frames")
            return self._frames_answer(request, one, pixels, numbers, choice)

    def bulkdata(self, request: Request) -> Response:
        """Retrieve one long value (10.4.1.1.5)."""
        (one,) = self._instances(request)
        place = request.path_params["place"]
        if not re.fullmatch(BULK_PATTERN, place):
            raise HTTPException(404, "The object has no such value.")
        address = f"{_base(request)}{address_of(one)}/bulkdata/{place}"
        with _worded():
            if place != _PIXEL_DATA:
                pieces = bulk_value(self._path(one), place)
            else:
                pixels = self._pixels(one)
                if pixels.fragments is not None:
                    numbers = range(1, pixels.number_of_frames + 1)
                    choice = choose_frames(request, pixels, numbers)
                    self._record_look(request, one, "pixel data")
                    return self._frames_answer(request, one, pixels, numbers, choice)
                pieces = pixels.native()
            choice = choose(request, [OCTETS], single=True)
            self._record_look(request, one, "bulk data")
            part = Part(offer=choice.offer, pieces=pieces, location=address)
            return answer([part], is_multipart=choice.is_multipart)

    def rendered(self, request: Request) -> Response:
        """Retrieve pictures (10.4.1.1.3)."""
        instances = self._instances(request)
        rendering = parse_rendering(request.query_params)
        with _worded():
            if len(instances) > 1:
                choice = choose(request, PICTURES, single=False)
                shown = self._with_pictures(instances)
                frames = ((p, n) for p in shown for n in range(1, p.number_of_frames + 1))
            else:
                pixels = self._pixels(instances[0])
                asked = request.path_params.get("frames")
                count = pixels.number_of_frames
                numbers = frame_numbers(asked, pixels) if asked else list(range(1, count + 1))
                choice = self._choose_picture(request, len(numbers))
                frames = ((pixels, number) for number in numbers)
            self._record_look(request, instances[0], "rendered")
            draw = partial(render, rendering=rendering, media_type=choice.offer.name, decoder=self._decoder)
            parts = (Part(offer=choice.offer, pieces=iter((draw(p, n),))) for p, n in frames)
            return _if_any(parts, is_multipart=choice.is_multipart)

    def thumbnail(self, request: Request) -> Response:
        """Retrieve one small picture that stands for all (10.4.1.1.4)."""
        instances = self._instances(request)
        rendering = parse_rendering(request.query_params, thumbnail=True)
        choice = choose(request, PICTURES, single=True, multipart=False)
        with _worded():
            middle = len(instances) // 2
            tried = [*instances[middle:], *instances[:middle]][:_TRIED_FOR_THUMBNAIL]
            pixels = next(self._with_pictures(tried), None)
            if pixels is None:
                raise HTTPException(406, _NO_PICTURE)
            asked = request.path_params.get("frames")
            number = frame_numbers(asked, pixels)[0] if asked else (pixels.number_of_frames + 1) // 2
            self._record_look(request, instances[0], "thumbnail")
            content = render(pixels, number, rendering, choice.offer.name, self._decoder)
        return Response(content, media_type=choice.offer.name)

    def _admitting(self, endpoint: Callable[[Request], Response]) -> Callable[[Request], Response]:
        """Let viewers in, and nobody who may do less."""

        def serve(request: Request) -> Response:
            if not caller_of(request).role.covers(Role.VIEWER):
                self._site.record(request, AccessAction.RETRIEVE, refused=True, detail=request.url.path)
                raise HTTPException(403, "This needs the role viewer.")
            return endpoint(request)

        return serve

    def _instances(self, request: Request) -> list[HeldInstance]:
        place = _Place.of(request)
        assert place.study_instance_uid is not None
        return self._shelf.instances(
            place.study_instance_uid, place.series_instance_uid, place.sop_instance_uid
        )

    def _path(self, one: HeldInstance) -> Path:
        return self._shelf.path(one.folder, one.file_name)

    def _pixels(self, one: HeldInstance) -> StoredPixels:
        pixels = stored_pixels(self._path(one), is_ours=one.folder is Folder.RESULTS)
        if pixels is None:
            raise HTTPException(406, _NO_PICTURE)
        return pixels

    def _with_pictures(self, instances: Iterable[HeldInstance]) -> Iterator[StoredPixels]:
        for one in instances:
            try:
                pixels = stored_pixels(self._path(one), is_ours=one.folder is Folder.RESULTS)
            except StudyRejected as error:
                logger.warning("%s cannot be drawn: %s", one.sop_instance_uid, error)
                continue
            if pixels is not None and pixels.is_drawable:
                yield pixels

    def _choose_object(self, request: Request, one: HeldInstance, *, single: bool) -> Choice:
        offers = object_offers(one.transfer_syntax_uid, can_be_decoded=True)
        choice = choose(request, offers, single=single)
        if choice.offer.is_stored:
            return choice
        pixels = stored_pixels(self._path(one), is_ours=one.folder is Folder.RESULTS)
        if pixels is None or pixels.is_decodable:
            return choice
        return choose(request, object_offers(one.transfer_syntax_uid, can_be_decoded=False), single=single)

    def _choose_picture(self, request: Request, count: int) -> Choice:
        try:
            return choose(request, PICTURES, single=count == 1, prefer_single=True)
        except HTTPException as refusal:
            more = f" It has {count} frames: one of them is at frames/1/rendered." if count > 1 else ""
            raise HTTPException(refusal.status_code, f"{refusal.detail}{more}") from None

    def _object(self, one: HeldInstance, choice: Choice) -> Iterator[bytes]:
        path = self._path(one)
        if choice.offer.is_stored:
            yield from file_part(path, 0, path.stat().st_size)
        else:
            yield from explicit_object(path, is_ours=one.folder is Folder.RESULTS, decoder=self._decoder)

    def _entries(self, instances: Sequence[HeldInstance], base: str) -> Iterator[Attributes]:
        for one in instances:
            try:
                yield metadata(self._path(one), f"{base}{address_of(one)}")
            except (FileNotFoundError, StudyRejected) as error:
                if len(instances) == 1:
                    raise
                # The others are shown all the same.
                logger.warning("the header of %s cannot be read: %s", one.sop_instance_uid, error)
                yield _identity(one)

    def _frames_answer(
        self,
        request: Request,
        one: HeldInstance,
        pixels: StoredPixels,
        numbers: Sequence[int],
        choice: Choice,
    ) -> Response:
        address = f"{_base(request)}{address_of(one)}"
        parts = frame_parts(pixels, numbers, choice.offer, self._decoder, address)
        return answer(parts, is_multipart=choice.is_multipart)

    def _record(self, request: Request, instances: Sequence[HeldInstance], *, detail: str) -> None:
        self._site.record(request, AccessAction.RETRIEVE, instances[0].study_instance_uid, detail=detail)

    def _record_look(self, request: Request, one: HeldInstance, detail: str) -> None:
        """Once for a viewer that fetches a study frame by frame."""
        if self._looks.is_new(caller_of(request), one.study_instance_uid):
            self._record(request, [one], detail=detail)

    def _record_search(self, request: Request, place: _Place, query: Query, found: Found) -> None:
        keys = query.keywords() | ({"StudyInstanceUID"} if place.study_instance_uid else set())
        words = f"keys: {', '.join(sorted(keys)) or 'none'}"
        if keys & _NAMING and found.studies:
            for uid in found.studies:
                self._site.record(request, AccessAction.QUERY, uid, detail=words)
        else:
            self._site.record(request, AccessAction.QUERY, detail=f"{len(found.studies)} studies; {words}")


def _base(request: Request) -> str:
    return f"{str(request.base_url).rstrip('/')}{PREFIX}"


def _identity(one: HeldInstance) -> Attributes:
    return in_order(
        {
            **element("SOPClassUID", [one.sop_class_uid]),
            **element("SOPInstanceUID", [one.sop_instance_uid]),
            **element("StudyInstanceUID", [one.study_instance_uid]),
            **element("SeriesInstanceUID", [one.series_instance_uid]),
        }
    )


def _warnings(base: str, query: Query, found: Found) -> dict[str, str]:
    words = [_FUZZY] if query.is_fuzzy else []
    if found.more:
        count = "" if found.more == "further" else f"{found.more} "
        words.append(f"There are {count}additional results that can be requested")
    return {"Warning": ", ".join(f'299 {base}: "{each}"' for each in words)} if words else {}


def _if_any(parts: Iterable[Part], *, is_multipart: bool) -> Response:
    try:
        return answer(parts, is_multipart=is_multipart)
    except StopIteration:
        raise HTTPException(406, _NO_PICTURE) from None


@contextmanager
def _worded() -> Iterator[None]:
    """Words for what is wrong with an object."""
    try:
        yield
    except FileNotFoundError:
        raise HTTPException(410, "The object's file is no longer here: ask the PACS for it.") from None
    except StudyRejected as error:
        logger.warning("an object cannot be served: %s", error)
        raise HTTPException(_STATUS.get(error.reason, 422), f"It cannot be served: {error.detail}") from None
    except TransientError as error:
        logger.warning("%s", error)
        raise HTTPException(503, "It cannot be decoded now; try again.") from None
