"""What the published description of the service says of the DICOMweb routes (OpenAPI 3.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ich_node.web.dicomweb_frames import MOST_FRAMES
from ich_node.web.dicomweb_levels import Level
from ich_node.web.dicomweb_query import MOST_RESULTS

UID_PATTERN = r"^[0-9.]{1,64}$"
FRAMES_PATTERN = r"^[1-9][0-9]{0,7}(,[1-9][0-9]{0,7})*$"
BULK_PATTERN = r"^[0-9A-F]{8}(\.[1-9][0-9]*\.[0-9A-F]{8})*$"
_TEXT: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
_PATH_WORDS = {
    "study_instance_uid": ("Study Instance UID (0020,000D)", UID_PATTERN),
    "series_instance_uid": ("Series Instance UID (0020,000E)", UID_PATTERN),
    "sop_instance_uid": ("SOP Instance UID (0008,0018)", UID_PATTERN),
    "frames": (f"Frame numbers from 1 with commas between, at most {MOST_FRAMES}", FRAMES_PATTERN),
    "place": ("Tag; or tag, number of an item from 1, and tag within, with dots", BULK_PATTERN),
}
_FAULTS = {
    400: "A parameter is wrong; the body says which",
    401: "Nobody is logged in",
    403: "The caller may not see studies",
    404: "No such object, frame or value is here",
    406: "Nothing that is accepted can be had; the body says what can",
    410: "It was here and was purged",
    413: "The search is too broad",
    422: "The object is damaged",
    503: "The database or the decoder does not answer now",
}
_OBJECTS = {"application/dicom": {"schema": {"type": "string", "format": "binary"}}}
_PARTS = {"multipart/related": {"schema": {"type": "string", "format": "binary"}}}
_FRAMES = {
    **_PARTS,
    **{
        name: {"schema": {"type": "string", "format": "binary"}}
        for name in ("application/octet-stream", "image/jpeg", "image/jls", "image/jp2", "image/dicom-rle")
    },
}
_PICTURES = {name: {"schema": {"type": "string", "format": "binary"}} for name in ("image/jpeg", "image/png")}
_DATA_SET = {
    "type": "object",
    "patternProperties": {
        "^[0-9A-F]{8}$": {
            "type": "object",
            "required": ["vr"],
            "properties": {
                "vr": {"type": "string", "pattern": "^[A-Z]{2}$"},
                "Value": {"type": "array"},
                "BulkDataURI": {"type": "string"},
                "InlineBinary": {"type": "string"},
            },
        }
    },
    "additionalProperties": False,
}
_JSON = {
    name: {"schema": {"type": "array", "items": _DATA_SET}}
    for name in ("application/dicom+json", "application/json")
}
CONTENTS = {
    "search": _JSON,
    "metadata": _JSON,
    "objects": {**_PARTS, **_OBJECTS},
    "frames": _FRAMES,
    "bulkdata": _FRAMES,
    "rendered": {**_PARTS, **_PICTURES},
    "thumbnail": _PICTURES,
}
_ACCEPT = ("accept", "Media types, in the place of the header Accept", {"type": "string"})
_RENDERING = (
    ("window", "center,width,function: linear, linear-exact or sigmoid", {"type": "string"}),
    ("viewport", "width,height, or width,height,left,top,width,height", {"type": "string"}),
    ("quality", "Of JPEG", {"type": "integer", "minimum": 1, "maximum": 100}),
)


def description(path: str, kind: str, level: Level) -> dict[str, Any]:
    """Keyword arguments of ``add_api_route`` for one address.

    Parameters
    ----------
    path
        With names in braces.
    kind
        One of `CONTENTS`.
    level
        Of what is searched for or retrieved.
    """
    what = {Level.STUDY: "studies", Level.SERIES: "series", Level.INSTANCE: "objects"}[level]
    summary = f"Search for {what}" if kind == "search" else f"Retrieve {kind}"
    responses: dict[int | str, dict[str, Any]] = {
        200: {"description": "Found", "content": CONTENTS[kind]},
        **{
            status: {"description": words, "content": _TEXT}
            for status, words in _FAULTS.items()
            if kind == "search" or status != 413
        },
    }
    if kind == "search":
        responses[204] = {"description": "Nothing matches"}
    parameters = [_path_parameter(name) for name in re.findall(r"{(\w+)(?::path)?}", path)]
    return {
        "summary": summary,
        "responses": responses,
        "openapi_extra": {"parameters": parameters + _query_parameters(kind, level)},
        "tags": ["DICOMweb"],
    }


def _path_parameter(name: str) -> dict[str, Any]:
    words, pattern = _PATH_WORDS[name]
    schema = {"type": "string", "pattern": pattern}
    return {"name": name, "in": "path", "required": True, "description": words, "schema": schema}


def _query_parameters(kind: str, level: Level) -> list[dict[str, Any]]:
    wanted: Sequence[tuple[str, str, dict[str, Any]]] = ()
    if kind == "search":
        wanted = (
            ("limit", f"Most results; at most {MOST_RESULTS[level]}", {"type": "integer", "minimum": 0}),
            ("offset", "Results that are passed over", {"type": "integer", "minimum": 0}),
            ("includefield", "Attributes with commas between, or all", {"type": "string"}),
            *(
                (name, words, {"type": "string", "enum": ["true", "false"]})
                for name, words in (
                    ("fuzzymatching", "Answered with a warning: matching is literal"),
                    ("emptyvaluematching", 'Whether "" stands for an absent value'),
                    ("multiplevaluematching", "Whether a value may have several with backslashes between"),
                )
            ),
            ("PatientID", "One key of many: any attribute by keyword or tag", {"type": "string"}),
            (
                "StudyDate",
                "A date or a range",
                {"type": "string", "pattern": r"^(\d{8}|\d{8}-(\d{8})?|-\d{8})$"},
            ),
        )
    elif kind in ("rendered", "thumbnail"):
        wanted = _RENDERING
    return [
        {"name": name, "in": "query", "description": words, "schema": schema}
        for name, words, schema in (*wanted, _ACCEPT)
    ]
