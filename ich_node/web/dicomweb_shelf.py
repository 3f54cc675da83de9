"""The objects of a study with their files: received ones from the spool, results from theirs, by series."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from starlette.exceptions import HTTPException

from ich_node.database import holdings
from ich_node.database.engine import Database, Session
from ich_node.database.holdings import HeldInstance, HeldSeries
from ich_node.database.retention import Folder
from ich_node.errors import StudyRejected
from ich_node.settings import Settings
from ich_node.web.dicomweb_headers import some_of_header
from ich_node.web.dicomweb_json import Attributes, texts, to_json
from ich_node.web.dicomweb_levels import tag_of

logger = logging.getLogger(__name__)

_HEADERS_KEPT = 4096
_LISTED = frozenset(
    tag_of(keyword)
    for keyword in (
        "TimezoneOffsetFromUTC",
        "ReferringPhysicianName",
        "StudyID",
        "SeriesInstanceUID",
        "SeriesNumber",
        "SeriesDescription",
        "Modality",
        "PerformedProcedureStepStartDate",
        "PerformedProcedureStepStartTime",
        "RequestAttributesSequence",
        "InstanceNumber",
        "NumberOfFrames",
        "Rows",
        "Columns",
        "BitsAllocated",
    )
)
"""What lists of studies, series and objects show beside what rows tell."""
_TRANSFER_SYNTAX = "00020010"


@dataclass(frozen=True, kw_only=True)
class ShelfSeries:
    """A series of which objects are here."""

    series_instance_uid: str
    modality: str
    series_number: int | None
    series_description: str
    instances: tuple[HeldInstance, ...]


class Shelf:
    """Objects by study, series and object.

    Parameters
    ----------
    settings
        Where the folders are.
    database
        Whoever made it closes it.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        self._database = database
        self._folders = {Folder.SPOOL: settings.spool_dir, Folder.RESULTS: settings.results_dir}

    def path(self, folder: Folder, file_name: str) -> Path:
        """Where a file lies. Names in rows were made here, and yet none leads out of its folder."""
        root = self._folders[folder]
        path = root / file_name
        if not path.resolve().is_relative_to(root.resolve()):
            raise HTTPException(404, "There is no such object.")
        return path

    def listed(self, folder: Folder, file_name: str, more: Collection[str] = ()) -> Attributes:
        """What lists show of an object, and further attributes by tag; nothing where its file cannot be read."""
        path = self.path(folder, file_name)
        try:
            found = _listed(path)
            return {**found, **_attributes(path, more)} if set(more) - _LISTED else found
        except (FileNotFoundError, StudyRejected) as error:
            logger.warning("the header of %s cannot be read: %s", file_name, error)
            return {}

    def series(self, session: Session, study_instance_uid: str) -> list[ShelfSeries]:
        """The series of a study of which objects are here: those received, then those made of them."""
        rows = {row.series_instance_uid: row for row in holdings.series_of(session, study_instance_uid)}
        found: dict[str, list[HeldInstance]] = {}
        for one in self._all(session, study_instance_uid):
            found.setdefault(one.series_instance_uid, []).append(one)
        return [self._series(uid, rows.get(uid), instances) for uid, instances in found.items()]

    def instances(
        self,
        study_instance_uid: str,
        series_instance_uid: str | None = None,
        sop_instance_uid: str | None = None,
    ) -> list[HeldInstance]:
        """The objects of a study, of a series or one object.

        Raises
        ------
        HTTPException
            404 where there is none, 410 where there was.
        """
        with self._database.reading() as session:
            if sop_instance_uid is None:
                found = self._all(session, study_instance_uid, series_instance_uid)
            else:
                one = holdings.instance(session, sop_instance_uid)
                found = [] if one is None else self._complete([one])
            mine = [
                one
                for one in found
                if one.study_instance_uid == study_instance_uid
                and one.series_instance_uid == (series_instance_uid or one.series_instance_uid)
            ]
            if mine:
                return mine
            raise _absent(session, study_instance_uid, series_instance_uid, sop_instance_uid)

    def _all(
        self, session: Session, study_instance_uid: str, series_instance_uid: str | None = None
    ) -> list[HeldInstance]:
        received = holdings.received_of(session, study_instance_uid, series_instance_uid)
        made = self._complete(holdings.results_of(session, study_instance_uid))
        wanted = [one for one in made if series_instance_uid in (None, one.series_instance_uid)]
        return [*received, *wanted]

    def _complete(self, instances: list[HeldInstance]) -> list[HeldInstance]:
        """Result objects with what their files tell; those whose file cannot be read are left out."""
        completed = (self._told_by_file(one) if one.folder is Folder.RESULTS else one for one in instances)
        return [one for one in completed if one.series_instance_uid]

    def _told_by_file(self, one: HeldInstance) -> HeldInstance:
        attributes = self.listed(one.folder, one.file_name)
        return replace(
            one,
            series_instance_uid=_first(attributes, "SeriesInstanceUID"),
            transfer_syntax_uid="".join(texts(attributes, _TRANSFER_SYNTAX)),
            instance_number=_whole(_first(attributes, "InstanceNumber")),
            number_of_frames=_whole(_first(attributes, "NumberOfFrames")) or 1,
        )

    def _series(self, uid: str, row: HeldSeries | None, instances: list[HeldInstance]) -> ShelfSeries:
        if row is not None:
            return ShelfSeries(
                series_instance_uid=uid,
                modality=row.modality,
                series_number=row.series_number,
                series_description=row.series_description,
                instances=tuple(instances),
            )
        attributes = self.listed(instances[0].folder, instances[0].file_name)
        return ShelfSeries(
            series_instance_uid=uid,
            modality=_first(attributes, "Modality"),
            series_number=_whole(_first(attributes, "SeriesNumber")),
            series_description=_first(attributes, "SeriesDescription"),
            instances=tuple(instances),
        )


@lru_cache(maxsize=_HEADERS_KEPT)
def _listed(path: Path) -> Attributes:
    """A file's bytes never change, so what has been read once is kept."""
    return _attributes(path, _LISTED)


def _attributes(path: Path, tags: Collection[str]) -> Attributes:
    dataset = some_of_header(path, [int(tag, 16) for tag in tags])
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    found = to_json(dataset, lambda path: "")
    return {
        **{tag: one for tag, one in found.items() if tag in tags and "BulkDataURI" not in one},
        _TRANSFER_SYNTAX: {"vr": "UI", "Value": [syntax]},
    }


def _first(attributes: Attributes, keyword: str) -> str:
    return next(iter(texts(attributes, tag_of(keyword))), "")


def _whole(text: str) -> int | None:
    return int(text) if text.lstrip("-").isdigit() else None


def _absent(
    session: Session,
    study_instance_uid: str,
    series_instance_uid: str | None,
    sop_instance_uid: str | None,
) -> HTTPException:
    study = holdings.study(session, study_instance_uid)
    if study is None:
        return HTTPException(404, f"No study {study_instance_uid} is here.")
    series = {row.series_instance_uid: row for row in holdings.series_of(session, study_instance_uid)}
    was_here = study.purged_at is not None
    if series_instance_uid is not None:
        row = series.get(series_instance_uid)
        was_here = row is not None and row.was_purged
    if sop_instance_uid is not None:
        was_here = was_here or holdings.was_purged(session, sop_instance_uid)
    if was_here:
        return HTTPException(410, "This was here and was purged: ask the PACS for it.")
    what = sop_instance_uid or series_instance_uid or study_instance_uid
    return HTTPException(404, f"No object of {what} is here.")
