"""What a model is shown and says, over weeks, on whichever database."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2

from ich_node.cli import checks
from ich_node.database import drift
from ich_node.database.drift import _CHI_SQUARE, ModelDrift, model_drifts, stability
from ich_node.database.engine import Database
from ich_node.database.readings import _reading_row
from ich_node.database.tables import SeriesRow, StudyRow
from ich_node.findings import Priority
from ich_node.settings import Settings
from ich_node.web import create_app
from ich_node.web import metrics as web_metrics
from tests.database_cases import MODEL, STUDY, SUSPICION, Sender, reading, sqlite_database
from tests.unit.test_web import Browser
from tests.unit.test_web_metrics import Samples, samples

NOW = datetime.now(UTC)
Inputs = Callable[[int], Mapping[str, float]]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with sqlite_database(tmp_path) as database:
        yield database


def usual(number: int) -> dict[str, float]:
    """Inputs that differ a little: 5 mm slices, noise from 3 to 5 HU."""
    return {"slice_spacing_mm": 5.0, "noise_hu": 3 + number % 20 / 10}


def thin(number: int) -> dict[str, float]:
    return {**usual(number), "slice_spacing_mm": 1.0}


def read(
    database: Database,
    count: int,
    *,
    days: tuple[float, float],
    inputs: Inputs = usual,
    flagged: int = 10,
    unlike: Sequence[str] | None = (),
    weights: str = MODEL.weights_sha256,
    version: str = MODEL.version,
    run: int = 1,
    now: datetime = NOW,
) -> None:
    """Readings spread evenly from so many days ago to so many; every tenth, say, is flagged."""
    first, last = days
    with database.writing() as session:
        if session.get(StudyRow, STUDY) is None:
            Sender(database=database).send_in(session, 1)
        start = session.query(SeriesRow).count()
        for number in range(count):
            series = f"1.9.{start + number}"
            session.add(
                SeriesRow(
                    series_instance_uid=series,
                    study_instance_uid=STUDY,
                    modality="CT",
                    series_description="",
                    revision=1,
                    handled_revision=1,
                )
            )
            session.flush()
            priority = Priority.STAT if number % flagged == 0 else Priority.ROUTINE
            found = reading(priority, series=series, run=run)
            finding = replace(
                found.finding,
                suspicion=SUSPICION[priority] - number % 7 / 1000,
                algorithm=replace(MODEL, weights_sha256=weights, version=version),
                input_features=inputs(number),
                unlike_training=None if unlike is None else dict.fromkeys(unlike, "Unlike."),
            )
            at = now - timedelta(days=first + (last - first) * number / count)
            session.add(_reading_row(STUDY, replace(found, finding=finding, read_at=at)))


def drifts(database: Database, now: datetime = NOW) -> list[ModelDrift]:
    with database.reading() as session:
        return model_drifts(session, now=now)


def the_drift(database: Database, now: datetime = NOW) -> ModelDrift:
    (one,) = drifts(database, now)
    return one


# --- the index


def test_the_index_is_the_formula() -> None:
    """By hand: values 1 to 5 are bins of their own; half a value is added to each of the five filled ones."""
    old, new = [1.0, 2, 3, 4, 5] * 20, [1.0] * 40 + [2, 3, 4, 5] * 15
    p, q = [40.5 / 102.5, *[15.5 / 102.5] * 4], [20.5 / 102.5] * 5
    by_hand = sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
    found = stability(old, new)
    assert found.psi == pytest.approx(by_hand)
    assert found.chance == pytest.approx(18.467 * 2 / 100, rel=1e-4)  # chi-square, 4 degrees of freedom


def test_percentiles_are_those_of_chi_square() -> None:
    exact = [chi2.ppf(0.999, freedom) for freedom in range(1, len(_CHI_SQUARE) + 1)]
    assert np.allclose(_CHI_SQUARE, exact, atol=5e-4)


def test_chance_alone_is_no_drift_and_a_shift_is() -> None:
    rng = np.random.default_rng(3)
    for size in (50, 400):
        alike = [stability(rng.normal(size=4 * size), rng.normal(size=size)) for _ in range(100)]
        assert sum(one.has_drifted for one in alike) <= 1
        moved = [stability(rng.normal(size=4 * size), rng.normal(1.5, 1, size)) for _ in range(20)]
        assert all(one.has_drifted for one in moved)


@pytest.mark.parametrize("other", [0.625, 10.0])
def test_any_other_value_shows_where_all_were_the_same(other: float) -> None:
    assert stability([5.0] * 200, [5.0] * 60).psi == 0
    assert not stability([5.0] * 200, [5.0] * 59 + [other]).has_drifted
    assert stability([5.0] * 200, [5.0] * 30 + [other] * 30).has_drifted


# --- periods


def test_what_is_as_before_has_not_drifted(database: Database) -> None:
    read(database, 60, days=(0, 6.9))
    read(database, 200, days=(7.1, 34))
    found = the_drift(database)
    assert (found.model_name, found.weights_sha256) == (MODEL.name, MODEL.weights_sha256)
    assert (found.recent.readings, found.reference.readings) == (60, 200)
    assert found.stability.keys() == {drift.SUSPICION, "slice_spacing_mm", "noise_hu"}
    assert found.stability["slice_spacing_mm"].psi == 0
    assert found.drifted == ()
    assert found.recent.flagged_share == pytest.approx(0.1)
    assert found.recent.unlike_share == 0
    assert not found.often_unlike


def test_thin_slices_since_a_week_and_more_flags_are_seen(database: Database) -> None:
    read(database, 60, days=(0, 6.9), inputs=thin, flagged=2, unlike=("slice_spacing_mm",))
    read(database, 200, days=(7.1, 34))
    found = the_drift(database)
    assert found.drifted == ("slice_spacing_mm", drift.SUSPICION)
    assert found.recent.flagged_share == 0.5
    assert found.recent.unlike_share == 1
    assert found.recent.unlike == {"slice_spacing_mm": 60}
    assert found.often_unlike


def test_a_change_that_has_lasted_is_the_new_reference(database: Database) -> None:
    read(database, 60, days=(0, 6.9), inputs=thin)
    read(database, 200, days=(7.1, 34), inputs=thin)
    read(database, 200, days=(35.1, 60))
    assert the_drift(database).drifted == ()
    assert the_drift(database).reference.readings == 200


def test_too_few_readings_give_counts_and_nothing_else(database: Database) -> None:
    read(database, 49, days=(0, 6.9), unlike=("noise_hu",))
    read(database, 200, days=(7.1, 34))
    found = the_drift(database)
    assert (found.recent.readings, found.recent.flagged_share, found.recent.unlike_share) == (49, None, None)
    assert found.stability == {}
    assert not found.often_unlike
    assert found.reference.flagged_share is not None


def test_a_young_model_is_compared_with_its_first_weeks(database: Database) -> None:
    read(database, 60, days=(0, 6.9), inputs=thin, weights="cd" * 32)
    read(database, 55, days=(7.1, 10), weights="cd" * 32)
    read(database, 200, days=(11, 34))  # other weights under the same name are another model
    found = the_drift(database)  # which has read nothing in the last days, and is not shown
    assert (found.weights_sha256, found.reference.readings) == ("cd" * 32, 55)
    assert found.drifted == ("slice_spacing_mm",)


def test_another_version_of_the_same_weights_is_not_compared_with_the_one_before(database: Database) -> None:
    read(database, 60, days=(0, 3), inputs=thin, version="9.1.0")
    read(database, 60, days=(3.1, 6.9))
    read(database, 200, days=(7.1, 34))
    found = the_drift(database)
    assert (found.recent.readings, found.reference.readings) == (60, 0)
    assert found.drifted == ()


def test_a_study_that_is_read_again_does_not_count(database: Database) -> None:
    read(database, 60, days=(0, 6.9))
    read(database, 300, days=(0, 1), inputs=thin, run=2)
    assert the_drift(database).recent.readings == 60


def test_readings_from_before_features_were_kept_are_compared_by_suspicion(database: Database) -> None:
    read(database, 60, days=(0, 6.9), unlike=None)
    read(database, 200, days=(7.1, 34), inputs=lambda _number: {}, unlike=None)
    found = the_drift(database)
    assert found.stability.keys() == {drift.SUSPICION}
    assert (found.recent.compared, found.recent.unlike_share) == (0, None)


def test_a_node_that_has_read_nothing_has_no_drift(database: Database) -> None:
    assert drifts(database) == []


# --- where it is shown


def scrape(database: Database, tmp_path: Path) -> Samples:
    return samples(
        Browser(create_app(Settings(data_dir=tmp_path), database)).get("/metrics", accept="text/plain").text
    )


def test_metrics_show_drift_by_model_and_quantity(database: Database, tmp_path: Path) -> None:
    read(database, 60, days=(0, 6.9), inputs=thin, unlike=("slice_spacing_mm",))
    read(database, 40, days=(7.1, 34))
    who = "model=vicar-attention"
    found = scrape(database, tmp_path)
    assert found[f"ich_node_recent_readings{{{who},period=last_7_days,weights=abababababab}}"] == 60
    assert found[f"ich_node_recent_readings{{{who},period=28_days_before,weights=abababababab}}"] == 40
    unlike = {name: value for name, value in found.items() if "unlike_training_share" in name}
    assert unlike == {f"ich_node_unlike_training_share{{{who},period=last_7_days,weights=abababababab}}": 1}
    assert not [name for name in found if "drift_psi" in name]
    read(database, 40, days=(7.1, 34))
    found = scrape(database, tmp_path)
    spacing = f"{{{who},quantity=slice_spacing_mm,weights=abababababab}}"
    assert found[f"ich_node_drift_psi{spacing}"] > 1 > found[f"ich_node_drift_psi_chance{spacing}"] > 0


def test_drift_is_not_asked_for_at_every_scrape(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Browser(create_app(Settings(data_dir=tmp_path), database))
    read(database, 3, days=(0, 6))
    name = "ich_node_recent_readings{model=vicar-attention,period=last_7_days,weights=abababababab}"

    def shown() -> float:
        return samples(app.get("/metrics", accept="text/plain").text)[name]

    assert shown() == 3
    read(database, 2, days=(0, 6))
    assert shown() == 3
    later = web_metrics.time.monotonic() + 601
    monkeypatch.setattr(web_metrics.time, "monotonic", lambda: later)
    assert shown() == 5


@pytest.mark.parametrize(
    ("inputs", "unlike", "ok", "said"),
    [
        (usual, (), True, "scores and inputs are as before, 0% unlike the training data"),
        (thin, (), False, "not as before: slice_spacing_mm (PSI "),
        (usual, ("noise_hu",), False, "100% unlike the training data, most by noise_hu"),
    ],
)
def test_the_doctor_says_what_has_drifted(
    tmp_path: Path, inputs: Inputs, unlike: tuple[str, ...], ok: bool, said: str
) -> None:
    with sqlite_database(tmp_path) as database:
        now = datetime.now(UTC)
        read(database, 60, days=(0.1, 6.9), inputs=inputs, unlike=unlike, now=now)
        read(database, 100, days=(7.1, 34), now=now)
    found = checks._drift(Settings(data_dir=tmp_path))
    assert found[0] is ok
    assert found[1].startswith(
        "vicar-attention (abababababab): 60 readings in 7 days, 100 in the 28 days before"
    )
    assert said in found[1]


def test_the_doctor_has_nothing_to_say_of_a_node_without_readings(tmp_path: Path) -> None:
    with sqlite_database(tmp_path) as database:
        assert checks._drift(Settings(data_dir=tmp_path)) == (True, "no readings in 7 days")
        read(database, 5, days=(0.1, 6))
    ok, found = checks._drift(Settings(data_dir=tmp_path))
    assert ok
    assert "too few to compare (each needs 50)" in found
