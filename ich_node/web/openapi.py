"""The published description of what systems may ask and do here (OpenAPI 3.1)."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts

from ich_node import __version__

_PREFIXES = ("/api/", "/dicom-web/")
_COMMON = {
    "401": "A bearer token, or a session, is needed.",
    "403": "The caller's role does not allow it, or a page of another origin sends it.",
    "421": "This server does not answer under the name that was asked for.",
    "503": "The database does not answer, or too much is asked for at once.",
}
"""What every route may answer."""
_TEXT = {"text/plain": {"schema": {"type": "string"}}}
_DESCRIPTION = (
    "Studies, their readings and results, and what people do with them. DICOMweb services follow PS3.18. "
    "Results are those of an AI, unverified, not for primary diagnosis."
)


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """Describe the JSON API and DICOMweb; pages for people are not described."""
    routes = [one for one in iter_route_contexts(app.routes) if (one.path or "").startswith(_PREFIXES)]
    document = get_openapi(title="ich_node", version=__version__, description=_DESCRIPTION, routes=routes)
    for operations in document["paths"].values():
        for operation in operations.values():
            _complete(operation)
    schemes = {"bearer": {"type": "http", "scheme": "bearer"}}
    document.setdefault("components", {})["securitySchemes"] = schemes
    document["security"] = [{"bearer": []}, {}]
    return document


def _complete(operation: dict[str, Any]) -> None:
    responses: dict[str, Any] = operation.setdefault("responses", {})
    for code, words in _COMMON.items():
        responses.setdefault(code, {"description": words, "content": _TEXT})
