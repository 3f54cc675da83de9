"""Storage by DICOMweb (STOW-RS, PS3.18 section 10.5): the route, and how a body comes off the network.

A body is read only as fast as it is written to disk, in threads of its own, so that neither memory nor the
pages suffer. What a Store transaction is stands in `ich_node.receive.stow`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response

from ich_node.receive.admission import Refusal, StorageStatus
from ich_node.receive.limits import Limits, is_valid_uid
from ich_node.receive.multipart_related import MediaType, MultipartError, is_boundary
from ich_node.receive.store_response import ResponseType, StoreReport, choose_response_type
from ich_node.receive.stow import DICOM, SOURCE_AE_TITLE, BodyTooLarge, StoreDesk, StoreSession

logger = logging.getLogger(__name__)

REQUESTS_AT_ONCE = 16
RETRY_BUSY_S, RETRY_NO_ROOM_S = 5, 60
PACE_WINDOW_S = 30.0

_DRAIN_BYTES = 2**26
_DRAIN_SECONDS = 10.0
_MULTIPART = "multipart/related"
_CLOSE = {"Connection": "close"}

_T = TypeVar("_T")


class _TooSlow(Exception):
    """The client sends less than `Limits` demand."""


class _NotServed(Exception):
    """A request that is refused before its body is looked at."""

    def __init__(self, status: int, words: str, *, retry_after_s: int = 0) -> None:
        super().__init__(words)
        self.status = status
        self.headers = {"Retry-After": str(retry_after_s)} if retry_after_s else {}


@dataclass(frozen=True, kw_only=True)
class _Demand:
    """What a request's line and headers ask for."""

    boundary: str | None
    study_instance_uid: str | None
    host: str
    response_type: ResponseType


@dataclass(kw_only=True)
class _Pace:
    """Whether a sender is quick enough. What we take to write its objects is not counted."""

    limits: Limits
    window_s: float
    waited_s: float = 0.0
    received_bytes: int = 0

    async def next(self, body: AsyncGenerator[bytes, None]) -> bytes | None:
        """The next piece of a body; None at its end.

        Raises
        ------
        _TooSlow
            Nothing came for ``network_timeout_s``, or less than ``min_bytes_per_second`` over the window.
        """
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.limits.network_timeout_s):
                chunk = await anext(body, None)
        except TimeoutError:
            raise _TooSlow from None
        self.waited_s += time.monotonic() - began
        self.received_bytes += len(chunk or b"")
        if self.waited_s >= self.window_s:
            if self.received_bytes < self.limits.min_bytes_per_second * self.waited_s:
                raise _TooSlow
            self.waited_s, self.received_bytes = 0.0, 0
        return chunk


class StoreRoute:
    """Serves ``POST /dicom-web/studies`` and ``POST /dicom-web/studies/{study_instance_uid}``.

    Parameters
    ----------
    desk
        Takes the objects; whoever made it closes it.
    requests_at_once
        One more is answered 503.
    pace_window_s
        Over how much waiting the least pace of a sender is looked at.
    """

    def __init__(
        self,
        desk: StoreDesk,
        *,
        requests_at_once: int = REQUESTS_AT_ONCE,
        pace_window_s: float = PACE_WINDOW_S,
    ) -> None:
        self._desk = desk
        self._limits = desk.limits
        self._requests_at_once = requests_at_once
        self._pace_window_s = pace_window_s
        self._requests = 0
        self._threads = ThreadPoolExecutor(requests_at_once, thread_name_prefix="stow")

    async def store(self, request: Request) -> Response:
        """Store what comes."""
        try:
            demand = self._demand(request)
            self._check_room(request, demand)
        except _NotServed as refusal:
            logger.warning("refused a STOW-RS request: %d %s", refusal.status, refusal)
            # A client that asked whether it may send has not begun.
            if "100-continue" not in request.headers.get("expect", "").lower():
                await _drain(request)
            return PlainTextResponse(f"{refusal}\n", refusal.status, headers={**refusal.headers, **_CLOSE})
        self._requests += 1
        try:
            return await self._answer(request, demand)
        finally:
            self._requests -= 1

    def _demand(self, request: Request) -> _Demand:
        host = request.client.host if request.client else ""
        if not self._desk.may_send(host):
            raise _NotServed(
                403, f'This caller is not listed: [[peers]] needs an entry with ae_title "{SOURCE_AE_TITLE}".'
            )
        study_instance_uid = request.path_params.get("study_instance_uid")
        if study_instance_uid is not None and not is_valid_uid(study_instance_uid):
            raise _NotServed(400, "The path holds no valid Study Instance UID.")
        response_type = choose_response_type(", ".join(request.headers.getlist("accept")))
        if response_type is None:
            raise _NotServed(406, f"Answers are {', '.join(ResponseType)}.")
        return _Demand(
            boundary=_boundary(request),
            study_instance_uid=study_instance_uid,
            host=host,
            response_type=response_type,
        )

    def _check_room(self, request: Request, demand: _Demand) -> None:
        limit = self._limits.max_association_bytes
        if demand.boundary is None:
            limit = min(limit, self._limits.max_object_bytes)
        if int(request.headers.get("content-length", "0")) > limit:
            raise _NotServed(413, f"A request may bring {limit} bytes.")
        if self._requests >= self._requests_at_once:
            raise _NotServed(503, "Too many requests at once.", retry_after_s=RETRY_BUSY_S)
        try:
            self._desk.gate.check_sender(SOURCE_AE_TITLE)
        except Refusal as refusal:
            raise _NotServed(
                503, f"Nothing is stored now: {refusal.comment}.", retry_after_s=RETRY_NO_ROOM_S
            ) from None

    async def _answer(self, request: Request, demand: _Demand) -> Response:
        session = await self._in_thread(
            partial(
                self._desk.open,
                boundary=demand.boundary,
                study_instance_uid=demand.study_instance_uid,
                host=demand.host,
            )
        )
        status, reason = 0, StorageStatus.CANNOT_UNDERSTAND
        try:
            await self._receive(request, session)
            return _response(await self._in_thread(session.finish), demand)
        except MultipartError as error:
            logger.warning("a STOW-RS request was broken off: %s", error)
        except BodyTooLarge:
            logger.warning("a STOW-RS request was broken off: it is larger than this node accepts")
            status, reason = 413, StorageStatus.NOT_STORED
        except _TooSlow:
            logger.warning("a STOW-RS request was broken off: its sender is too slow")
            status = 408
        except ClientDisconnect:
            logger.warning("a STOW-RS request was broken off by its sender")
        finally:
            report = await self._in_thread(partial(session.break_off, reason))
        if status != 408:
            await _drain(request)
        return _response(report, demand, status=status or (202 if report.stored else 400), is_broken=True)

    async def _receive(self, request: Request, session: StoreSession) -> None:
        pace = _Pace(limits=self._limits, window_s=self._pace_window_s)
        async with contextlib.aclosing(request.stream()) as body:
            while (chunk := await pace.next(body)) is not None:
                if chunk:
                    await self._in_thread(partial(session.feed, chunk))

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _boundary(request: Request) -> str | None:
    """Of the parts; None where the body is one object."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise _NotServed(415, "Content-Encoding is not supported.")
    content_type = MediaType.parse(request.headers.get("content-type", ""))
    if content_type.name == DICOM:
        return None
    if content_type.name != _MULTIPART or content_type.parameters.get("type", DICOM).lower() != DICOM:
        raise _NotServed(415, f'Objects come as {_MULTIPART}; type="{DICOM}" or as {DICOM}.')
    boundary = content_type.parameters.get("boundary", "")
    if not is_boundary(boundary):
        raise _NotServed(400, "The Content-Type has no valid boundary.")
    return boundary


def _response(report: StoreReport, demand: _Demand, *, status: int = 0, is_broken: bool = False) -> Response:
    status = status or _status(report)
    headers = dict(_CLOSE) if is_broken else {}
    if status == 503:
        headers["Retry-After"] = str(RETRY_NO_ROOM_S)
    content = report.encode(demand.response_type)
    return Response(content, status, headers=headers, media_type=demand.response_type.value)


def _status(report: StoreReport) -> int:
    """PS3.18 table 10.5.3-1."""
    if report.stored:
        return 202 if report.reasons else 200
    if not report.reasons:
        return 400  # there was no part
    return 503 if report.reasons == {StorageStatus.OUT_OF_RESOURCES} else 409


async def _drain(request: Request) -> None:
    """Read what the client is still sending, within bounds: many read no answer before they have sent all."""
    received = 0
    # Starlette raises RuntimeError where all of it has been read.
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):
        async with asyncio.timeout(_DRAIN_SECONDS), contextlib.aclosing(request.stream()) as rest:
            async for chunk in rest:
                received += len(chunk)
                if received > _DRAIN_BYTES:
                    return
