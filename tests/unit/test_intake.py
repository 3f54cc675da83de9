"""Objects that were acknowledged get their rows, also where the database was away when they came."""

from __future__ import annotations

import itertools
import logging
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select, update

from ich_node import intake as intake_module
from ich_node.database.engine import Database
from ich_node.database.tables import InstanceRow, SeriesRow, StudyRow
from ich_node.intake import Intake
from ich_node.receive.completeness import is_geometrically_complete
from ich_node.receive.received import AssociationSummary, ReceivedInstance, read_received
from ich_node.receive.spool import Spool
from ich_node.settings import ReceiverSettings, Settings
from tests.database_cases import Sender, sqlite_database, together
from tests.small_objects import PATIENT_NAME, encoded, small_object

SETTLE, QUIET, STALLED = timedelta(0), timedelta(seconds=200), timedelta(seconds=1000)
SLACK = timedelta(seconds=60)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A node's settings, database and spool."""

    settings: Settings
    database: Database
    spool: Spool

    def intake(self, **receiver: Any) -> Intake:
        changed = self.settings.receiver.model_copy(update=receiver)
        return Intake(self.settings.model_copy(update={"receiver": changed}), self.database, self.spool)

    def store(self, **changes: Any) -> ReceivedInstance:
        """Put a real object into the spool."""
        dataset = small_object(**changes)
        spooled = self.spool.store(
            encoded(dataset),
            sop_class_uid=dataset.SOPClassUID,
            sop_instance_uid=dataset.SOPInstanceUID,
            transfer_syntax_uid=dataset.file_meta.TransferSyntaxUID,
            source_ae_title="CT01",
        )
        return read_received(self.spool, spooled.path)

    def file_names(self) -> list[str]:
        """Of the rows."""
        with self.database.reading() as session:
            return list(session.scalars(select(InstanceRow.file_name)))

    def series(self, series_instance_uid: str) -> SeriesRow:
        with self.database.reading() as session:
            return session.get_one(SeriesRow, series_instance_uid)

    @contextmanager
    def outage(self) -> Iterator[None]:
        """The database has no table of instances for a while."""
        self._run("ALTER TABLE instance RENAME TO instance_elsewhere")
        yield
        self._run("ALTER TABLE instance_elsewhere RENAME TO instance")

    def _run(self, sql: str) -> None:
        with closing(sqlite3.connect(str(self.database.engine.url.database), timeout=30)) as connection:
            connection.execute(sql)


@pytest.fixture(autouse=True)
def no_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an intake does now and then by itself, a test asks for."""
    monkeypatch.setattr(intake_module, "_TICK_SECONDS", 1000.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("intake")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with _place(tmp_path) as place:
        yield place


@contextmanager
def _place(folder: Path) -> Iterator[Place]:
    waits = ReceiverSettings(
        settle_seconds=SETTLE.total_seconds(),
        quiet_seconds=QUIET.total_seconds(),
        stalled_seconds=STALLED.total_seconds(),
    )
    with sqlite_database(folder) as database:
        yield Place(
            settings=Settings(data_dir=folder, receiver=waits),
            database=database,
            spool=Spool(folder / "spool"),
        )


def end(
    *received: ReceivedInstance, association_id: str = "", released: bool = True, unrecorded: int = 0
) -> AssociationSummary:
    return AssociationSummary(
        association_id=association_id,
        calling_ae_title="CT01",
        peer_host="127.0.0.1",
        released=released,
        series_instance_uids=tuple({one.instance.series_instance_uid: None for one in received}),
        stored=len(received),
        refused=0,
        unrecorded=unrecorded,
        ended_at=datetime.now(UTC),
    )


def arriving(sender: Sender, number: int, association_id: str = "", **changes: Any) -> ReceivedInstance:
    """An object that arrives now and lies in no spool."""
    received = sender.received(number, **changes)
    return replace(received, association_id=association_id, received_at=datetime.now(UTC))


def wait_of(place: Place, series_instance_uid: str) -> timedelta | None:
    """Which of the three waits a series has; None: it is not waiting."""
    due_at = place.series(series_instance_uid).due_at
    if due_at is None:
        return None
    left = due_at - datetime.now(UTC)
    (wait,) = [wait for wait in (SETTLE, QUIET, STALLED) if abs(left - wait) < SLACK]
    return wait


def mend_until(intake: Intake, mended: Callable[[], bool]) -> None:
    """Mend; the intake's own thread may be at it, and pauses between its tries."""
    deadline = time.monotonic() + 60.0
    while not mended():
        assert time.monotonic() < deadline
        intake.mend()


@pytest.fixture
def sender(place: Place) -> Sender:
    return Sender(database=place.database)


def test_what_waits_is_recorded_before_the_end(place: Place, sender: Sender) -> None:
    received = [arriving(sender, number) for number in range(1200)]
    with place.intake() as intake:
        for one in received:
            intake.put(one)
    assert sorted(place.file_names()) == sorted(one.spooled.file_name for one in received)
    assert place.series(sender.series).revision == 1200
    with pytest.raises(RuntimeError, match="no objects are taken"):
        intake.put(received[0])


def test_many_senders_of_many_studies_lose_nothing(place: Place) -> None:
    senders = [
        Sender(database=place.database, study=f"1.{n % 3}", series=f"1.{n % 3}.{n}") for n in range(12)
    ]
    with place.intake() as intake:

        def send(who: int) -> None:
            for number in range(40):
                for sender in senders[who::4]:
                    intake.put(arriving(sender, number, f"association {who}"))

        together(4, send)
        intake.flush()
        for sender in senders:
            assert place.series(sender.series).revision == 40
            assert wait_of(place, sender.series) == STALLED


def test_rows_are_made_good_when_the_database_is_back(place: Place) -> None:
    received = [place.store(InstanceNumber=number) for number in range(3)]
    with place.intake() as intake:
        intake.rebuild()
        with place.outage():
            later = place.store(InstanceNumber=4)
            intake.put(replace(later, association_id="a"))
            intake.put(end(later, association_id="a"))
            intake.flush()
        intake.put(end())  # the recorder is alive
        intake.flush()
        mend_until(intake, lambda: later.spooled.file_name in place.file_names())
    names = {one.spooled.file_name for one in (*received, later)}
    assert set(place.file_names()) == names
    # Its association has ended, and it does not wait for more of it.
    assert wait_of(place, later.instance.series_instance_uid) == QUIET


def test_a_running_intake_makes_rows_good_by_itself(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(intake_module, "_TICK_SECONDS", 0.02)
    received, mended = place.store(), threading.Event()
    rebuild = Intake.rebuild

    def rebuild_and_say(intake: Intake) -> Any:
        summary = rebuild(intake)
        if summary.recorded:
            mended.set()
        return summary

    monkeypatch.setattr(Intake, "rebuild", rebuild_and_say)
    with caplog.at_level(logging.DEBUG):
        intake = place.intake()
        with place.outage():
            intake.start()
            intake.put(received)
            intake.flush()
        assert mended.wait(60)
        intake.close()
    assert place.file_names() == [received.spooled.file_name]
    assert PATIENT_NAME not in caplog.text
    assert received.instance.study_instance_uid not in caplog.text


def test_an_end_during_an_outage_is_dealt_with_after_it(place: Place, sender: Sender) -> None:
    received = [arriving(sender, number, "a") for number in range(12)]
    with place.intake() as intake:
        intake.rebuild()
        for one in received:
            intake.put(one)
        intake.flush()
        with _away(place, "series"):
            intake.put(end(*received, association_id="a"))
            intake.flush()
        assert wait_of(place, sender.series) == STALLED
        intake.put(end())
        intake.flush()
        assert wait_of(place, sender.series) == SETTLE


def test_an_end_that_is_dealt_with_late_says_nothing_about_a_series_that_is_brought_again(
    place: Place, sender: Sender
) -> None:
    received = [arriving(sender, number, "a") for number in range(12)]
    with place.intake() as intake:
        intake.rebuild()
        for one in received:
            intake.put(one)
        intake.flush()
        with _away(place, "series"):
            intake.put(end(*received, association_id="a"))
            intake.put(arriving(sender, 12, "b"))
            intake.flush()
        intake.put(end())
        intake.flush()
        assert wait_of(place, sender.series) == STALLED
        intake.put(end(*received, association_id="b"))
        intake.flush()
        assert wait_of(place, sender.series) != STALLED


@contextmanager
def _away(place: Place, table: str) -> Iterator[None]:
    place._run(f"ALTER TABLE {table} RENAME TO elsewhere")
    yield
    place._run(f"ALTER TABLE elsewhere RENAME TO {table}")


def test_one_object_that_no_database_can_hold_does_not_take_the_others_with_it(
    place: Place, sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    received = [arriving(sender, number) for number in range(50)]
    odd = received[17]
    received[17] = replace(odd, spooled=replace(odd.spooled, size_bytes=2**70))
    with place.intake() as intake:
        for one in received:
            intake.put(one)
        intake.put(end(*received))
        intake.flush()
    assert len(place.file_names()) == 49
    assert odd.spooled.file_name not in place.file_names()
    assert "1 objects are in the spool and cannot be recorded" in caplog.text
    assert wait_of(place, sender.series) == QUIET  # it has a hole


def test_nothing_is_looked_for_where_nothing_is_missing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    intake = place.intake()
    received = place.store()
    assert intake.rebuild().recorded == 1
    intake.start()
    intake.put(received)
    intake.flush()
    monkeypatch.setattr(intake, "rebuild", lambda: pytest.fail("the whole spool was read"))
    intake.mend()
    intake.close()


@pytest.mark.parametrize(
    "hint", [lambda intake: intake.look_again(), lambda intake: intake.put(end(unrecorded=1))]
)
def test_objects_that_never_came_here_are_looked_for_on_a_hint(
    place: Place, hint: Callable[[Intake], None]
) -> None:
    with place.intake() as intake:
        intake.rebuild()
        received = place.store()
        hint(intake)
        intake.flush()
        mend_until(intake, lambda: bool(place.file_names()))
    assert place.file_names() == [received.spooled.file_name]


def test_a_rebuild_while_objects_arrive_counts_each_once(place: Place) -> None:
    received = [
        place.store(SeriesInstanceUID=f"1.2.{n % 3}", StudyInstanceUID=f"1.1.{n % 2}.{n % 3}")
        for n in range(150)
    ]
    with place.intake() as intake:

        def work(who: int) -> None:
            if who == 0:
                intake.rebuild()
            for one in received[who::3]:
                intake.put(replace(one, association_id=f"a{who}"))

        together(3, work)
        intake.flush()
        intake.rebuild()
    assert Counter(place.file_names()) == Counter(one.spooled.file_name for one in received)
    with place.database.reading() as session:
        kept = select(func.count()).where(InstanceRow.conflict.is_(False))
        assert session.scalar(select(func.sum(SeriesRow.revision))) == session.scalar(kept)


def test_the_spool_alone_makes_the_rows_of_many_studies(place: Place) -> None:
    received = [
        place.store(StudyInstanceUID=f"1.1.{n % 7}", SeriesInstanceUID=f"1.1.{n % 7}.2") for n in range(60)
    ]
    (unreadable,) = {
        place.spool.store(
            b"no DICOM",
            sop_class_uid="1.2.3",
            sop_instance_uid="1.2.3.4",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            source_ae_title="CT01",
        ).file_name
    }
    intake = place.intake()
    summary = intake.rebuild()
    assert (summary.recorded, summary.known, summary.failed) == (60, 0, (unreadable,))
    assert set(place.file_names()) == {one.spooled.file_name for one in received}
    summary = intake.rebuild()
    assert (summary.recorded, summary.known, summary.failed) == (0, 60, (unreadable,))


def test_a_gapless_series_is_due_when_its_association_has_ended(place: Place, sender: Sender) -> None:
    received = [arriving(sender, number, "a") for number in range(12)]
    with place.intake() as intake:
        intake.rebuild()
        for one in received:
            intake.put(one)
        intake.put(end(*received, association_id="a"))
        intake.flush()
        assert wait_of(place, sender.series) == SETTLE
        late = arriving(sender, 12, "b")
        intake.put(late)
        intake.flush()
        assert wait_of(place, sender.series) == STALLED
        intake.put(end(late, association_id="b"))
        intake.flush()
        assert wait_of(place, sender.series) == SETTLE


def test_a_multi_frame_object_is_a_whole_series(place: Place, sender: Sender) -> None:
    enhanced = arriving(
        sender,
        1,
        "a",
        number_of_frames=30,
        image_position_patient_mm=None,
        image_orientation_patient=None,
    )
    with place.intake() as intake:
        intake.rebuild()
        intake.put(enhanced)
        intake.put(end(enhanced, association_id="a"))
        intake.flush()
        assert wait_of(place, sender.series) == SETTLE


def test_a_series_that_is_sent_again_after_an_abort_is_not_read_in_the_middle(
    place: Place, sender: Sender
) -> None:
    received = [arriving(sender, number, "a") for number in range(12)]
    with place.intake() as intake:
        intake.rebuild()
        for one in received[:5]:
            intake.put(one)
        intake.put(end(*received[:5], association_id="a", released=False))
        intake.flush()
        assert wait_of(place, sender.series) == QUIET
        again = [replace(one, association_id="b") for one in received]
        intake.put(again[0])
        intake.flush()
        assert wait_of(place, sender.series) == STALLED
        for one in again[1:]:
            intake.put(one)
        intake.put(end(*again, association_id="b"))
        intake.flush()
        assert wait_of(place, sender.series) == SETTLE
    assert place.series(sender.series).revision == 12


def test_a_sender_that_starts_over_for_ever_does_not_hold_a_series_for_ever(
    place: Place, sender: Sender
) -> None:
    """One object is refused each time, so the sender aborts and sends everything again."""
    long_ago = datetime.now(UTC) - 2 * STALLED
    with place.intake() as intake:
        intake.rebuild()
        for attempt in range(3):
            one = replace(arriving(sender, 1, f"attempt {attempt}"), received_at=long_ago)
            intake.put(one)
            intake.put(end(one, association_id=one.association_id, released=False))
            intake.flush()
            due_at = place.series(sender.series).due_at
            assert due_at is not None
            assert due_at < datetime.now(UTC)


def test_the_end_of_an_association_does_not_have_a_series_read_again(place: Place, sender: Sender) -> None:
    received = [arriving(sender, number, "a") for number in range(12)]
    with place.intake() as intake:
        intake.rebuild()
        for one in received:
            intake.put(one)
        intake.flush()
        with place.database.writing() as session:
            session.execute(update(SeriesRow).values(due_at=None, handled_revision=SeriesRow.revision))
        for one in received:
            intake.put(replace(one, association_id="b"))
        for name in ("a", "b"):
            intake.put(end(*received, association_id=name))
        intake.flush()
        assert wait_of(place, sender.series) is None


def test_a_study_that_holds_too_much_is_named_once_and_until_it_is_purged(
    place: Place, sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    other = Sender(database=place.database, study="1.9", series="1.9.1")
    tight = {"max_study_gib": 2.5 * 8}  # an object of these senders has 8 GiB
    with place.intake(**tight) as intake:
        for number in (1, 2, 2, 2):
            intake.put(arriving(sender, number))
        intake.put(arriving(other, 1))
        intake.flush()
        assert intake.full_studies() == frozenset()
        for number in (3, 4):
            intake.put(arriving(sender, number))
            intake.flush()
            assert intake.full_studies() == {sender.study}
        assert intake.full_studies() is intake.full_studies()
    assert caplog.text.count("no more is taken") == 1
    assert sender.study not in caplog.text
    with place.database.writing() as session:
        session.execute(update(StudyRow).values(last_received_at=datetime.now(UTC)))
    with place.intake(**tight) as intake:
        assert intake.full_studies() == {sender.study}  # a restart changes nothing
        with place.database.writing() as session:
            session.execute(delete(InstanceRow))
        intake._ask_sizes()
        assert intake.full_studies() == frozenset()


@dataclass(frozen=True, kw_only=True)
class Story:
    """Associations that bring slices of several series, in some order."""

    brought: tuple[tuple[tuple[int, int], ...], ...]
    """For each association the (series, slice) that it brings."""
    released: tuple[bool, ...]
    ending: tuple[bool, ...]
    turns: tuple[int, ...]
    """Whose turn it is to put its next object, or its end."""
    flushes: frozenset[int]
    """Turns after which everything is recorded."""
    holes: frozenset[int]
    """Series that lack a slice."""
    studies: int


@st.composite
def stories(draw: st.DrawFn) -> Story:
    series, associations = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    holes = frozenset(n for n in range(series) if draw(st.booleans()))
    slices = [(s, n) for s in range(series) for n in range(12) if not (s in holes and n == 5)]
    brought: list[list[tuple[int, int]]] = [[] for _ in range(associations)]
    for one in draw(st.permutations(slices)):
        brought[draw(st.integers(0, associations - 1))].append(one)
    for one in draw(st.lists(st.sampled_from(slices), max_size=10)):  # sent twice
        brought[draw(st.integers(0, associations - 1))].append(one)
    turns = [n for n, objects in enumerate(brought) for _ in range(len(objects) + 1)]
    shuffled = draw(st.permutations(turns))
    flags = st.lists(st.booleans(), min_size=associations, max_size=associations).map(tuple)
    return Story(
        brought=tuple(map(tuple, brought)),
        released=draw(flags),
        ending=draw(flags) if draw(st.booleans()) else (True,) * associations,
        turns=tuple(shuffled),
        flushes=draw(st.frozensets(st.integers(0, len(turns) - 1), max_size=8)),
        holes=holes,
        studies=draw(st.integers(1, 3)),
    )


_examples = itertools.count(1)


@dataclass
class _Teller:
    """Puts what a story tells, and knows what must come of it."""

    story: Story
    senders: list[Sender]
    serial: int
    open_for: dict[int, set[int]] = field(default_factory=dict)
    last_end: dict[int, bool] = field(default_factory=dict)

    def tell(self, intake: Intake) -> None:
        rest = [list(objects) for objects in self.story.brought]
        for turn, who in enumerate(self.story.turns):
            name = f"{self.serial}.{who}"
            if rest[who]:
                series, number = rest[who].pop(0)
                self.open_for.setdefault(series, set()).add(who)
                intake.put(arriving(self.senders[series], number, name))
            elif self.story.ending[who]:
                self._end(intake, who, name)
            if turn in self.story.flushes:
                intake.flush()
        intake.flush()

    def _end(self, intake: Intake, who: int, name: str) -> None:
        brought = dict.fromkeys(series for series, _ in self.story.brought[who])
        for series in brought:
            self.open_for[series].discard(who)
            if not self.open_for[series]:
                self.last_end[series] = self.story.released[who]
        received = [self.senders[series].received(0) for series in brought]
        intake.put(end(*received, association_id=name, released=self.story.released[who]))

    def expected(self, series: int) -> timedelta:
        if self.open_for[series]:
            return STALLED
        whole = is_geometrically_complete(
            [
                self.senders[s].received(n).instance
                for part in self.story.brought
                for s, n in part
                if s == series
            ]
        )
        assert whole == (series not in self.story.holes)
        return SETTLE if whole and self.last_end[series] else QUIET


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[tuple[Place, Intake]]:
    with _place(folder) as place:
        intake = place.intake()
        intake.rebuild()
        with intake:
            yield place, intake


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(story=stories())
def test_whatever_the_order_each_series_waits_as_long_as_it_must(
    running: tuple[Place, Intake], story: Story
) -> None:
    place, intake = running
    serial = next(_examples)
    senders = [
        Sender(
            database=place.database,
            study=f"1.{serial}.{n % story.studies}",
            series=f"1.{serial}.{n % story.studies}.{n}",
        )
        for n in range(4)
    ]
    teller = _Teller(story=story, senders=senders, serial=serial)
    teller.tell(intake)
    for series in teller.open_for:
        assert wait_of(place, senders[series].series) == teller.expected(series)
        brought = {n for part in story.brought for s, n in part if s == series}
        assert place.series(senders[series].series).revision == len(brought)
