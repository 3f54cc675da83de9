"""How far people and models agree, in words that do not claim more than was counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ich_node.database.reviews import Agreement, DisagreementReason
from ich_node.web.display import percent, plain_text
from ich_node.web.wording import PRIORITY

PERIODS_DAYS = (7, 30, 90, 365)

REASON: dict[str, str] = {
    DisagreementReason.MISSED: "Missed a hemorrhage",
    DisagreementReason.FALSE_ALARM: "False alarm",
    DisagreementReason.WRONG_PLACE: "Wrong place",
    DisagreementReason.WRONG_SUBTYPE: "Wrong kind",
    DisagreementReason.OTHER: "Something else",
}
_FEW = 30
"""With fewer than this the interval is so wide that nothing follows."""


@dataclass(frozen=True, kw_only=True)
class AgreementLine:
    """One model at one priority."""

    model: str
    priority: str
    priority_words: str
    judged: str
    coverage: str
    agreed: str
    proportion: str
    interval: str
    is_few: bool
    reasons: str
    reviewers: str
    contested: str


@dataclass(frozen=True, kw_only=True)
class AgreementPage:
    """What the page shows."""

    days: int
    periods: tuple[int, ...]
    lines: tuple[AgreementLine, ...]
    readings: int
    judged: int
    summary: str


def agreement_page(found: Sequence[Agreement], *, days: int) -> AgreementPage:
    """Put counts into words."""
    readings, judged = sum(a.readings for a in found), sum(a.judged for a in found)
    people = {name for a in found for name in a.reviewers}
    if judged:
        who = "one reviewer" if len(people) == 1 else f"{len(people)} reviewers"
        summary = f"{judged} of {readings} readings were judged, by {who}."
    else:
        summary = f"None of {readings} readings was judged." if readings else "Nothing was read in this time."
    return AgreementPage(
        days=days,
        periods=PERIODS_DAYS,
        lines=tuple(_line(each) for each in found),
        readings=readings,
        judged=judged,
        summary=summary,
    )


def _line(each: Agreement) -> AgreementLine:
    interval = each.interval
    return AgreementLine(
        model=plain_text(f"{each.model_name} {each.model_version}"),
        priority=each.priority,
        priority_words=PRIORITY[each.priority],
        judged=f"{each.judged} of {each.readings}",
        coverage=percent(each.judged / each.readings) if each.readings else "–",
        agreed=str(each.agreed) if each.judged else "–",
        proportion=percent(each.proportion),
        interval=f"{percent(interval[0])} to {percent(interval[1])}" if interval else "–",
        is_few=0 < each.judged < _FEW,
        reasons=", ".join(f"{REASON[reason]} {count}" for reason, count in each.reasons.items()),
        reviewers=", ".join(f"{plain_text(name)} {count}" for name, count in each.reviewers.items()),
        contested=str(each.contested) if each.contested else "",
    )
