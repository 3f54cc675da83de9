"""Searches for studies, series and objects (QIDO-RS, PS3.18 10.6), from rows first and from headers where no row tells.

A key that is in no column is compared with the headers of the studies that the other keys leave. A search that leaves
too many is refused as too broad.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from starlette.exceptions import HTTPException

from ich_node.database import holdings
from ich_node.database.engine import Session
from ich_node.database.holdings import HeldInstance, HeldStudy, StudySummary
from ich_node.database.matching import Key, literal
from ich_node.web.dicomweb_json import Attributes, element, in_order, texts
from ich_node.web.dicomweb_levels import Level, tag_of
from ich_node.web.dicomweb_query import HeaderKey, Query, included_tags
from ich_node.web.dicomweb_shelf import Shelf, ShelfSeries

MOST_EXAMINED = 2000
"""Studies of which objects are looked at in one search."""
MOST_COUNTED = 1000
"""Studies that are counted to say how many results are left."""
_CHUNK = 100
_STUDY_FROM_FILE = ("TimezoneOffsetFromUTC", "ReferringPhysicianName", "StudyID")
_SERIES_FROM_FILE = (
    "TimezoneOffsetFromUTC",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
    "RequestAttributesSequence",
)
_INSTANCE_FROM_FILE = ("TimezoneOffsetFromUTC", "Rows", "Columns", "BitsAllocated", "NumberOfFrames")
_ALWAYS = frozenset(("ReferringPhysicianName", "StudyID"))
"""Of those, what is given without a value where there is none (PS3.18 Table 10.6.3-3, type R)."""


@dataclass(kw_only=True)
class Found:
    """An answer."""

    results: list[Attributes] = field(default_factory=list)
    studies: list[str] = field(default_factory=list)
    """Those that the results are of, each once."""
    more: str = ""
    """How many results are left, in words; empty: none."""


@dataclass(frozen=True, kw_only=True)
class _Result:
    study: str
    attributes: Attributes


class Search:
    """Answers one search in one snapshot of the database.

    Parameters
    ----------
    shelf
        Where the headers come from.
    session
        A reading transaction.
    query
        What is searched for.
    base
        URL below which objects are retrieved.
    study_instance_uid, series_instance_uid
        Of the path.
    """

    def __init__(
        self,
        shelf: Shelf,
        session: Session,
        query: Query,
        *,
        base: str,
        study_instance_uid: str | None = None,
        series_instance_uid: str | None = None,
    ) -> None:
        self._shelf = shelf
        self._session = session
        self._query = query
        self._base = base
        self._series_instance_uid = series_instance_uid
        self._is_within_study = study_instance_uid is not None
        study_keys = [one.key for one in query.keys[Level.STUDY]]
        self._sql_keys = [key for key in study_keys if key.keyword in holdings.STUDY_KEYWORDS]
        if study_instance_uid is not None:
            self._sql_keys.append(literal("StudyInstanceUID", [study_instance_uid]))
        self._sql_keys += self._from_below()
        self._header_keys = [
            one for one in query.keys[Level.STUDY] if one.key.keyword not in holdings.STUDY_KEYWORDS
        ]

    def answer(self) -> Found:
        """Search.

        Raises
        ------
        HTTPException
            413 where too many objects would have to be looked at.
        """
        query = self._query
        if query.level is Level.STUDY and not self._header_keys:
            return self._studies_by_rows()
        results = islice(self._results(), query.offset, query.offset + query.limit + 1)
        found = Found()
        for result in results:
            if len(found.results) == query.limit:
                found.more = "further"
                break
            self._add(found, result)
        return found

    def _studies_by_rows(self) -> Found:
        query, found = self._query, Found()
        rows = holdings.studies(self._session, self._sql_keys, offset=query.offset, limit=query.limit)
        for result in self._of_studies(rows):
            self._add(found, result)
        if len(rows) == query.limit:
            counted = holdings.count_studies(
                self._session, self._sql_keys, most=query.offset + query.limit + MOST_COUNTED
            )
            left = counted - query.offset - len(rows)
            found.more = "" if left <= 0 else f"more than {left - 1}" if left >= MOST_COUNTED else str(left)
        return found

    def _add(self, found: Found, result: _Result) -> None:
        found.results.append(in_order(result.attributes))
        if result.study not in found.studies[-1:]:
            found.studies.append(result.study)

    def _from_below(self) -> list[Key]:
        """Keys of series and objects that rows of studies can be chosen by."""
        below = [*self._query.keys[Level.SERIES], *self._query.keys[Level.INSTANCE]]
        keys = [one.key for one in below if one.key.keyword in ("Modality", "SOPInstanceUID")]
        if not self._is_within_study:  # series of results are known to their files alone
            keys += [one.key for one in below if one.key.keyword == "SeriesInstanceUID"]
        return keys

    def _results(self) -> Iterator[_Result]:
        """Every result, in order."""
        for rows in self._candidates():
            if self._query.level is Level.STUDY:
                yield from (one for one in self._of_studies(rows))
            else:
                yield from self._below(rows)

    def _candidates(self) -> Iterator[list[HeldStudy]]:
        for at in range(0, MOST_EXAMINED, _CHUNK):
            rows = holdings.studies(self._session, self._sql_keys, offset=at, limit=_CHUNK)
            yield rows
            if len(rows) < _CHUNK:
                return
        raise HTTPException(
            413,
            f"The search is too broad: it leaves more than {MOST_EXAMINED} studies. Add a UID, a patient or dates.",
        )

    def _of_studies(self, rows: Sequence[HeldStudy]) -> Iterator[_Result]:
        summaries = holdings.summaries(self._session, [row.study_instance_uid for row in rows])
        for row in rows:
            summary = summaries.get(row.study_instance_uid, StudySummary())
            attributes = self._study(row, summary, self._header_keys)
            if _fits(attributes, self._header_keys):
                yield _Result(study=row.study_instance_uid, attributes=attributes)

    def _below(self, rows: Sequence[HeldStudy]) -> Iterator[_Result]:
        """Series or objects of studies."""
        query = self._query
        with_study = not self._is_within_study or bool(self._header_keys)
        uids = [row.study_instance_uid for row in rows]
        summaries = holdings.summaries(self._session, uids) if with_study else {}
        for row in rows:
            above: Attributes = element("StudyInstanceUID", [row.study_instance_uid])
            if with_study:
                summary = summaries.get(row.study_instance_uid, StudySummary())
                above = self._study(row, summary, self._header_keys)
                if not _fits(above, self._header_keys):
                    continue
            series = self._shelf.series(self._session, row.study_instance_uid)
            for one in series:
                if self._series_instance_uid not in (None, one.series_instance_uid):
                    continue
                of_series = self._series(row.study_instance_uid, one)
                if not _fits(of_series, query.keys[Level.SERIES]):
                    continue
                if query.level is Level.SERIES:
                    yield _Result(study=row.study_instance_uid, attributes={**above, **of_series})
                else:
                    yield from self._objects(one, {**above, **of_series})

    def _objects(self, series: ShelfSeries, above: Attributes) -> Iterator[_Result]:
        keys = self._query.keys[Level.INSTANCE]
        by_row = [one for one in keys if one.key.keyword in ("SOPInstanceUID", "SOPClassUID")]
        others = [one for one in keys if one not in by_row]
        if self._series_instance_uid is not None:
            above = self._asked_above(above)
        for one in series.instances:
            told = {"SOPInstanceUID": one.sop_instance_uid, "SOPClassUID": one.sop_class_uid}
            if all(key.key.fits((told[key.key.keyword],)) for key in by_row):
                attributes = self._object(one)
                if _fits(attributes, others):
                    yield _Result(study=one.study_instance_uid, attributes={**above, **attributes})

    def _asked_above(self, above: Attributes) -> Attributes:
        """Of what lies above objects, no more than their place and what is asked for (10.6.3.3.3)."""
        kept = self._included(Level.STUDY) | self._included(Level.SERIES)
        kept |= {tag_of("StudyInstanceUID"), tag_of("SeriesInstanceUID")}
        return {tag: one for tag, one in above.items() if tag in kept}

    def _study(self, row: HeldStudy, summary: StudySummary, keys: Sequence[HeaderKey]) -> Attributes:
        more = self._included(Level.STUDY) | {key.path[0] for key in keys}
        header = self._shelf.listed(*summary.sample, more) if summary.sample else {}
        is_here = summary.instances > 0
        return {
            **_of(header, more),
            **_listed(header, _STUDY_FROM_FILE),
            **_elements(row.values),
            **element("ModalitiesInStudy", sorted(summary.modalities)),
            **element("NumberOfStudyRelatedSeries", [summary.series]),
            **element("NumberOfStudyRelatedInstances", [summary.instances]),
            **element("InstanceAvailability", ["ONLINE" if is_here else "UNAVAILABLE"]),
            **(element("RetrieveURL", [f"{self._base}/studies/{row.study_instance_uid}"]) if is_here else {}),
        }

    def _series(self, study_instance_uid: str, one: ShelfSeries) -> Attributes:
        more = self._included(Level.SERIES) | {key.path[0] for key in self._query.keys[Level.SERIES]}
        if self._is_within_study:
            more |= self._included(Level.STUDY)
        first = one.instances[0]
        header = self._shelf.listed(first.folder, first.file_name, more)
        number = [] if one.series_number is None else [one.series_number]
        url = f"{self._base}/studies/{study_instance_uid}/series/{one.series_instance_uid}"
        return {
            **_of(header, more),
            **_listed(header, _SERIES_FROM_FILE),
            **element("SeriesInstanceUID", [one.series_instance_uid]),
            **element("Modality", [one.modality]),
            **element("SeriesNumber", number),
            **element("SeriesDescription", [one.series_description]),
            **element("NumberOfSeriesRelatedInstances", [len(one.instances)]),
            **element("RetrieveURL", [url]),
        }

    def _object(self, one: HeldInstance) -> Attributes:
        more = self._included(Level.INSTANCE) | {key.path[0] for key in self._query.keys[Level.INSTANCE]}
        header = self._shelf.listed(one.folder, one.file_name, more)
        number = [] if one.instance_number is None else [one.instance_number]
        return {
            **_of(header, more),
            **_listed(header, _INSTANCE_FROM_FILE),
            **element("SOPClassUID", [one.sop_class_uid]),
            **element("SOPInstanceUID", [one.sop_instance_uid]),
            **element("InstanceNumber", number),
            **element("InstanceAvailability", ["ONLINE"]),
            **element("RetrieveURL", [f"{self._base}{address_of(one)}"]),
        }

    def _included(self, level: Level) -> frozenset[str]:
        """Tags of further attributes of a level that are asked for."""
        return included_tags(self._query, level)


def address_of(one: HeldInstance) -> str:
    """Path of an object below the service's."""
    return (
        f"/studies/{one.study_instance_uid}/series/{one.series_instance_uid}/instances/{one.sop_instance_uid}"
    )


def _elements(values: dict[str, str]) -> Attributes:
    found: Attributes = {}
    for keyword, text in values.items():
        if keyword == "PatientName":
            found.update(element(keyword, [text]))
        else:
            found.update(element(keyword, text.split("\\")[:1]))
    return found


def _of(header: Attributes, tags: frozenset[str]) -> Attributes:
    return {tag: one for tag, one in header.items() if tag in tags}


def _listed(header: Attributes, keywords: Sequence[str]) -> Attributes:
    found: Attributes = {}
    for keyword in keywords:
        if (tag := tag_of(keyword)) in header:
            found[tag] = header[tag]
        elif keyword in _ALWAYS:
            found.update(element(keyword, []))
    return found


def _fits(attributes: Attributes, keys: Sequence[HeaderKey]) -> bool:
    return all(key.key.fits(_values_at(attributes, key.path)) for key in keys)


def _values_at(attributes: Attributes, path: Sequence[str]) -> list[str]:
    """Values of an attribute, of all items where it stands in sequences."""
    tag, *rest = path
    if not rest:
        return texts(attributes, tag)
    items: list[Any] = attributes.get(tag, {}).get("Value", [])
    return [text for item in items if isinstance(item, dict) for text in _values_at(item, rest)]
