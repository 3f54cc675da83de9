"""One study as its page shows it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ich_node.errors import REASON_WORDS
from ich_node.findings import IchSubtype, Priority
from ich_node.viewer_settings import viewer_url
from ich_node.web import display
from ich_node.web.pictures import PictureSource
from ich_node.web.slice_profile import SliceProfile, slice_profile
from ich_node.web.wording import DELIVERY, PENDING, SUBTYPE, words_of
from ich_node.web.worklist_page import WorklistLine, worklist_lines


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One overlay of the reading that counts."""

    sop_instance_uid: str
    caption: str
    short_caption: str
    slice_index: int | None = None
    """From below, counted from 0; ``None`` where it shows no single slice that was read."""


@dataclass(frozen=True, kw_only=True)
class SubtypeScore:
    """Study-level score of one kind of hemorrhage."""

    name: str
    score: float
    percent: str


@dataclass(frozen=True, kw_only=True)
class SeriesLine:
    """One series and what became of it."""

    number: str
    description: str
    modality: str
    images: str
    outcome: str
    detail: str
    was_read: bool


@dataclass(frozen=True, kw_only=True)
class DeliveryLine:
    """How the objects of the reading fare at one destination."""

    destination: str
    state: str
    words: str
    sent: str
    sent_at: str
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ReadingLine:
    """One reading in the study's history."""

    read_at: str
    run: str
    series: str
    model: str
    weights: str
    priority: str
    suspicion: str
    counts: str
    is_leading: bool
    sr_sop_instance_uid: str


@dataclass(frozen=True, kw_only=True)
class AuditLine:
    """One change of state or priority."""

    at: str
    actor: str
    action: str
    state: str
    priority: str
    why: str


@dataclass(frozen=True, kw_only=True)
class StudyPage:
    """Everything that the page of one study shows."""

    line: WorklistLine
    reason_detail: str
    purged: str
    """When images of it went, in words; empty: all that came are here."""
    pictures: tuple[Picture, ...]
    subtypes: tuple[SubtypeScore, ...]
    profile: SliceProfile | None
    caveats: tuple[str, ...]
    series: tuple[SeriesLine, ...]
    deliveries: tuple[DeliveryLine, ...]
    readings: tuple[ReadingLine, ...]
    timeline: tuple[tuple[str, str], ...]
    weights_sha256: str
    sr_sop_instance_uid: str
    audit: tuple[AuditLine, ...]
    viewer_url: str
    """Of the study in the site's own viewer; empty: none is set."""
    version: str
    """Changes when anything on the page does."""


def study_page(
    row: Mapping[str, Any],
    report: Mapping[str, Any],
    picture_sources: Mapping[str, PictureSource | None],
    *,
    now: datetime,
    viewer_template: str = "",
) -> StudyPage:
    """Put a study into words.

    Parameters
    ----------
    row
        The study's row of ``worklist_v1``.
    report
        The study as ``study_report`` gives it.
    picture_sources
        By SOP Instance UID, what a result object was drawn from.
    viewer_template
        ``viewer.url_template``.
    """
    leading = _leading(row, report["readings"])
    numbers = {s["series_instance_uid"]: _series_name(s) for s in report["series"]}
    return StudyPage(
        line=worklist_lines([row], now=now)[0],
        reason_detail=display.plain_text(report["reason_detail"]),
        purged=_purged(report, leading),
        pictures=_pictures(leading, picture_sources),
        subtypes=_subtypes(leading),
        profile=slice_profile(leading["slices"]) if leading else None,
        caveats=tuple(display.plain_text(caveat) for caveat in (leading["caveats"] if leading else ())),
        series=tuple(_series(s, report) for s in report["series"]),
        deliveries=_deliveries(leading, now),
        readings=tuple(_reading(r, r is leading, numbers) for r in report["readings"]),
        timeline=_timeline(row, leading),
        weights_sha256=display.plain_text(leading["weights_sha256"]) if leading else "",
        sr_sop_instance_uid=_report_here(leading) if leading else "",
        audit=tuple(_audit(entry) for entry in reversed(report["history"])),
        viewer_url=_viewer_url(viewer_template, row, leading),
        version=study_version(row, report),
    )


def study_version(row: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """Return a short hash that changes when anything about the study does."""
    text = json.dumps([row, report], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def _viewer_url(template: str, row: Mapping[str, Any], leading: Mapping[str, Any] | None) -> str:
    values = {
        "study_instance_uid": row["study_instance_uid"],
        "accession_number": row["accession_number"] or "",
        "patient_id": row["patient_id"] or "",
        "series_instance_uid": leading["series_instance_uid"] if leading else "",
    }
    return viewer_url(template, values) or ""


def _leading(row: Mapping[str, Any], readings: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The reading that the study's priority comes from."""
    uid = row["sr_sop_instance_uid"]
    for reading in readings:
        if uid and any(item["sop_instance_uid"] == uid for item in reading["objects"]):
            return reading
    return None


def _pictures(
    leading: Mapping[str, Any] | None, sources: Mapping[str, PictureSource | None]
) -> tuple[Picture, ...]:
    if leading is None:
        return ()
    captures = [
        item["sop_instance_uid"]
        for item in leading["objects"]
        if item["kind"] == "SC" and not item["purged_at"]
    ]
    return tuple(
        _picture(uid, number, sources.get(uid), leading["slices"]) for number, uid in enumerate(captures, 1)
    )


def _picture(
    uid: str, number: int, source: PictureSource | None, slices: Sequence[Mapping[str, Any]]
) -> Picture:
    if source is not None and source.is_summary:
        return Picture(sop_instance_uid=uid, caption="Summary of the reading", short_caption="Summary")
    places = {(s["sop_instance_uid"], s.get("frame_number")): i for i, s in enumerate(slices)}
    known = [places[s] for s in (source.source_slices if source else ()) if s in places]
    if len(known) != 1:
        return Picture(sop_instance_uid=uid, caption=f"Overlay {number}", short_caption=f"Overlay {number}")
    index = known[0]
    percent = display.percent(slices[index]["probabilities"].get(IchSubtype.ANY))
    return Picture(
        sop_instance_uid=uid,
        caption=f"Slice {index + 1} of {len(slices)} from below, {percent}",
        short_caption=f"Slice {index + 1} · {percent}",
        slice_index=index,
    )


def _subtypes(leading: Mapping[str, Any] | None) -> tuple[SubtypeScore, ...]:
    if leading is None:
        return ()
    scores = sorted(leading["subtypes"].items(), key=lambda item: -item[1])
    return tuple(
        SubtypeScore(name=SUBTYPE.get(code, words_of(code)), score=score, percent=display.percent(score))
        for code, score in scores
    )


def _purged(report: Mapping[str, Any], leading: Mapping[str, Any] | None) -> str:
    images = any(series["purged_instances"] for series in report["series"])
    results = any(item["purged_at"] for item in (leading["objects"] if leading else ()))
    if not images and not results:
        return ""
    what = " and ".join([*(["images"] if images else []), *(["result objects"] if results else [])])
    where = "the PACS has the results" if results else "the results are here"
    again = "; to have the study read again, send it again from the PACS" if images else ""
    return f"Its {what} were purged on {display.local_time(report['purged_at'])}: {where}{again}."


def _series_name(series: Mapping[str, Any]) -> str:
    number = series["series_number"]
    return "–" if number is None else str(number)


def _series(series: Mapping[str, Any], report: Mapping[str, Any]) -> SeriesLine:
    uid, reason = series["series_instance_uid"], series["exclusion_reason"]
    was_read = any(r["series_instance_uid"] == uid and not r["superseded"] for r in report["readings"])
    conflicts = series["conflicting_instances"]
    images = f"{series['instances']}" + (f" + {conflicts} in conflict" if conflicts else "")
    images += f" ({series['purged_instances']} were purged)" if series["purged_instances"] else ""
    if reason:
        outcome = ("Read earlier; now: " if was_read else "Not read: ") + REASON_WORDS.get(
            reason, words_of(reason)
        )
    else:
        unread = "Not read yet" if report["state"] in PENDING else "Not read"
        outcome = "Read" if was_read else unread
    return SeriesLine(
        number=_series_name(series),
        description=display.plain_text(series["series_description"]) or "(no description)",
        modality=display.plain_text(series["modality"]),
        images=images,
        outcome=outcome,
        detail=display.plain_text(series["exclusion_detail"]),
        was_read=was_read and not reason,
    )


def _deliveries(leading: Mapping[str, Any] | None, now: datetime) -> tuple[DeliveryLine, ...]:
    if leading is None:
        return ()
    destinations = dict.fromkeys(d["destination"] for d in leading["deliveries"])
    return tuple(
        _delivery(name, [d for d in leading["deliveries"] if d["destination"] == name], now)
        for name in destinations
    )


def _delivery(destination: str, deliveries: Sequence[Mapping[str, Any]], now: datetime) -> DeliveryLine:
    states = [d["state"] for d in deliveries]
    state = next((s for s in ("DEAD", "PENDING", "SENT") if s in states), "DELIVERED")
    sent = [d["sent_at"] for d in deliveries if d["sent_at"]]
    attempts = max(d["attempts"] for d in deliveries)
    words = DELIVERY.get(state, words_of(state))
    if state == "PENDING" and attempts > 0:
        words = f"Waiting to try again ({attempts} {'try' if attempts == 1 else 'tries'})"
    return DeliveryLine(
        destination=display.plain_text(destination),
        state=state,
        words=words,
        sent=f"{states.count('DELIVERED')} of {len(states)}",
        sent_at=" ".join(reversed(display.clock_time(max(sent, default=None), now=now))).strip(),
        notes=tuple(dict.fromkeys(display.plain_text(d["note"]) for d in deliveries if d["note"])),
    )


def _reading(reading: Mapping[str, Any], is_leading: bool, numbers: Mapping[str, str]) -> ReadingLine:
    counts = "superseded" if reading["superseded"] else "counts"
    return ReadingLine(
        read_at=display.local_time(reading["read_at"]),
        run=str(reading["run_number"]),
        series=numbers.get(reading["series_instance_uid"], "–"),
        model=display.plain_text(f"{reading['model_name']} {reading['model_version']}"),
        weights=display.plain_text(reading["weights_sha256"])[:12],
        priority=reading["priority"],
        suspicion=display.percent(reading["suspicion"]),
        counts="sets the priority" if is_leading else counts,
        is_leading=is_leading,
        sr_sop_instance_uid=_report_here(reading),
    )


def _report_here(reading: Mapping[str, Any]) -> str:
    """SOP Instance UID of a reading's structured report, empty where that is purged."""
    objects = (item for item in reading["objects"] if item["kind"] == "SR" and not item["purged_at"])
    return next((str(item["sop_instance_uid"]) for item in objects), "")


def _timeline(row: Mapping[str, Any], leading: Mapping[str, Any] | None) -> tuple[tuple[str, str], ...]:
    if leading is None:
        return ()
    stages = [("first image received", row["received_at"]), *leading["timeline"].items()]
    if row["flagged_at"] and row["priority"] in (Priority.STAT, Priority.HIGH):
        stages.append(("flag raised", row["flagged_at"]))
    if row["delivered_at"]:
        stages.append(("delivered", row["delivered_at"]))
    stages.sort(key=lambda stage: str(stage[1]))  # ISO 8601 in UTC sorts by time
    return tuple((display.plain_text(stage), display.local_time(at)) for stage, at in stages)


def _audit(entry: Mapping[str, Any]) -> AuditLine:
    return AuditLine(
        at=display.local_time(entry["at"]),
        actor=display.plain_text(entry["actor"]),
        action=words_of(display.plain_text(entry["action"])),
        state=words_of(entry["state"]),
        priority=entry["priority"],
        why=display.plain_text(entry["why"]),
    )
