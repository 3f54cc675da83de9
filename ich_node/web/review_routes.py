"""What a radiologist does with a study: seen, agree, disagree, take back, have it read again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ich_node.database.access import AccessAction
from ich_node.database.queue import request_reprocess
from ich_node.database.retention import ImagesPurged
from ich_node.database.reviews import DisagreementReason, ReviewRefused, Verdict, add_review, agreement
from ich_node.database.standing import lock_study
from ich_node.web.agreement_page import PERIODS_DAYS, agreement_page
from ich_node.web.caller import Caller, Role, caller_of
from ich_node.web.display import plain_text
from ich_node.web.site import Site, require_uid
from ich_node.web.small_form import NotAForm, read_form
from ich_node.web.wording import PENDING

_Code = TypeVar("_Code", bound=StrEnum)


class ReviewRoutes:
    """Reviews, reprocessing, and how far people and models agree."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def router(self) -> APIRouter:
        """Addresses below ``/studies``, and ``/agreement``."""
        router = APIRouter()
        router.add_api_route("/studies/{study_instance_uid}/review", self.review, methods=["POST"])
        router.add_api_route("/studies/{study_instance_uid}/reprocess", self.reprocess, methods=["POST"])
        router.add_api_route("/agreement", self.agreement, methods=["GET", "HEAD"])
        return router

    async def review(self, request: Request, study_instance_uid: str) -> Response:
        """Take what a form of the study page says, and lead back to the page."""
        require_uid(study_instance_uid)
        caller = _radiologist(request)
        fields = await _fields(request)
        await run_in_threadpool(self._review, request, caller, study_instance_uid, fields)
        return RedirectResponse(f"/studies/{study_instance_uid}", 303)

    async def reprocess(self, request: Request, study_instance_uid: str) -> Response:
        """Have a study read again, and lead back to its page."""
        require_uid(study_instance_uid)
        caller = _radiologist(request)
        await _fields(request)
        await run_in_threadpool(self._reprocess, request, caller, study_instance_uid)
        return RedirectResponse(f"/studies/{study_instance_uid}", 303)

    def agreement(self, request: Request, days: int = PERIODS_DAYS[1]) -> Response:
        """How far people and models agree."""
        _radiologist(request)
        if days not in PERIODS_DAYS:
            raise HTTPException(404, f"There is no such period: {', '.join(map(str, PERIODS_DAYS))} days.")
        since = datetime.now(UTC) - timedelta(days=days)
        with self._site.database.reading() as session:
            found = agreement(session, since=since)
        page = agreement_page(found, days=days)
        return self._site.render(request, "agreement.html", page=page, here="/agreement")

    def _review(self, request: Request, caller: Caller, study: str, fields: dict[str, str]) -> None:
        verdict = _one_of(Verdict, fields.get("verdict", ""))
        if verdict is None:
            raise HTTPException(422, "Say SEEN, AGREE, DISAGREE or UNSEEN.")
        reason = _one_of(DisagreementReason, fields.get("reason", ""))
        if verdict is Verdict.DISAGREE and reason is None:
            raise HTTPException(422, "Choose why you disagree.")
        try:
            with self._site.database.writing() as session:
                add_review(
                    session,
                    study_instance_uid=study,
                    verdict=verdict,
                    reviewer=caller.name,
                    now=datetime.now(UTC),
                    reason=reason if verdict is Verdict.DISAGREE else None,
                    comment=plain_text(fields.get("comment")) if verdict is Verdict.DISAGREE else None,
                    of_reading=_reading(fields.get("reading")),
                )
        except LookupError:
            raise HTTPException(404, f"No study {study} is here.") from None
        except ReviewRefused as refused:
            text = str(refused)
            raise HTTPException(409, f"{text[0].upper()}{text[1:]}.") from None
        self._site.record(request, AccessAction.CHANGE, study, detail=verdict)

    def _reprocess(self, request: Request, caller: Caller, study: str) -> None:
        try:
            with self._site.database.writing() as session:
                row = lock_study(session, study)
                if row is not None and row.state in PENDING:
                    raise HTTPException(
                        409, "The study is being received or read already: wait for the result."
                    )
                request_reprocess(
                    session,
                    study,
                    series_instance_uid=None,
                    model=None,
                    actor=caller.name,
                    now=datetime.now(UTC),
                )
        except LookupError:
            raise HTTPException(404, f"No study {study} is here.") from None
        except ImagesPurged:
            raise HTTPException(
                410, "Its images are no longer here: send the study again from the PACS."
            ) from None
        self._site.record(request, AccessAction.CHANGE, study, detail="reprocess")


def _radiologist(request: Request) -> Caller:
    caller = caller_of(request)
    if not caller.role.covers(Role.RADIOLOGIST):
        raise HTTPException(403, "This needs the role radiologist; an administrator of this node gives it.")
    return caller


async def _fields(request: Request) -> dict[str, str]:
    try:
        fields, _ = await read_form(request.headers, request.receive)
    except NotAForm:
        raise HTTPException(415, "This takes a form as the study page sends it.") from None
    return fields


def _reading(number: str | None) -> int | None:
    """As `add_review` takes it: the page of a study that is not read yet says nothing of a reading that comes."""
    if number is None:
        return None
    if not number:
        return 0
    return int(number) if number.isdecimal() and len(number) < 19 else -1


def _one_of(codes: type[_Code], text: str) -> _Code | None:
    return codes(text) if text in list(codes) else None
