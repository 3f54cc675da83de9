"""UPS-RS, the worklist service of DICOMweb (PS3.18 chapter 11): search, retrieve, perform and subscribe.

Workitems are not created here: each study that arrives has one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import parse_qsl, quote

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ich_node.database import workitem_subscriptions as subscriptions
from ich_node.database.access import AccessAction
from ich_node.database.engine import Session
from ich_node.database.json_model import JsonDataset, first_value, json_tag
from ich_node.database.workitem_actions import SETTABLE, change_state, request_cancel, update_workitem
from ich_node.database.workitem_states import WorkitemRefused, WorkitemState, WorkitemStatus
from ich_node.database.workitems import (
    Workitem,
    find_workitem,
    make_known,
    search_workitems,
    source_images,
)
from ich_node.receive.limits import is_valid_uid
from ich_node.settings_section import check_ae_title
from ich_node.web import ups_documentation as documentation
from ich_node.web.caller import Caller, Role, caller_of
from ich_node.web.dicomweb_media_types import Offer, choose
from ich_node.web.site import Site
from ich_node.web.ups_body import JSON_TYPES, only, read_dataset, take_uid
from ich_node.web.ups_query import BadQuery, SearchRequest, read_keys, read_search
from ich_node.web.ups_workitem import encode_workitem

WORKITEMS = "/dicom-web/workitems"
_CANCEL_ATTRIBUTES = (
    "ReasonForCancellation",
    "ProcedureStepDiscontinuationReasonCodeSequence",
    "ContactURI",
    "ContactDisplayName",
)
_INCONSISTENT = "The submitted request is inconsistent with the state of the UPS Instance."
_WARNINGS: Mapping[WorkitemStatus, str] = {
    WorkitemStatus.ALREADY_CANCELED: "The UPS is already in the requested state of CANCELED.",
    WorkitemStatus.ALREADY_COMPLETED: "The UPS is already in the requested state of COMPLETED.",
    WorkitemStatus.TRANSACTION_UID_INCORRECT: "The Transaction UID is incorrect.",
    WorkitemStatus.CANNOT_BE_CANCELED_ANY_MORE: "The UPS is already COMPLETED.",
}
"""Texts of the Warning header field (PS3.18 11.6.3.2, 11.7.3.2, 11.8.3.2); of all others `_INCONSISTENT`."""
_BAD_REQUESTS = (WorkitemStatus.TRANSACTION_UID_INCORRECT, WorkitemStatus.ONLY_SCHEDULED_BY_CREATION)
_MISSING = "The Transaction UID is missing."
_ANSWERS = tuple(Offer(name=name) for name in JSON_TYPES)
_T = TypeVar("_T")


class UpsRoutes:
    """Workitems and subscriptions to them."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def router(self) -> APIRouter:
        """Addresses below ``/dicom-web/workitems``."""
        router = APIRouter(tags=["UPS-RS"], default_response_class=Response)
        one, subscriber = WORKITEMS + "/{workitem_uid}", WORKITEMS + "/{workitem_uid}/subscribers/{ae_title}"
        for method, path, endpoint, described in (
            ("GET", WORKITEMS, self.search, documentation.SEARCH),
            ("GET", one, self.retrieve, documentation.RETRIEVE),
            ("POST", one, self.update, documentation.UPDATE),
            ("PUT", f"{one}/state", self.change_state, documentation.CHANGE_STATE),
            ("POST", f"{one}/cancelrequest", self.request_cancel, documentation.REQUEST_CANCEL),
            ("POST", subscriber, self.subscribe, documentation.SUBSCRIBE),
            ("DELETE", subscriber, self.unsubscribe, documentation.UNSUBSCRIBE),
            ("POST", f"{subscriber}/suspend", self.suspend, documentation.SUSPEND),
        ):
            router.add_api_route(path, endpoint, methods=[method], **described)
        router.add_api_route(WORKITEMS, self.refuse_creation, methods=["POST"], include_in_schema=False)
        return router

    def search(self, request: Request) -> Response:
        """Search (11.9)."""
        self._may_look(request)
        asked = _read(lambda: read_search(_parameters(request)))
        with self._site.database.reading() as session:
            found = search_workitems(session, asked.query, limit=asked.limit + 1, offset=asked.offset)
            is_cut = len(found) > asked.limit
            found = found[: asked.limit]
            inputs = [source_images(session, item) if asked.with_inputs else None for item in found]
        with self._site.database.writing() as session:
            make_known(session, found, datetime.now(UTC))
        self._site.record(request, AccessAction.QUERY, detail=f"workitems: {len(found)} found")
        encoded = [
            encode_workitem(item, station=self._station, inputs=one, service_url=_service(request))
            for item, one in zip(found, inputs, strict=True)
        ]
        headers = _search_warnings(request, asked, is_cut=is_cut)
        return _answer(request, encoded, headers=headers) if encoded else Response(None, 204, headers)

    def retrieve(self, request: Request, workitem_uid: str) -> Response:
        """Retrieve (11.5)."""
        self._may_look(request)
        with self._site.database.reading() as session:
            item = self._workitem(session, workitem_uid)
            inputs = source_images(session, item)
        self._site.record(request, AccessAction.RETRIEVE, item.study_instance_uid, detail="workitem")
        encoded = encode_workitem(item, station=self._station, inputs=inputs, service_url=_service(request))
        return _answer(request, [encoded])

    async def update(self, request: Request, workitem_uid: str) -> Response:
        """Update (11.6)."""
        self._performer(request)
        data = await read_dataset(request)
        transaction_uid = take_uid(data, "TransactionUID")
        transaction_uid = _transaction_of(request) or transaction_uid
        only(data, SETTABLE)

        def work(session: Session) -> None:
            update_workitem(
                session, workitem_uid, data, transaction_uid=transaction_uid, now=datetime.now(UTC)
            )

        no_longer = WorkitemStatus.MAY_NO_LONGER_BE_UPDATED
        await self._perform(
            request,
            workitem_uid,
            work,
            "workitem updated",
            bad=(no_longer,),
            without_transaction=transaction_uid is None,
        )
        return _done(request, workitem_uid)

    async def change_state(self, request: Request, workitem_uid: str) -> Response:
        """Change State (11.7)."""
        caller = self._performer(request)
        data = await read_dataset(request)
        transaction_uid = take_uid(data, "TransactionUID")
        only(data, ("ProcedureStepState",))
        wanted = first_value(data, "ProcedureStepState")
        if wanted not in list(WorkitemState):
            raise HTTPException(400, "Procedure Step State is IN PROGRESS, COMPLETED or CANCELED.")

        def work(session: Session) -> WorkitemStatus:
            return change_state(
                session,
                workitem_uid,
                WorkitemState(wanted),
                transaction_uid=transaction_uid,
                performer=caller.name,
                now=datetime.now(UTC),
            )

        status = await self._perform(
            request, workitem_uid, work, f"workitem {wanted}", without_transaction=transaction_uid is None
        )
        return _done(request, workitem_uid, warning=_WARNINGS.get(status))

    async def request_cancel(self, request: Request, workitem_uid: str) -> Response:
        """Request Cancellation (11.8)."""
        caller = self._performer(request)
        data = await read_dataset(request, may_be_absent=True)
        only(data, _CANCEL_ATTRIBUTES)

        def work(session: Session) -> WorkitemStatus:
            requester = re.sub(r"[^\x20-\x5b\x5d-\x7e]", "?", caller.name)[:16]
            return request_cancel(session, workitem_uid, data, requester=requester, now=datetime.now(UTC))

        status = await self._perform(request, workitem_uid, work, "workitem: cancel requested")
        return _done(request, workitem_uid, status=202, warning=_WARNINGS.get(status))

    def subscribe(self, request: Request, workitem_uid: str, ae_title: str) -> Response:
        """Subscribe (11.10)."""
        self._may_look(request)
        ae_title = _ae_title(ae_title)
        keys, wants_lock = _read(lambda: _subscription(request, workitem_uid))
        try:
            with self._site.database.writing() as session:
                granted = subscriptions.subscribe(
                    session,
                    ae_title=ae_title,
                    workitem_uid=workitem_uid,
                    deletion_lock=wants_lock,
                    keys=keys,
                    now=datetime.now(UTC),
                )
        except WorkitemRefused:
            raise HTTPException(404, f"No workitem {workitem_uid[:64]} is here.") from None
        except subscriptions.TooManySubscriptions as error:
            raise HTTPException(403, f"Not subscribed: {error}.") from None
        headers = {"Content-Location": _notification_url(request, ae_title)}
        if wants_lock and not granted:
            headers |= _warning(request, "Deletion Lock not granted.")
        return PlainTextResponse("Subscribed.\n", 201, headers=headers)

    def unsubscribe(self, request: Request, workitem_uid: str, ae_title: str) -> Response:
        """Unsubscribe (11.11)."""
        return self._leave(request, workitem_uid, ae_title, subscriptions.unsubscribe)

    def suspend(self, request: Request, workitem_uid: str, ae_title: str) -> Response:
        """Suspend Global Subscription (11.12)."""
        if workitem_uid not in (subscriptions.GLOBAL_UID, subscriptions.FILTERED_UID):
            raise HTTPException(400, "Only a subscription to all workitems can be suspended.")
        return self._leave(request, workitem_uid, ae_title, subscriptions.suspend)

    def refuse_creation(self, request: Request) -> Response:
        """Create (11.4) is not offered."""
        words = "Workitems are not created here: each study that arrives has one."
        raise HTTPException(405, words, headers={"Allow": "GET"})

    @property
    def _station(self) -> str:
        return self._site.settings.receiver.ae_title

    def _may_look(self, request: Request) -> Caller:
        _media_type(request)
        return _require_role(request, Role.VIEWER)

    def _performer(self, request: Request) -> Caller:
        return _require_role(request, Role.RADIOLOGIST)

    def _workitem(self, session: Session, workitem_uid: str) -> Workitem:
        item = find_workitem(session, workitem_uid) if is_valid_uid(workitem_uid) else None
        if item is None:
            raise HTTPException(404, f"No workitem {workitem_uid[:64]} is here.")
        return item

    async def _perform(
        self,
        request: Request,
        workitem_uid: str,
        work: Callable[[Session], _T],
        what: str,
        *,
        bad: tuple[WorkitemStatus, ...] = (),
        without_transaction: bool = False,
    ) -> _T:
        """Do something to a workitem in one transaction; what it refuses becomes an answer of 11.6 to 11.8."""

        def in_transaction() -> _T:
            with self._site.database.writing() as session:
                item = self._workitem(session, workitem_uid)
                result = work(session)
            self._site.record(request, AccessAction.CHANGE, item.study_instance_uid, detail=what)
            return result

        try:
            return await run_in_threadpool(in_transaction)
        except WorkitemRefused as refusal:
            status = 400 if refusal.status in (*_BAD_REQUESTS, *bad) else 409
            text = _WARNINGS.get(refusal.status, _INCONSISTENT)
            if without_transaction and refusal.status is WorkitemStatus.TRANSACTION_UID_INCORRECT:
                text = _MISSING
            raise _refusal(request, status, text, str(refusal)) from None

    def _leave(
        self, request: Request, workitem_uid: str, ae_title: str, how: Callable[..., bool]
    ) -> Response:
        self._may_look(request)
        title = _ae_title(ae_title)
        with self._site.database.writing() as session:
            found = how(session, ae_title=title, workitem_uid=workitem_uid, now=datetime.now(UTC))
        if not found:
            raise HTTPException(404, "There is no such subscription.")
        return PlainTextResponse("Done.\n")


def _require_role(request: Request, role: Role) -> Caller:
    caller = caller_of(request)
    if not caller.role.covers(role):
        raise HTTPException(403, f"This needs the role {role}; {caller.name} has {caller.role}.")
    return caller


def _ae_title(text: str) -> str:
    try:
        return check_ae_title(text)
    except ValueError as error:
        raise HTTPException(400, f"{error}.") from None


def _read(read: Callable[[], _T]) -> _T:
    try:
        return read()
    except BadQuery as error:
        raise HTTPException(400, f"{error}.") from None


def _parameters(request: Request) -> list[tuple[str, str]]:
    return (
        parse_qsl(request.url.query, keep_blank_values=True, max_num_fields=100) if _is_sane(request) else []
    )


def _is_sane(request: Request) -> bool:
    if request.url.query.count("&") >= 100:
        raise BadQuery("a request has at most 100 parameters")
    return True


def _subscription(request: Request, workitem_uid: str) -> tuple[dict[str, str] | None, bool]:
    """The matching keys of a filtered subscription, and whether a deletion lock is wanted."""
    keys: dict[str, str] = {}
    lock = "false"
    for name, value in _parameters(request):
        if name == "deletionlock":
            lock = value
        elif name == "filter":  # a comma-separated list of pairs, as later editions of the standard write it
            pairs = (pair.partition("=") for pair in value.split(","))
            keys |= {key.strip(): one for key, _, one in pairs}
        elif name not in ("accept", "charset"):
            keys[name] = value
    if lock not in ("true", "false"):
        raise BadQuery("deletionlock takes true or false")
    is_filtered = workitem_uid == subscriptions.FILTERED_UID
    if is_filtered != bool(keys):
        raise BadQuery("matching keys go with the filtered worklist subscription, and it needs some")
    read_keys(keys)
    return (keys if is_filtered else None), lock == "true"


def _transaction_of(request: Request) -> str | None:
    """The Transaction UID in a query: by its name, or alone (11.6.1: ``?{transaction-uid}``)."""
    found = None
    for name, value in _read(lambda: _parameters(request)):
        if name.lower() in ("transaction-uid", "transactionuid", json_tag("TransactionUID")) or not value:
            found = value or name
    if found is not None and not is_valid_uid(found):
        raise HTTPException(400, "TransactionUID is not a valid UID.")
    return found


def _service(request: Request) -> str:
    return str(request.url.replace(path="/dicom-web", query="", fragment=""))


def _notification_url(request: Request, ae_title: str) -> str:
    scheme = "wss" if request.url.scheme == "https" else "ws"
    path = f"/ws/subscribers/{quote(ae_title, safe='')}"
    return str(request.url.replace(scheme=scheme, path=path, query="", fragment=""))


def _warning(request: Request, text: str) -> dict[str, str]:
    return {"Warning": f"299 {_service(request)}: {text}"}


def _search_warnings(request: Request, asked: SearchRequest, *, is_cut: bool) -> dict[str, str]:
    texts = []
    if is_cut:
        texts.append(
            "The number of results exceeded the maximum supported by the server. "
            "Additional results can be requested."
        )
    if asked.asks_for_fuzzy_matching:
        texts.append(
            "The fuzzymatching parameter is not supported. Only literal matching has been performed."
        )
    warnings = [_warning(request, text)["Warning"] for text in texts]
    return {"Warning": ", ".join(warnings)} if warnings else {}


def _refusal(request: Request, status: int, warning: str, detail: str) -> HTTPException:
    return HTTPException(status, f"{warning} ({detail})", headers=_warning(request, warning))


def _media_type(request: Request) -> str:
    return choose(request, _ANSWERS, single=True, multipart=False).offer.name


def _answer(
    request: Request, content: list[JsonDataset], *, headers: dict[str, str] | None = None
) -> Response:
    return JSONResponse(content, headers=headers, media_type=_media_type(request))


def _done(request: Request, workitem_uid: str, *, status: int = 200, warning: str | None = None) -> Response:
    headers = {"Content-Location": f"{_service(request)}/workitems/{workitem_uid}"}
    if warning:
        headers |= _warning(request, warning)
    return PlainTextResponse(f"{HTTPStatus(status).phrase}.\n", status, headers=headers)
