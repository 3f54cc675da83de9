"""What was said of a study, and what somebody may do with it now, as its page shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ich_node.database.reviews import DisagreementReason, Review, Verdict
from ich_node.web import display
from ich_node.web.agreement_page import REASON
from ich_node.web.caller import Caller, Role
from ich_node.web.wording import PENDING

_WORDS: dict[Verdict, str] = {
    Verdict.SEEN: "Seen",
    Verdict.AGREE: "Agrees with the reading",
    Verdict.DISAGREE: "Disagrees",
    Verdict.UNSEEN: "Took back what was said before",
}


@dataclass(frozen=True, kw_only=True)
class ReviewLine:
    """One thing that one person said."""

    at: str
    reviewer: str
    words: str
    comment: str
    of: str
    """Of which reading, where that is not the present one."""
    counts: bool


@dataclass(frozen=True, kw_only=True)
class StudyReviews:
    """The reviews of a study, and the buttons."""

    lines: tuple[ReviewLine, ...]
    may_review: bool
    may_judge: bool
    """Whether there is a reading to agree or disagree with."""
    mine: str
    """The caller's own verdict on the present reading that stands; empty: none."""
    may_take_back: bool
    may_reprocess: bool
    why_not_reprocess: str
    reading: str
    """Number of the present reading, so that a verdict is on what was seen."""
    reasons: tuple[tuple[str, str], ...]
    """Code and words, in the order in which they are offered."""


def study_reviews(
    reviews: Sequence[Review], report: Mapping[str, Any], reading_id: int | None, caller: Caller
) -> StudyReviews:
    """Put reviews into words.

    Parameters
    ----------
    reviews
        The last first.
    report
        The study as ``study_report`` gives it.
    reading_id
        Of the reading that counts; ``None``: the study was not read.
    """
    own = next((r for r in reviews if r.reviewer == caller.name and r.counts), None)
    why_not = _why_not_reprocess(report)
    is_radiologist = caller.role.covers(Role.RADIOLOGIST)
    return StudyReviews(
        lines=tuple(_line(r, reading_id) for r in reviews),
        may_review=is_radiologist,
        may_judge=is_radiologist and reading_id is not None,
        mine=own.verdict if own is not None and own.reading_id == reading_id else "",
        may_take_back=is_radiologist and own is not None,
        may_reprocess=is_radiologist and not why_not,
        why_not_reprocess=why_not if is_radiologist else "",
        reading="" if reading_id is None else str(reading_id),
        reasons=tuple((reason, REASON[reason]) for reason in DisagreementReason),
    )


def _why_not_reprocess(report: Mapping[str, Any]) -> str:
    if report["state"] in PENDING:
        return "It is being received or read: wait for the result."
    if not any(series["instances"] and not series["purged_instances"] for series in report["series"]):
        return "Its images are no longer here: send the study again from the PACS."
    return ""


def _line(review: Review, reading_id: int | None) -> ReviewLine:
    words = _WORDS[review.verdict]
    if review.reason is not None:
        words += f": {REASON[review.reason].lower()}"
    is_present = review.reading_id == reading_id
    return ReviewLine(
        at=display.local_time(review.at),
        reviewer=display.plain_text(review.reviewer),
        words=words,
        comment=display.plain_text(review.comment),
        of="" if is_present else display.plain_text(f"of an earlier reading ({review.model or 'none'})"),
        counts=review.counts,
    )
