"""The site's own viewer, which the study page links to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter
from urllib.parse import quote, urlsplit

from pydantic import field_validator

from ich_node.settings_section import Section, setting

PLACEHOLDERS = ("study_instance_uid", "accession_number", "patient_id", "series_instance_uid")
VIEWER_SCHEMES = frozenset(
    ("http", "https", "weasis", "osirix", "horos", "radiant", "synapse", "carestream", "vuemotion")
)
"""Of the web, and those that viewers register on a workstation."""
_NO_ADDRESS = re.compile(r"[\x00-\x20\x7f\"'<>\\^`|]")
_PLACEHOLDER = "x"


class ViewerSettings(Section):
    """The site's own viewer."""

    url_template: str = setting(
        "",
        "address that opens a study in the site's viewer, with any of {study_instance_uid}, {accession_number}, "
        "{patient_id}, {series_instance_uid} in it; empty: no link",
    )

    @field_validator("url_template")
    @classmethod
    def _address(cls, value: str) -> str:
        if value:
            _check(value)
        return value


def viewer_url(template: str, values: Mapping[str, str]) -> str | None:
    """Address of a study in the site's viewer, values percent-encoded (RFC 3986 2.1).

    Parameters
    ----------
    template
        ``viewer.url_template``.
    values
        By placeholder; one that the study lacks is the empty string.

    Returns
    -------
    str or None
        ``None`` without a template, and where the study has no value for any of its placeholders: an address
        without them might open somebody else.
    """
    wanted = _placeholders(template)
    if not template or any(not set(values.get(name, "")) - {"."} for name in wanted):
        return None  # dots alone would lead up in a path
    return template.format(**{name: quote(values[name], safe="") for name in wanted})


def _placeholders(template: str) -> list[str]:
    return [name for _, name, _, _ in Formatter().parse(template) if name is not None]


def _check(template: str) -> None:
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"braces do not match: {error}; a brace itself is written twice") from None
    for _, name, form, conversion in parts:
        if name is not None and (name not in PLACEHOLDERS or form or conversion):
            known = ", ".join(f"{{{each}}}" for each in PLACEHOLDERS)
            raise ValueError(f"{{{name}}} is no placeholder; there are {known}")
    if not _placeholders(template):
        raise ValueError(
            "without a placeholder it opens the same for every study: {study_instance_uid} is meant"
        )
    if _NO_ADDRESS.search(template):
        raise ValueError(
            "an address has no spaces, quotes, backslashes or angle brackets: encode them as %20, ..."
        )
    before = template.partition("{")[0]
    scheme = before.partition(":")[0].lower()
    if ":" not in before or scheme not in VIEWER_SCHEMES:
        raise ValueError(f"it has to begin with one of {', '.join(f'{s}:' for s in sorted(VIEWER_SCHEMES))}")
    if scheme in ("http", "https"):
        _check_host(template)


def _check_host(template: str) -> None:
    """The host is the settings', and no value of a study may become one."""
    try:
        parts = urlsplit(template.format(**dict.fromkeys(PLACEHOLDERS, _PLACEHOLDER)))
        host, port = urlsplit(template).netloc, parts.port
    except ValueError as error:
        raise ValueError(f"this is no URL: {error}") from None
    if not parts.hostname or "{" in host or port == 0:
        raise ValueError("an address needs a host after the two slashes, and no placeholder in it")
    if parts.username or parts.password:
        raise ValueError("a password does not stand in a URL")
