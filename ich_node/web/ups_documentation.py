"""What the published description says of UPS-RS, route by route (OpenAPI 3.1)."""

from __future__ import annotations

from typing import Any, TypeAlias

Documentation: TypeAlias = dict[str, Any]
"""Keyword arguments of ``add_api_route``."""

_ELEMENT = {
    "type": "object",
    "required": ["vr"],
    "properties": {"vr": {"type": "string"}, "Value": {"type": "array"}},
}
_DATASET = {"type": "object", "additionalProperties": _ELEMENT}
_TEXT = {"text/plain": {"schema": {"type": "string"}}}
_DATASETS = {"application/dicom+json": {"schema": {"type": "array", "items": _DATASET}}}
_UID_PATTERN = r"^(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+$"
_EXAMPLE_UID = "2.25.1"


def _answers(*codes: int) -> dict[int | str, dict[str, Any]]:
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        found[code] = {"description": _MEANINGS[code]}
        if code != 204:
            found[code]["content"] = _TEXT
    return found


_MEANINGS = {
    200: "Done.",
    204: "Nothing was found.",
    201: "Subscribed; Content-Location names the WebSocket.",
    202: "The request was accepted; Warning says where the workitem was canceled already.",
    400: "The request is malformed, or its Transaction UID is missing or incorrect.",
    403: "The caller's role does not allow it.",
    404: "It is not here.",
    406: "No media type that is acceptable can be given.",
    409: "The workitem does not allow it in its state.",
    413: "The body is too large.",
    415: "The body has another media type.",
}


def _described(
    summary: str,
    *codes: int,
    content: dict[str, Any] | None = None,
    body: dict[str, Any] | None = None,
    body_required: bool = True,
    parameters: tuple[dict[str, Any], ...] = (),
) -> Documentation:
    responses = _answers(*codes)
    if content is not None:
        responses[200] = {"description": "What was found.", "content": content}
    success = min(int(code) for code in responses)
    extra: dict[str, Any] = {"parameters": list(parameters)} if parameters else {}
    if body is not None:
        extra["requestBody"] = {
            "required": body_required,
            "content": {
                "application/dicom+json": {"schema": {"oneOf": [body, _single(body)]}},
                "application/json": {"schema": {"oneOf": [body, _single(body)]}},
            },
        }
    return {"summary": summary, "responses": responses, "status_code": success, "openapi_extra": extra}


def _single(body: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "maxItems": 1, "items": body}


def _one_of(tag: str, vr: str, values: dict[str, Any]) -> dict[str, Any]:
    element = {
        "type": "object",
        "required": ["vr", "Value"],
        "properties": {
            "vr": {"const": vr},
            "Value": {"type": "array", "minItems": 1, "maxItems": 1, "items": values},
        },
        "additionalProperties": False,
    }
    return {tag: element}


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


_STATES = ["IN PROGRESS", "COMPLETED", "CANCELED"]
_UID = {"type": "string", "pattern": _UID_PATTERN, "maxLength": 64, "example": _EXAMPLE_UID}
_STATE_CHANGE = {
    "type": "object",
    "required": ["00081195", "00741000"],
    "properties": {
        **_one_of("00081195", "UI", _UID),
        **_one_of("00741000", "CS", {"type": "string", "enum": _STATES}),
    },
    "additionalProperties": False,
}
_CANCEL_REQUEST = {
    "type": "object",
    "properties": _one_of("00741238", "LT", {"type": "string", "maxLength": 100, "pattern": r"^[ -Z]+$"}),
    "additionalProperties": False,
}
_UPDATE = {
    "type": "object",
    "properties": {"00741002": _ELEMENT, "00741216": _ELEMENT, "00081195": _ELEMENT},
    "additionalProperties": False,
}
_LOOK = (200, 400, 403, 404, 406)

SEARCH = _described(
    "Search for workitems",
    204,
    400,
    403,
    406,
    content=_DATASETS,
    parameters=(
        _query("limit", {"type": "integer", "minimum": 1, "maximum": 1000}, "Most results."),
        _query("offset", {"type": "integer", "minimum": 0, "maximum": 10000000}, "Results to pass over."),
        _query("ProcedureStepState", {"type": "string"}, "SCHEDULED, IN PROGRESS, COMPLETED or CANCELED."),
        _query("ScheduledProcedureStepPriority", {"type": "string"}, "HIGH, MEDIUM or LOW."),
        _query("PatientID", {"type": "string", "maxLength": 64}, "Value or pattern with * and ?."),
        _query("PatientName", {"type": "string", "maxLength": 64}, "Value or pattern with * and ?."),
        _query(
            "ReferencedRequestSequence.AccessionNumber",
            {"type": "string", "maxLength": 16},
            "Value or pattern with * and ?.",
        ),
        _query("ReferencedRequestSequence.StudyInstanceUID", {"type": "string"}, "UIDs with commas between."),
        _query("ScheduledProcedureStepStartDateTime", {"type": "string"}, "Date-time or range of them."),
        _query("includefield", {"type": "string", "enum": ["all"]}, "With the images of each workitem."),
        _query("fuzzymatching", {"type": "boolean"}, "Not supported; a warning says so."),
    ),
)
RETRIEVE = _described("Retrieve a workitem", 403, 404, 406, content=_DATASETS)
UPDATE = _described("Set attributes of a workitem", 200, 400, 403, 404, 409, 413, 415, body=_UPDATE)
CHANGE_STATE = _described(
    "Claim, complete or cancel a workitem", 200, 400, 403, 404, 409, 413, 415, body=_STATE_CHANGE
)
REQUEST_CANCEL = _described(
    "Ask its performer to cancel a workitem",
    202,
    400,
    403,
    404,
    409,
    413,
    415,
    body=_CANCEL_REQUEST,
    body_required=False,
)
SUBSCRIBE = _described(
    "Subscribe an application to a workitem, or to all",
    201,
    400,
    403,
    404,
    406,
    parameters=(_query("deletionlock", {"type": "boolean"}, "Granted for a single workitem."),),
)
UNSUBSCRIBE = _described("Unsubscribe an application", *_LOOK)
SUSPEND = _described("Tell an application of no workitems that come from now on", *_LOOK)
