"""JSON for scripts and for other systems' plugins: the worklist, one study, another run, a review."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, create_model
from starlette.exceptions import HTTPException

import ich_node
from ich_node.database.access import AccessAction
from ich_node.database.chosen_studies import request_again
from ich_node.database.retention import ImagesPurged
from ich_node.database.reviews import (
    MAX_COMMENT_CHARACTERS,
    DisagreementReason,
    ReviewRefused,
    Verdict,
    add_review,
)
from ich_node.database.study_report import study_report
from ich_node.database.worklist import COLUMNS, page_end, worklist
from ich_node.findings import Priority, StudyState
from ich_node.web.caller import Caller, Role, caller_of
from ich_node.web.openapi import openapi_document
from ich_node.web.site import Site, require_uid
from ich_node.web.worklist_filter import WITHIN, WorklistFilter

_MOST_STUDIES = 1000
_TEXT: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}
_UID = r"^[0-9.]{1,64}$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ReprocessRequest(_Strict):
    """What of a study is to be read again; nothing: all of it, with the models that the settings name."""

    model: Annotated[str | None, Field(description="Name of a bundle.", max_length=100)] = None
    series: Annotated[str | None, Field(description="Series Instance UID.", pattern=_UID)] = None


class ReprocessAnswer(_Strict):
    """Another run was asked for."""

    study_instance_uid: str
    state: StudyState


class ReviewRequest(_Strict):
    """What somebody says of a study."""

    verdict: Annotated[Verdict, Field(strict=False)]
    reason: Annotated[DisagreementReason | None, Field(strict=False)] = None
    comment: Annotated[str | None, Field(max_length=MAX_COMMENT_CHARACTERS)] = None


class ReviewAnswer(_Strict):
    """Whether it was new."""

    study_instance_uid: str
    is_new: bool


WorklistStudy = create_model(
    "WorklistStudy",
    **{name: (float | None if name == "suspicion" else str | None, ...) for name in COLUMNS},  # type: ignore[call-overload]
)
"""One row of the view ``worklist_v1``."""


class WorklistAnswer(BaseModel):
    """Studies in reading order."""

    studies: list[WorklistStudy]  # type: ignore[valid-type]
    next: Annotated[
        str | None, Field(description="For the parameter before of the next page; null: there is none.")
    ]


class StudyAnswer(BaseModel):
    """As ``ich-node study show UID --json`` prints it; more keys may come."""

    model_config = ConfigDict(extra="allow")
    study_instance_uid: str
    priority: Priority
    state: StudyState
    reason: str | None
    readings: list[dict[str, Any]]


def _refusals(**meanings: str) -> dict[int | str, dict[str, Any]]:
    return {int(code[1:]): {"description": words, **_TEXT} for code, words in meanings.items()}


class ApiRoutes:
    """Addresses below ``/api``."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def router(self) -> APIRouter:
        """What scripts may ask and do."""
        router = APIRouter(prefix="/api", tags=["API"])
        not_here = _refusals(_404="No such study is here.")
        role = _refusals(_403="The caller's role does not allow it.")
        router.add_api_route(
            "/worklist",
            self.worklist,
            response_model=WorklistAnswer,
            responses={**_refusals(_400="A filter has a value that is none."), **role},
            summary="The worklist, filtered as its page",
        )
        one = "/studies/{study_instance_uid}"
        router.add_api_route(
            one,
            self.study,
            response_model=StudyAnswer,
            responses={**not_here, **role},
            summary="One study with its readings",
        )
        router.add_api_route(
            f"{one}/reprocess",
            self.reprocess,
            methods=["POST"],
            status_code=202,
            response_model=ReprocessAnswer,
            summary="Have a study read again",
            responses={
                **_refusals(
                    _404="No such study, series or model is here.",
                    _409="It is arriving, waiting or being read.",
                    _410="Its images were purged.",
                ),
                **role,
            },
        )
        router.add_api_route(
            f"{one}/review",
            self.review,
            methods=["POST"],
            response_model=ReviewAnswer,
            responses={
                **not_here,
                **_refusals(_409="This cannot be said of the study as it stands."),
                **role,
            },
            summary="Say that a study was seen, or whether its reading is right",
        )
        router.add_api_route("/openapi.json", self.openapi, include_in_schema=False)
        return router

    def worklist(
        self,
        request: Request,
        priority: Annotated[list[str], Query(description=f"Of {', '.join(Priority)}.")] = [],  # noqa: B006
        state: Annotated[list[str], Query(description=f"Of {', '.join(StudyState)}.")] = [],  # noqa: B006
        unreviewed: Annotated[str, Query(description="1: only those that nobody has reviewed.")] = "",
        within: Annotated[str, Query(description=f"Received within {', '.join(WITHIN)}.")] = "",
        station: Annotated[str, Query(description="AE title of the sender.")] = "",
        q: Annotated[str, Query(description="Words in name, ID, accession number or UID.")] = "",
        before: Annotated[str, Query(description="Where an earlier page ended.")] = "",
        limit: Annotated[int, Query(ge=1, le=_MOST_STUDIES)] = 200,
    ) -> Response:
        """Give studies in reading order."""
        _require(request, Role.VIEWER)
        wanted = WorklistFilter.of(request.query_params)  # the page reads its address in the same way
        with self._site.database.reading() as session:
            rows = worklist(session, limit=limit + 1, **wanted.criteria(datetime.now(UTC)))
        extra = page_end(rows) if len(rows) > limit else None
        shown = [row for row in rows if row["study_instance_uid"] != extra]
        following = None if extra is None else page_end(shown)
        self._site.record(request, AccessAction.QUERY, detail=f"api worklist?{wanted.query}"[:500])
        return JSONResponse({"studies": shown, "next": following})

    def study(self, request: Request, study_instance_uid: str) -> Response:
        """Give one study."""
        _require(request, Role.VIEWER)
        require_uid(study_instance_uid)
        with self._site.database.reading() as session:
            report = study_report(session, study_instance_uid)
        if report is None:
            raise _not_here(study_instance_uid)
        self._site.record(request, AccessAction.RETRIEVE, study_instance_uid, detail="api study")
        return JSONResponse(report)

    def reprocess(
        self, request: Request, study_instance_uid: str, wanted: ReprocessRequest | None = None
    ) -> Response:
        """Ask for another run."""
        caller = _require(request, Role.RADIOLOGIST)
        require_uid(study_instance_uid)
        asked = wanted or ReprocessRequest()
        if asked.model is not None and asked.model not in self._bundles():
            raise HTTPException(404, f"There is no model {asked.model[:100]!r}.")
        try:
            with self._site.database.writing() as session:
                under_way = request_again(
                    session,
                    study_instance_uid,
                    series_instance_uid=asked.series,
                    model=asked.model,
                    actor=caller.name,
                    now=datetime.now(UTC),
                )
        except LookupError as error:
            raise HTTPException(404, _sentence(str(error))) from None
        except ImagesPurged as error:
            raise HTTPException(410, _sentence(str(error))) from None
        if under_way is not None:
            raise HTTPException(409, f"The study is {under_way} already: wait for the result.")
        self._site.record(request, AccessAction.CHANGE, study_instance_uid, detail="reprocess")
        return JSONResponse({"study_instance_uid": study_instance_uid, "state": StudyState.QUEUED}, 202)

    def review(self, request: Request, study_instance_uid: str, said: ReviewRequest) -> Response:
        """Write down what the caller says."""
        caller = _require(request, Role.RADIOLOGIST)
        require_uid(study_instance_uid)
        try:
            with self._site.database.writing() as session:
                is_new = add_review(
                    session,
                    study_instance_uid=study_instance_uid,
                    verdict=said.verdict,
                    reviewer=caller.name,
                    reason=said.reason,
                    comment=said.comment,
                    now=datetime.now(UTC),
                )
        except LookupError:
            raise _not_here(study_instance_uid) from None
        except ReviewRefused as refused:
            raise HTTPException(409, _sentence(str(refused))) from None
        self._site.record(request, AccessAction.CHANGE, study_instance_uid, detail=said.verdict)
        return JSONResponse({"study_instance_uid": study_instance_uid, "is_new": is_new})

    def openapi(self, request: Request) -> Response:
        """Describe what is below ``/api`` and ``/dicom-web``."""
        _require(request, Role.VIEWER)
        return Response(json.dumps(openapi_document(request.app)), media_type="application/json")

    def _bundles(self) -> set[str]:
        """Names of the bundles, by their files: the module that knows them can load torch."""
        roots = (Path(ich_node.__file__).parent / "model" / "bundles", self._site.settings.bundles_dir)
        return {file.parent.name for root in roots for file in root.glob("*/bundle.json")}


def _require(request: Request, role: Role) -> Caller:
    caller = caller_of(request)
    if not caller.role.covers(role):
        raise HTTPException(403, f"This needs the role {role}; {caller.name} has {caller.role}.")
    return caller


def _not_here(study_instance_uid: str) -> HTTPException:
    return HTTPException(404, f"No study {study_instance_uid} is here.")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
