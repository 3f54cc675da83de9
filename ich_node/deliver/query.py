"""Does a PACS have what it accepted? Asked by C-FIND (PS3.4 annex C) or QIDO-RS (PS3.18 section 10.6).

For a PACS without storage commitment. That it answers a query with an object is less than that it commits itself
to keep it, and more than that it said so when it took it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import urlencode

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.association import Association
from pynetdicom.status import QR_FIND_SERVICE_CLASS_STATUS

from ich_node.deliver.call import Call, Destination, Timeouts
from ich_node.deliver.scu import in_words
from ich_node.deliver.web_client import WebDestination, exchange, shortened
from ich_node.http_exchange import NoAnswer

STUDY_ROOT_FIND_SOP_CLASS_UID = "1.2.840.10008.5.1.4.1.2.2.1"
_UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_SUCCESS, _PENDING = 0x0000, frozenset({0xFF00, 0xFF01})
_MOST_MATCHES = 10_000
"""In one series; this node's have a few dozen objects."""
_PAGE, _MOST_PAGES = 200, 50
_MAX_ANSWER_BYTES = 2**24
_OK, _NO_CONTENT = 200, 204
_SOP_INSTANCE_UID = "00080018"


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An object that a PACS has accepted, by its place in the study."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str


class Presence(StrEnum):
    """What a query says of one object."""

    PRESENT = "PRESENT"
    ABSENT = "ABSENT"
    """The PACS answered in order, without it. Soon after it took it, that may mean not yet."""
    CANNOT_TELL = "CANNOT_TELL"
    """It does not support the query, refused it, or did not answer."""


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """Whether a PACS has one object."""

    stored_object: StoredObject
    presence: Presence
    detail: str
    """One line for a person; may quote what the PACS wrote, so it is shown and stored but not logged."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What a PACS answered for one series."""

    sop_instance_uids: frozenset[str] = field(default_factory=frozenset)
    shortcoming: str = ""
    """Why what is not among them may be there all the same; empty: it is not."""


_Series = tuple[str, str]
"""Study Instance UID and Series Instance UID."""


def stored(
    objects: Sequence[StoredObject],
    destination: Destination | WebDestination,
    *,
    calling_ae_title: str = "ICH_NODE",
    timeouts: Timeouts | None = None,
) -> tuple[Confirmation, ...]:
    """Ask for each series what is in it, and look whether the objects are.

    Parameters
    ----------
    objects
        Of any number of series.
    destination
        Whom to ask: a DICOM node is asked at IMAGE level of the Study Root model, over one association; a web
        service for ``/studies/{study}/series/{series}/instances``.
    calling_ae_title
        Ours, for a DICOM node.
    timeouts
        How long to wait; ``dimse_s`` for all that is answered for one series.

    Returns
    -------
    tuple of Confirmation
        One for each object, in the same order. Whatever goes wrong on the way is in there; nothing is raised
        for it.
    """
    wanted: dict[_Series, set[str]] = {}
    for item in objects:
        series = item.study_instance_uid, item.series_instance_uid
        wanted.setdefault(series, set()).add(item.sop_instance_uid)
    waits = timeouts or Timeouts()
    if isinstance(destination, WebDestination):
        found = {series: _searched(series, uids, destination, waits) for series, uids in wanted.items()}
    else:
        found = _find_all(wanted, destination, calling_ae_title, waits) if wanted else {}
    return tuple(
        _confirmation(item, found[item.study_instance_uid, item.series_instance_uid]) for item in objects
    )


def _confirmation(item: StoredObject, found: _Found) -> Confirmation:
    if item.sop_instance_uid in found.sop_instance_uids:
        presence, detail = Presence.PRESENT, "the PACS has it"
    elif found.shortcoming:
        presence, detail = Presence.CANNOT_TELL, found.shortcoming
    else:
        presence, detail = Presence.ABSENT, "the PACS answers the query for its series without it"
    return Confirmation(stored_object=item, presence=presence, detail=detail)


def _asked_for(wanted: set[str]) -> str:
    """The matching key: one UID, or empty for all of the series, as not every PACS knows lists of UIDs."""
    return next(iter(wanted)) if len(wanted) == 1 else ""


# C-FIND


def _find_all(
    wanted: dict[_Series, set[str]], destination: Destination, calling_ae_title: str, timeouts: Timeouts
) -> dict[_Series, _Found]:
    contexts = [build_context(STUDY_ROOT_FIND_SOP_CLASS_UID, list(_UNCOMPRESSED))]
    with Call(destination, contexts, calling_ae_title, timeouts) as call:
        if call.failure:
            return dict.fromkeys(wanted, _Found(shortcoming=call.failure))
        if not call.accepts(STUDY_ROOT_FIND_SOP_CLASS_UID, _UNCOMPRESSED):
            unsupported = f"{destination.name} does not support the query (Study Root C-FIND)"
            return dict.fromkeys(wanted, _Found(shortcoming=unsupported))
        return {series: _find(call, series, uids, timeouts.dimse_s) for series, uids in wanted.items()}


def _find(call: Call, series: _Series, wanted: set[str], seconds: float) -> _Found:
    matches = _Matches()
    identifier = _identifier(series, wanted)
    status = call.request(lambda association, number: matches.take(association, number, identifier, seconds))
    uids = frozenset(matches.sop_instance_uids)
    if status is None:
        return _Found(sop_instance_uids=uids, shortcoming=matches.endless or call.lost)
    if status.Status != _SUCCESS:
        words = in_words(status, QR_FIND_SERVICE_CLASS_STATUS)
        return _Found(sop_instance_uids=uids, shortcoming=f"the query failed: {words}")
    return _Found(sop_instance_uids=uids, shortcoming=matches.unreadable)


@dataclass(kw_only=True)
class _Matches:
    """What comes in answer to one C-FIND."""

    sop_instance_uids: set[str] = field(default_factory=set)
    unreadable: str = ""
    endless: str = ""

    def take(self, association: Association, message_id: int, identifier: Dataset, seconds: float) -> Dataset:
        """Ask, and take answers until the last; its status, or nothing when there was no last."""
        ends_at = time.monotonic() + seconds
        answers = association.send_c_find(identifier, STUDY_ROOT_FIND_SOP_CLASS_UID, message_id)
        for count, (status, match) in enumerate(answers, start=1):
            if status.get("Status") not in _PENDING:
                return Dataset(status)
            self._add(match)
            if count >= _MOST_MATCHES or time.monotonic() > ends_at:
                self.endless = f"the answer to the query did not end within {seconds:g} s or {count} matches"
                association.abort()
                break
        return Dataset()

    def _add(self, match: Dataset | None) -> None:
        try:
            uid = str(match.SOPInstanceUID) if match is not None else ""
        except Exception:  # pydicom raises whatever the damage leads to
            uid = ""
        if uid:
            self.sop_instance_uids.add(uid)
        else:
            self.unreadable = "the answer to the query has matches without SOP Instance UID"


def _identifier(series: _Series, wanted: set[str]) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "IMAGE"
    identifier.StudyInstanceUID, identifier.SeriesInstanceUID = series
    identifier.SOPInstanceUID = _asked_for(wanted)
    return identifier


# QIDO-RS


def _searched(series: _Series, wanted: set[str], destination: WebDestination, timeouts: Timeouts) -> _Found:
    """Page through a series: a service may answer with less at once than it is asked for."""
    ends_at, uids = time.monotonic() + timeouts.dimse_s, set[str]()
    for _ in range(_MOST_PAGES):
        left_s = ends_at - time.monotonic()
        if left_s <= 0:
            return _Found(
                sop_instance_uids=frozenset(uids),
                shortcoming=f"the answer to the query did not end within {timeouts.dimse_s:g} s",
            )
        try:
            page = _page(series, wanted, len(uids), destination, timeouts, left_s)
        except NoAnswer as error:
            return _Found(sop_instance_uids=frozenset(uids), shortcoming=str(error))
        # A service that knows no offset answers the same again.
        if page <= uids or wanted <= uids | page:
            return _Found(sop_instance_uids=frozenset(uids | page))
        uids |= page
    return _Found(sop_instance_uids=frozenset(uids), shortcoming="the answer to the query does not end")


def _page(
    series: _Series,
    wanted: set[str],
    offset: int,
    destination: WebDestination,
    timeouts: Timeouts,
    seconds: float,
) -> set[str]:
    asked_for = _asked_for(wanted)
    query = {"SOPInstanceUID": asked_for} if asked_for else {"limit": _PAGE, "offset": offset}
    answer = exchange(
        destination,
        "GET",
        f"/studies/{series[0]}/series/{series[1]}/instances?{urlencode(query)}",
        headers={"Accept": "application/dicom+json", "Cache-Control": "no-cache"},
        timeouts=timeouts,
        answer_s=seconds,
        max_bytes=_MAX_ANSWER_BYTES,
    )
    if answer.status == _NO_CONTENT:
        return set()
    if answer.status != _OK:
        raise NoAnswer(shortened(f"the query failed: {answer.words}"))
    try:
        matches = json.loads(answer.content)
        if not isinstance(matches, list):
            raise TypeError
        return {_uid_of(match) for match in matches}
    except (ValueError, RecursionError, LookupError, TypeError):
        raise NoAnswer("the answer to the query is no DICOM JSON with SOP Instance UIDs") from None


def _uid_of(match: Any) -> str:
    if not isinstance(match, dict):
        raise TypeError
    return str(match[_SOP_INSTANCE_UID]["Value"][0]).strip(" \0")
