"""The conformance statement says what the code does."""

from __future__ import annotations

from ich_node.deliver.scu import DeliveryResult
from ich_node.receive.admission import StorageStatus
from ich_node.receive.commitment import FailureReason
from ich_node.receive.commitment_event import EventStatus
from ich_node.receive.commitment_request import CommitmentStatus
from ich_node.receive.scp import Rejection
from ich_node.report.result_objects import ResultKind
from tests import conformance_tables as tables


def test_every_table_is_as_the_code_has_it() -> None:
    page = tables.PAGE.read_text(encoding="utf-8")
    assert sorted(tables.names(page)) == sorted(tables.tables())
    assert tables.filled(page) == page, "run: python -m tests.conformance_tables"


def test_every_code_is_explained() -> None:
    assert set(tables._STORAGE_WORDS) == set(StorageStatus)
    assert set(tables._COMMITMENT_WORDS) == set(CommitmentStatus)
    assert set(tables._EVENT_WORDS) == set(EventStatus)
    assert set(tables._FAILURE_WORDS) == set(FailureReason)
    assert set(tables._REJECTION_WORDS) == set(Rejection)
    assert set(tables._RESULT_WORDS) == set(ResultKind)
    assert set(tables._TAKEN_WORDS) == set(DeliveryResult) - {DeliveryResult.TRANSIENT}


def test_codes_are_written_by_blocks() -> None:
    codes = tables._codes(DeliveryResult.REFUSED).split(", ")
    assert {"`0122`", "`A9xx`", "`Cxxx`"} <= set(codes)
    assert not {"`A900`", "`C000`", "`0xxx`", "`A700`"} & set(codes)
