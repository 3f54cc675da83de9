"""What people said of studies and of their readings: added to, never changed, and counted with what is not known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from math import sqrt

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ich_node.database.audit import record_change
from ich_node.database.standing import lock_study
from ich_node.database.tables import ReadingRow, StudyRow
from ich_node.database.web_tables import ReviewRow
from ich_node.errors import IchNodeError
from ich_node.findings import Priority

MAX_COMMENT_CHARACTERS = 2000

_NORMAL_95 = 1.959964


class Verdict(StrEnum):
    """What somebody says."""

    SEEN = "SEEN"
    """I have looked."""
    AGREE = "AGREE"
    """I have looked, and the reading is right."""
    DISAGREE = "DISAGREE"
    """I have looked, and the reading is wrong."""
    UNSEEN = "UNSEEN"
    """What I said before does not count."""


class DisagreementReason(StrEnum):
    """In what a reading is wrong."""

    MISSED = "MISSED"
    FALSE_ALARM = "FALSE_ALARM"
    WRONG_PLACE = "WRONG_PLACE"
    WRONG_SUBTYPE = "WRONG_SUBTYPE"
    OTHER = "OTHER"


ACTIONS: Mapping[Verdict, str] = {
    Verdict.SEEN: "seen",
    Verdict.AGREE: "agreed",
    Verdict.DISAGREE: "disagreed",
    Verdict.UNSEEN: "review taken back",
}
"""In the audit. They say nothing of how a reading ended."""


class ReviewRefused(IchNodeError):
    """What cannot be said of the study as it stands; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Review:
    """What one person said at one time."""

    at: datetime
    reviewer: str
    verdict: Verdict
    reason: DisagreementReason | None
    comment: str
    priority: str
    """That the study had then."""
    reading_id: int | None
    model: str
    """Name and version of what had read; empty: nothing had."""
    counts: bool
    """Whether the reviewer has said nothing later, and the study has become no more urgent since."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How people judged the readings of one model that gave one priority."""

    model_name: str
    model_version: str
    priority: Priority
    readings: int
    """All of the period, judged or not."""
    judged: int
    """Of which somebody said that they are right or wrong."""
    agreed: int
    """Of these, where the last word was that it is right."""
    contested: int
    """Of these, where reviewers say different things."""
    reviewers: Mapping[str, int]
    """Who judged, and how many."""
    reasons: Mapping[DisagreementReason, int]
    """Of the last words that it is wrong."""

    @property
    def proportion(self) -> float | None:
        """Of those judged, how many are right."""
        return self.agreed / self.judged if self.judged else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % of the proportion, by Wilson's score (JASA 22:209, 1927)."""
        return wilson_interval(self.agreed, self.judged) if self.judged else None


def add_review(
    session: Session,
    *,
    study_instance_uid: str,
    verdict: Verdict,
    reviewer: str,
    now: datetime,
    reason: DisagreementReason | None = None,
    comment: str | None = None,
    of_reading: int | None = None,
) -> bool:
    """Write down what somebody says of a study, and mark it as reviewed, or no longer, in one transaction.

    Who says the same of the same reading again has said it once. What is taken back is the reviewer's own word;
    where another's stands, the study stays reviewed by that one.

    Parameters
    ----------
    of_reading
        The reading that the reviewer saw, by its number; 0: there was none; ``None``: whichever counts now.

    Returns
    -------
    bool
        Whether it is new.

    Raises
    ------
    LookupError
        No such study is here.
    ReviewRefused
        There is no reading to judge, it is another one by now, or the reason does not go with the verdict.
    """
    study = lock_study(session, study_instance_uid)
    if study is None:
        raise LookupError(f"no study {study_instance_uid} is here")
    text = (comment or "").strip()
    _check(study, verdict, reason, text, of_reading)
    standing = _standing(session, study)
    mine = standing.get(reviewer)
    if verdict is Verdict.UNSEEN and mine is None:
        return False
    row = ReviewRow(
        at=now,
        study_instance_uid=study_instance_uid,
        # What is taken back may be of an earlier reading.
        reading_id=mine.reading_id if mine and verdict is Verdict.UNSEEN else study.reading_id,
        reviewer=reviewer,
        verdict=verdict,
        reason=reason,
        comment=text or None,
        priority=study.priority,
    )
    if mine is not None and _says_nothing_new(mine, row):
        return False
    session.add(row)
    standing.pop(reviewer, None)
    if verdict is not Verdict.UNSEEN:
        standing[reviewer] = row
    last = max(standing.values(), key=lambda each: each.at, default=None)
    study.reviewed_at = last.at if last else None
    study.reviewed_by = last.reviewer if last else None
    record_change(session, study, at=now, actor=reviewer, action=ACTIONS[verdict], why=reason)
    return True


def reviews_of(session: Session, study_instance_uid: str) -> list[Review]:
    """What was said of a study, the last first."""
    rows = session.execute(
        select(ReviewRow, ReadingRow.model_name, ReadingRow.model_version)
        .outerjoin(ReadingRow, ReadingRow.id == ReviewRow.reading_id)
        .where(ReviewRow.study_instance_uid == study_instance_uid)
        .order_by(ReviewRow.id.desc())
    ).all()
    study = session.get(StudyRow, study_instance_uid)
    spoke: set[str] = set()
    found = []
    for row, name, version in rows:
        found.append(
            Review(
                at=row.at,
                reviewer=row.reviewer,
                verdict=Verdict(row.verdict),
                reason=DisagreementReason(row.reason) if row.reason else None,
                comment=row.comment or "",
                priority=row.priority,
                reading_id=row.reading_id,
                model=f"{name} {version}" if name else "",
                counts=row.reviewer not in spoke and study is not None and _counts(row, study),
            )
        )
        spoke.add(row.reviewer)
    return found


def agreement(session: Session, *, since: datetime, model: str | None = None) -> list[Agreement]:
    """How people judged what was read since a time, by model, version and the priority that the reading gave.

    A reading is judged once, by the last word on it that stands. Nobody chose at random what to judge: whoever shows
    these numbers shows beside them how many readings were not judged, and who judged.

    Parameters
    ----------
    model
        Name of the only one that is wanted.
    """
    key = (ReadingRow.model_name, ReadingRow.model_version, ReadingRow.priority)
    within = [ReadingRow.read_at >= since, *([ReadingRow.model_name == model] if model is not None else [])]
    totals = session.execute(select(*key, func.count()).where(*within).group_by(*key)).all()
    rows = session.execute(
        select(ReviewRow, *key)
        .join(ReadingRow, ReadingRow.id == ReviewRow.reading_id)
        .where(*within)
        .order_by(ReviewRow.id)
    ).all()
    words: dict[tuple[str, str, str], dict[int, dict[str, ReviewRow]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for row, *group in rows:
        assert row.reading_id is not None
        if row.verdict == Verdict.SEEN:  # a judgement stands when its study is looked at again
            continue
        said = words[group[0], group[1], group[2]][row.reading_id]
        said.pop(row.reviewer, None)  # so that the last word comes last
        if row.verdict in (Verdict.AGREE, Verdict.DISAGREE):
            said[row.reviewer] = row
    found = [
        _agreement(name, version, Priority(priority), count, words[name, version, priority])
        for name, version, priority, count in totals
    ]
    return sorted(found, key=lambda a: (a.model_name, a.model_version, a.priority.urgency))


def wilson_interval(hits: int, trials: int, *, z: float = _NORMAL_95) -> tuple[float, float]:
    """Interval of a proportion by Wilson's score.

    Parameters
    ----------
    hits, trials
        How many of how many; at least one trial.
    z
        Quantile of the normal distribution; by default that of 95 %.
    """
    share, square = hits / trials, z * z / trials
    middle = (share + square / 2) / (1 + square)
    half = z * sqrt(share * (1 - share) / trials + square / (4 * trials)) / (1 + square)
    # At the ends the exact bounds are 0 and 1; rounding must not cross them.
    return (0.0 if hits == 0 else max(0.0, middle - half)), (
        1.0 if hits == trials else min(1.0, middle + half)
    )


def _check(
    study: StudyRow, verdict: Verdict, reason: DisagreementReason | None, comment: str, of_reading: int | None
) -> None:
    if len(comment) > MAX_COMMENT_CHARACTERS:
        raise ReviewRefused(f"the comment has more than {MAX_COMMENT_CHARACTERS} characters")
    if verdict in (Verdict.AGREE, Verdict.DISAGREE) and study.reading_id is None:
        raise ReviewRefused("the study was not read: there is nothing to agree or disagree with")
    if (verdict is Verdict.DISAGREE) != (reason is not None):
        raise ReviewRefused("a reason goes with disagreement, and with nothing else")
    if of_reading is not None and of_reading != (study.reading_id or 0):
        raise ReviewRefused("the study was read again meanwhile: look at what is known now")


def _standing(session: Session, study: StudyRow) -> dict[str, ReviewRow]:
    """The last word of each reviewer, where it counts."""
    rows = session.scalars(
        select(ReviewRow)
        .where(ReviewRow.study_instance_uid == study.study_instance_uid)
        .order_by(ReviewRow.id)
    )
    last = {row.reviewer: row for row in rows}
    return {name: row for name, row in last.items() if _counts(row, study)}


def _counts(row: ReviewRow, study: StudyRow) -> bool:
    """Whether it makes the study a reviewed one: not where that was less urgent when it was looked at."""
    if row.verdict == Verdict.UNSEEN or study.reviewed_at is None:
        return False
    return Priority(row.priority).urgency <= Priority(study.priority).urgency


def _says_nothing_new(one: ReviewRow, other: ReviewRow) -> bool:
    if one.reading_id != other.reading_id:
        return False
    if other.verdict == Verdict.SEEN:  # whoever judged it has seen it
        return True
    return all(getattr(one, name) == getattr(other, name) for name in ("verdict", "reason", "comment"))


def _agreement(
    name: str, version: str, priority: Priority, readings: int, words: Mapping[int, Mapping[str, ReviewRow]]
) -> Agreement:
    judged = [list(said.values()) for said in words.values() if said]
    last = [said[-1] for said in judged]
    return Agreement(
        model_name=name,
        model_version=version,
        priority=priority,
        readings=readings,
        judged=len(judged),
        agreed=sum(row.verdict == Verdict.AGREE for row in last),
        contested=sum(len({row.verdict for row in said}) > 1 for said in judged),
        reviewers=_counted([row.reviewer for said in judged for row in said]),
        reasons={DisagreementReason(r): n for r, n in _counted([row.reason for row in last]).items()},
    )


def _counted(values: Sequence[str | None]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for value in values:
        if value:
            counts[value] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
