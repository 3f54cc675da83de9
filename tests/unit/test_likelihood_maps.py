"""Likelihood maps for the study page: small, safe on disk, never in the way of a reading, gone with the results."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, update

from ich_node import reading_job, result_files
from ich_node.database.retention import Folder, removals
from ich_node.database.slices import read_series_of
from ich_node.database.tables import ReadingRow, StudyRow
from ich_node.findings import IchSubtype, SliceFinding
from ich_node.purge_job import Terms, purge_studies
from ich_node.reading_job import read_due_study
from ich_node.report.likelihood_maps import LEVELS, MOST_CELLS, encode_maps
from ich_node.testing.phantom import HeadPhantom, head_phantom
from ich_node.testing.series import phantom_series
from tests.purge_cases import STUDY, PurgeCase, purge_case
from tests.read_studies import MappingPredictor, ReadStudies, disk, read_studies

ANY, SUBDURAL = IchSubtype.ANY, IchSubtype.SUBDURAL
Maps = dict[tuple[int, str], npt.NDArray[np.uint8]]


def decoded(content: bytes) -> tuple[dict[str, int], Maps]:
    """As the page's script unpacks it."""
    line, _, cells = gzip.decompress(content).partition(b"\n")
    head = json.loads(line)
    size = head["rows"] * head["columns"]
    assert len(cells) == size * len(head["maps"])
    maps = {
        (index, code): np.frombuffer(cells, np.uint8, size, place * size).reshape(head["rows"], -1)
        for place, (index, code) in enumerate(head["maps"])
    }
    return head, maps


def finding(**maps: npt.NDArray[np.float32]) -> SliceFinding:
    return SliceFinding(
        probabilities={ANY: 0.9}, likelihood_maps={IchSubtype(name): each for name, each in maps.items()}
    )


@pytest.mark.parametrize("shape", [(512, 512), (500, 388), (96, 64), (1024, 1024), (97, 3)])
def test_cells_are_the_maps_at_their_places(shape: tuple[int, int]) -> None:
    likelihood = disk(shape)
    content = encode_maps([finding(), finding(any=likelihood, subdural=likelihood / 2)])
    assert content is not None
    head, maps = decoded(content)
    assert list(maps) == [(1, "any"), (1, "subdural")]
    assert max(head["rows"], head["columns"]) <= MOST_CELLS
    first, step = head["first"], head["step"]
    for cell in [(0, 0), (head["rows"] // 2, head["columns"] // 3), (head["rows"] - 1, head["columns"] - 1)]:
        source = likelihood[first + step * cell[0], first + step * cell[1]]
        assert maps[1, "any"][cell] / 255 == pytest.approx(source, abs=1.5 / LEVELS)
        assert maps[1, "subdural"][cell] / 255 == pytest.approx(source / 2, abs=1.5 / LEVELS)


@given(st.floats(0, 1, width=32))
def test_a_level_is_near_the_likelihood(likelihood: float) -> None:
    content = encode_maps([finding(any=np.full((8, 8), likelihood, np.float32))])
    if content is None:
        assert likelihood < 1 / LEVELS
    else:
        value = decoded(content)[1][0, "any"][0, 0] / 255
        assert value == pytest.approx(likelihood, abs=1.5 / LEVELS)


def test_what_shows_nothing_is_left_out() -> None:
    nothing = np.zeros((64, 64), np.float32)
    assert encode_maps([finding(), finding(any=nothing)]) is None
    content = encode_maps([finding(any=nothing), finding(any=disk((64, 64)), subdural=nothing)])
    assert content is not None
    assert list(decoded(content)[1]) == [(1, "any")]


def test_forty_slices_are_a_small_file() -> None:
    rng = np.random.default_rng(0)
    places = rng.uniform(0.3, 0.7, (40, 2))
    slices = [finding(any=disk((512, 512), *place), subdural=disk((512, 512), *place)) for place in places]
    content = encode_maps(slices)
    assert content is not None
    assert len(content) < 100_000


# in the pipeline


@pytest.fixture(scope="module")
def phantom() -> HeadPhantom:
    return head_phantom(seed=5, slices=20, rows=96, columns=96)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ReadStudies]:
    with read_studies(tmp_path) as studies:
        yield studies


def maps_files(node: ReadStudies) -> list[Path]:
    return sorted(node.node.settings.results_dir.glob("*.maps.gz"))


def kept_name(node: ReadStudies, study: str) -> str | None:
    with node.node.database.reading() as session:
        series = read_series_of(session, study)
    assert series is not None
    return series.maps_file_name


def test_a_reading_leaves_its_maps(node: ReadStudies, phantom: HeadPhantom) -> None:
    study = node.read(phantom_series(phantom), MappingPredictor([4, 5]))
    (path,) = maps_files(node)
    assert kept_name(node, study) == path.name
    assert path.name.endswith("-1.maps.gz")  # of the claim, as the objects' names
    assert set(decoded(path.read_bytes())[1]) == {(i, c) for i in (4, 5) for c in ("any", "subdural")}
    assert {p.suffix for p in node.node.settings.results_dir.iterdir()} == {".dcm", ".gz"}


def test_a_reading_without_maps_leaves_none(node: ReadStudies, phantom: HeadPhantom) -> None:
    study = node.read(phantom_series(phantom), MappingPredictor([]))
    assert maps_files(node) == []
    assert kept_name(node, study) is None


@pytest.mark.parametrize(
    "fault", [OSError(28, "No space left on device"), ValueError("a map of another size")]
)
def test_maps_that_cannot_be_written_hold_no_reading_back(
    node: ReadStudies,
    phantom: HeadPhantom,
    fault: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> bytes:
        raise fault

    monkeypatch.setattr(result_files, "encode_maps", fail)
    with caplog.at_level(logging.ERROR):
        study = node.read(phantom_series(phantom), MappingPredictor([4]))
    assert kept_name(node, study) is None
    assert "no likelihood maps for the study page" in caplog.text
    assert list(node.node.settings.results_dir.glob("*.part")) == []


def test_maps_that_a_dead_worker_left_go(node: ReadStudies, phantom: HeadPhantom) -> None:
    study = node.arrive(phantom_series(phantom))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading_job, "_commit_when_possible", lambda *_: None)
        read_due_study(node.node, study, lambda _name: [MappingPredictor([4])])
    (left,) = maps_files(node)
    assert left.name.endswith("-1.maps.gz")
    with node.node.database.writing() as session:
        session.execute(update(StudyRow).values(lease_until=datetime.now(UTC) - timedelta(hours=1)))
    read_due_study(node.node, study, lambda _name: [MappingPredictor([4])])
    (path,) = maps_files(node)
    assert path.name.endswith("-2.maps.gz")
    assert kept_name(node, study) == path.name


# purge


@pytest.fixture
def case(tmp_path: Path) -> Iterator[PurgeCase]:
    with purge_case(tmp_path) as case:
        yield case


def add_maps(case: PurgeCase) -> Path:
    """Give the study's only reading a file of maps."""
    path = case.node.settings.results_dir / "9.9-1.maps.gz"
    path.write_bytes(b"maps")
    with case.database.writing() as session:
        session.execute(update(ReadingRow).values(maps_file_name=path.name))
    return path


def names(case: PurgeCase) -> list[str | None]:
    with case.database.reading() as session:
        return list(session.scalars(select(ReadingRow.maps_file_name)))


def test_maps_go_with_the_results(case: PurgeCase) -> None:
    case.deliver()
    path = add_maps(case)
    report = purge_studies(case.node, [STUDY], Terms(before=None, actor="test"))
    assert [study.purged for study in report.studies] == [True]
    assert not path.exists()
    assert names(case) == [None]
    assert case.results() == []
    with case.database.reading() as session:
        assert removals(session) == []


def test_a_dry_run_leaves_them(case: PurgeCase) -> None:
    case.deliver()
    path = add_maps(case)
    purge_studies(case.node, [STUDY], Terms(before=None, actor="test", dry_run=True))
    assert path.exists()
    assert names(case) == [path.name]


def test_maps_stay_while_a_result_is_not_delivered(case: PurgeCase) -> None:
    case.deliver(refusal="0xA700 Out of resources")
    path = add_maps(case)
    report = purge_studies(case.node, [STUDY], Terms(before=None, actor="test", force=True))
    assert [study.purged for study in report.studies] == [True]
    assert case.spooled() == []
    assert path.exists()
    assert names(case) == [path.name]


def test_a_purge_that_was_killed_is_finished(case: PurgeCase, monkeypatch: pytest.MonkeyPatch) -> None:
    case.deliver()
    path = add_maps(case)
    with monkeypatch.context() as patch:
        patch.setattr("ich_node.purge_job.finish_removals", lambda _node: 0)
        purge_studies(case.node, [STUDY], Terms(before=None, actor="test"))
    assert path.exists()
    with case.database.reading() as session:
        assert path.name in [each.file_name for each in removals(session) if each.folder is Folder.RESULTS]
    purge_studies(case.node, [STUDY], Terms(before=None, actor="test"))
    assert not path.exists()
