"""What people said: once each, in one transaction with the study and the audit, and counted honestly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select

from ich_node.database.engine import Database
from ich_node.database.readings import finish_not_read, finish_read
from ich_node.database.reviews import (
    MAX_COMMENT_CHARACTERS,
    DisagreementReason,
    ReviewRefused,
    Verdict,
    add_review,
    agreement,
    reviews_of,
    wilson_interval,
)
from ich_node.database.tables import AuditRow
from ich_node.database.web_tables import ReviewRow
from ich_node.errors import RejectionReason, StudyRejected
from ich_node.findings import Priority, StudyState
from tests.database_cases import (
    STUDY,
    Sender,
    at,
    must_claim,
    read_once,
    reading,
    sqlite_database,
    study_row,
    together,
)

MISSED, FALSE_ALARM = DisagreementReason.MISSED, DisagreementReason.FALSE_ALARM


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with sqlite_database(tmp_path) as database:
        yield database


@pytest.fixture
def read(database: Database) -> Database:
    """With one study that was read."""
    received(database, STUDY, Priority.STAT)
    return database


def received(database: Database, study: str, priority: Priority | None) -> None:
    Sender(database=database, study=study, series=f"{study}.1").send(1)
    if priority is not None:
        read_once(database, priority, study=study)


def say(
    database: Database, verdict: Verdict, reviewer: str = "Meyer", *, seconds: float = 20, **more: object
) -> bool:
    with database.writing() as session:
        return add_review(
            session,
            **{"study_instance_uid": STUDY, **more},  # type: ignore[arg-type]
            verdict=verdict,
            reviewer=reviewer,
            now=at(seconds),
        )


def reviewed(database: Database) -> tuple[object, object]:
    row = study_row(database)
    return row.reviewed_at, row.reviewed_by


def audit(database: Database) -> list[tuple[str, str, str | None]]:
    with database.reading() as session:
        rows = session.scalars(select(AuditRow).order_by(AuditRow.id)).all()
        return [(row.actor, row.action, row.why) for row in rows if row.actor in ("Meyer", "Novak")]


def test_seen_marks_the_study_and_the_audit(read: Database) -> None:
    assert say(read, Verdict.SEEN)
    assert reviewed(read) == (at(20), "Meyer")
    assert audit(read) == [("Meyer", "seen", None)]
    with read.reading() as session:
        (review,) = reviews_of(session, STUDY)
    assert (review.verdict, review.priority, review.model, review.counts) == (
        Verdict.SEEN,
        "STAT",
        "vicar-attention 1",
        True,
    )


@pytest.mark.parametrize(
    ("verdict", "more"),
    [
        (Verdict.SEEN, {}),
        (Verdict.AGREE, {}),
        (Verdict.DISAGREE, {"reason": FALSE_ALARM, "comment": " calcified falx "}),
    ],
)
def test_said_twice_is_said_once(read: Database, verdict: Verdict, more: dict[str, object]) -> None:
    assert say(read, verdict, **more)
    assert not say(read, verdict, seconds=30, **more)
    assert reviewed(read) == (at(20), "Meyer")
    assert len(audit(read)) == 1


def test_two_clicks_at_once_are_one_review(read: Database) -> None:
    new = together(6, lambda _: say(read, Verdict.AGREE))
    assert sorted(new) == [False] * 5 + [True]
    with read.reading() as session:
        assert session.scalar(select(func.count()).select_from(ReviewRow)) == 1


def test_seen_after_a_judgement_says_nothing_new_and_does_not_undo_it(read: Database) -> None:
    say(read, Verdict.AGREE)
    assert not say(read, Verdict.SEEN, seconds=30)
    assert say(read, Verdict.DISAGREE, seconds=40, reason=MISSED)
    with read.reading() as session:
        assert [(r.verdict, r.counts) for r in reviews_of(session, STUDY)] == [
            (Verdict.DISAGREE, True),
            (Verdict.AGREE, False),
        ]


def test_taking_back_is_for_ones_own_word_alone(read: Database) -> None:
    say(read, Verdict.SEEN, "Meyer")
    assert not say(read, Verdict.UNSEEN, "Novak", seconds=25)
    say(read, Verdict.AGREE, "Novak", seconds=30)
    assert say(read, Verdict.UNSEEN, "Novak", seconds=40)
    assert reviewed(read) == (at(20), "Meyer")
    assert say(read, Verdict.UNSEEN, "Meyer", seconds=50)
    assert reviewed(read) == (None, None)
    assert [action for _, action, _ in audit(read)] == [
        "seen",
        "agreed",
        "review taken back",
        "review taken back",
    ]


def test_what_cannot_be_said_is_refused_and_leaves_nothing(read: Database) -> None:
    received(read, "1.2.9", None)
    refused = [
        (Verdict.DISAGREE, {}),
        (Verdict.AGREE, {"reason": MISSED}),
        (Verdict.AGREE, {"study_instance_uid": "1.2.9"}),
        (Verdict.AGREE, {"of_reading": 999}),
        (Verdict.SEEN, {"comment": "x" * (MAX_COMMENT_CHARACTERS + 1)}),
    ]
    for verdict, more in refused:
        with pytest.raises(ReviewRefused):
            say(read, verdict, **more)  # type: ignore[arg-type]
    with pytest.raises(LookupError):
        say(read, Verdict.SEEN, study_instance_uid="9.9")
    assert reviewed(read) == (None, None)
    assert audit(read) == []


def test_a_study_that_was_not_read_can_be_seen(database: Database) -> None:
    received(database, STUDY, None)
    assert say(database, Verdict.SEEN)
    assert reviewed(database) == (at(20), "Meyer")


def test_a_review_is_no_end_of_a_reading(database: Database) -> None:
    """What a person said of a study that failed must not hide why it did."""
    received(database, STUDY, None)
    claim = must_claim(database, seconds=5)
    with database.writing() as session:
        finish_not_read(
            session,
            claim,
            exclusions=(),
            reason=RejectionReason.NOT_HEAD,
            detail="a knee",
            now=at(6),
        )
    say(database, Verdict.SEEN)
    with database.writing() as session:
        study_row_now = session.get_one(type(study_row(database)), STUDY)
        study_row_now.reprocess_requested_at, study_row_now.reprocess_model = at(30), "other"
    claim = must_claim(database, seconds=31)
    with database.writing() as session:
        finish_read(
            session,
            claim,
            exclusions=(),
            readings=[],
            now=at(32),
            configured=["vicar-attention"],
            fault=StudyRejected(RejectionReason.INTERNAL_ERROR, "no such bundle"),
        )
    row = study_row(database)
    assert (row.state, row.reason, row.reason_detail) == (
        StudyState.NOT_READ,
        RejectionReason.NOT_HEAD,
        "a knee",
    )


@pytest.mark.parametrize(
    ("before", "after", "is_seen"),
    [
        (Priority.ROUTINE, Priority.STAT, False),
        (Priority.HIGH, Priority.STAT, False),
        (Priority.STAT, Priority.STAT, True),
        (Priority.STAT, Priority.ROUTINE, True),
    ],
)
def test_a_study_that_becomes_more_urgent_must_be_seen_anew(
    database: Database, before: Priority, after: Priority, is_seen: bool
) -> None:
    received(database, STUDY, before)
    say(database, Verdict.SEEN)
    ask_again(database)
    read_once(database, after, run=2, seconds=31)
    assert study_row(database).priority == after
    assert reviewed(database) == ((at(20), "Meyer") if is_seen else (None, None))
    with database.reading() as session:
        assert [review.counts for review in reviews_of(session, STUDY)] == [is_seen]


def test_unread_images_have_a_negative_study_seen_anew_and_it_can_be(database: Database) -> None:
    received(database, STUDY, Priority.ROUTINE)
    say(database, Verdict.AGREE)
    more_images(database)
    assert (study_row(database).priority, *reviewed(database)) == (Priority.MEDIUM, None, None)
    assert not say(database, Verdict.UNSEEN, seconds=35)
    assert say(database, Verdict.SEEN, seconds=40)
    assert not say(database, Verdict.SEEN, seconds=41)
    assert reviewed(database) == (at(40), "Meyer")
    with database.reading() as session:
        assert [(r.verdict, r.counts) for r in reviews_of(session, STUDY)] == [
            (Verdict.SEEN, True),
            (Verdict.AGREE, False),
        ]
        (routine,) = agreement(session, since=at(0))
    assert (routine.judged, routine.agreed) == (1, 1)


def test_what_was_looked_at_with_a_lesser_flag_does_not_stand_in_for_a_later_look(database: Database) -> None:
    received(database, STUDY, Priority.ROUTINE)
    say(database, Verdict.SEEN)
    ask_again(database)
    read_once(database, Priority.STAT, run=2, seconds=31)
    say(database, Verdict.SEEN, "Novak", seconds=40)
    assert say(database, Verdict.UNSEEN, "Novak", seconds=50)
    assert reviewed(database) == (None, None)


def test_a_study_that_is_as_urgent_as_it_was_stays_seen(database: Database) -> None:
    """Its readings are negative, and images that nobody could read keep it from being so."""
    received(database, STUDY, Priority.ROUTINE)
    more_images(database)
    say(database, Verdict.SEEN, seconds=40)
    claim = must_claim(database, seconds=50)
    with database.writing() as session:
        finish_not_read(
            session, claim, exclusions=(), reason=RejectionReason.NOT_HEAD, detail="a knee", now=at(51)
        )
    assert (study_row(database).priority, *reviewed(database)) == (Priority.MEDIUM, at(40), "Meyer")


def test_who_saw_a_study_before_it_was_read_has_not_seen_the_flag(read: Database) -> None:
    with pytest.raises(ReviewRefused, match="read again"):
        say(read, Verdict.SEEN, of_reading=0)
    received(read, "1.2.9", None)
    assert say(read, Verdict.SEEN, study_instance_uid="1.2.9", of_reading=0)


def ask_again(database: Database) -> None:
    with database.writing() as session:
        session.get_one(type(study_row(database)), STUDY).reprocess_requested_at = at(30)


def more_images(database: Database) -> None:
    Sender(database=database, study=STUDY, series=f"{STUDY}.1").send(2, seconds=30, due=30)


def test_agreement_counts_the_last_word_on_each_reading(database: Database) -> None:
    for number, priority in enumerate((Priority.STAT, Priority.STAT, Priority.STAT, Priority.ROUTINE)):
        received(database, f"1.2.{number}", priority)

    def judge(number: int, verdict: Verdict, reviewer: str = "Meyer", **more: object) -> None:
        say(database, verdict, reviewer, study_instance_uid=f"1.2.{number}", **more)

    judge(0, Verdict.AGREE)
    judge(0, Verdict.DISAGREE, reason=FALSE_ALARM)
    judge(1, Verdict.DISAGREE, "Novak", reason=FALSE_ALARM)
    judge(1, Verdict.AGREE)
    judge(2, Verdict.AGREE)
    judge(2, Verdict.UNSEEN)
    judge(3, Verdict.SEEN)
    with database.reading() as session:
        stat, routine = agreement(session, since=at(0))
        assert agreement(session, since=at(1000)) == []
        assert agreement(session, since=at(0), model="another") == []
    assert (stat.priority, stat.readings, stat.judged, stat.agreed, stat.contested) == (
        Priority.STAT,
        3,
        2,
        1,
        1,
    )
    assert stat.reviewers == {"Meyer": 2, "Novak": 1}
    assert stat.reasons == {FALSE_ALARM: 1}
    assert stat.proportion == 0.5
    assert (routine.judged, routine.proportion, routine.interval) == (0, None, None)


def test_a_later_reading_is_judged_anew_and_the_earlier_stays_judged(read: Database) -> None:
    say(read, Verdict.AGREE)
    with read.writing() as session:
        row = session.get_one(type(study_row(read)), STUDY)
        row.reprocess_requested_at = at(30)
    claim = must_claim(read, seconds=31)
    with read.writing() as session:
        again = replace(reading(Priority.STAT, run=2), series_instance_uid=f"{STUDY}.1")
        finish_read(session, claim, exclusions=(), readings=[again], now=at(32))
    say(read, Verdict.DISAGREE, seconds=40, reason=FALSE_ALARM)
    say(read, Verdict.UNSEEN, seconds=50)
    with read.reading() as session:
        (stat,) = agreement(session, since=at(0))
    assert (stat.readings, stat.judged, stat.agreed) == (2, 1, 1)


@pytest.mark.parametrize(
    ("hits", "trials", "expected"),
    [(0, 10, (0.0, 0.2775)), (5, 10, (0.2366, 0.7634)), (10, 10, (0.7225, 1.0)), (81, 263, (0.2553, 0.3662))],
)
def test_wilson_interval_of_the_literature(hits: int, trials: int, expected: tuple[float, float]) -> None:
    """The last is Newcombe's own example (Stat Med 17:857, 1998)."""
    assert wilson_interval(hits, trials) == pytest.approx(expected, abs=1e-4)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_proportion(counts: tuple[int, int]) -> None:
    hits, trials = counts
    low, high = wilson_interval(hits, trials)
    assert 0 <= low <= hits / trials <= high <= 1
    assert low < high
