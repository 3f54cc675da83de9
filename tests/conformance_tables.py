"""The tables of docs/conformance.md, made from the code.

``python -m tests.conformance_tables`` writes them anew; a test holds the page to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from pydicom.uid import UID

from ich_node.codes import IMPLEMENTATION_CLASS_UID
from ich_node.receive.accepted import STORAGE_SOP_CLASS_UIDS, TRANSFER_SYNTAXES, UNCOMPRESSED
from ich_node.receive.admission import StorageStatus
from ich_node.receive.commitment import FailureReason
from ich_node.receive.commitment_event import EventStatus
from ich_node.receive.commitment_request import SOP_CLASS_UID as COMMITMENT
from ich_node.receive.commitment_request import CommitmentStatus
from ich_node.receive.limits import Limits
from ich_node.receive.scp import VERIFICATION_SOP_CLASS_UID, Rejection
from ich_node.receive.spool import IMPLEMENTATION_VERSION_NAME
from ich_node.receive.tls import TLS_1_2_CIPHER_SUITES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "conformance.md"
_BLOCK = re.compile(r"(<!-- table: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

_STORAGE_WORDS = {
    StorageStatus.SUCCESS: "the object is durable on disk; also where the same object is there already",
    StorageStatus.INVALID_SOP_INSTANCE_UID: "Affected SOP Instance UID violates PS3.5 section 9.1",
    StorageStatus.OUT_OF_RESOURCES: (
        "the disk is full or below its low-water mark, or a limit of bytes per association, study or peer is "
        "reached; worth another attempt later"
    ),
    StorageStatus.NOT_STORED: "a fault of this node; worth another attempt",
    StorageStatus.DOES_NOT_MATCH_SOP_CLASS: (
        "SOP Class or Instance UID of request, presentation context and data set differ, or Study or Series "
        "Instance UID is absent or not valid"
    ),
    StorageStatus.CANNOT_UNDERSTAND: "the data set is empty or cannot be parsed",
}
_COMMITMENT_WORDS = {
    CommitmentStatus.SUCCESS: "the request is durable; a report follows",
    CommitmentStatus.INVALID_ATTRIBUTE_VALUE: "a UID is not valid",
    CommitmentStatus.PROCESSING_FAILURE: "the request cannot be parsed or written",
    CommitmentStatus.NO_SUCH_SOP_INSTANCE: "the requested instance is not the well-known one",
    CommitmentStatus.NO_SUCH_SOP_CLASS: "the requested class is another",
    CommitmentStatus.MISSING_ATTRIBUTE: "Transaction UID or Referenced SOP Sequence is absent",
    CommitmentStatus.MISSING_ATTRIBUTE_VALUE: "one of them is empty",
    CommitmentStatus.NO_SUCH_ACTION: "Action Type ID is not 1",
    CommitmentStatus.RESOURCE_LIMITATION: "too many objects or requests, or the disk is full",
}
_EVENT_WORDS = {
    EventStatus.SUCCESS: "the report is durable; also where it is there already",
    EventStatus.PROCESSING_FAILURE: "the report cannot be parsed or written",
    EventStatus.NO_SUCH_SOP_INSTANCE: "the affected instance is not the well-known one",
    EventStatus.NO_SUCH_EVENT_TYPE: "Event Type ID is neither 1 nor 2",
    EventStatus.INVALID_ARGUMENT_VALUE: "a UID is absent or not valid, or no object is named",
    EventStatus.NO_SUCH_SOP_CLASS: "it comes over the presentation context of another class",
    EventStatus.RESOURCE_LIMITATION: "too many objects, or too many reports wait, or the disk is full",
}
_FAILURE_WORDS = {
    FailureReason.PROCESSING_FAILURE: "the spool could not be read",
    FailureReason.NO_SUCH_OBJECT_INSTANCE: "no such object is here",
    FailureReason.CLASS_INSTANCE_CONFLICT: "it is here with another SOP class",
    FailureReason.DUPLICATE_TRANSACTION_UID: "the Transaction UID was used for other objects",
}
_REJECTION_WORDS = {
    Rejection.APPLICATION_CONTEXT_NAME_NOT_SUPPORTED: "another application context than 1.2.840.10008.3.1.1.1",
    Rejection.CALLING_AE_TITLE_NOT_RECOGNIZED: (
        "not a peer, or a peer from another address, without TLS where it must, or with a certificate not its own"
    ),
    Rejection.CALLED_AE_TITLE_NOT_RECOGNIZED: "another called AE title than `receiver.ae_title`",
    Rejection.PROTOCOL_VERSION_NOT_SUPPORTED: "protocol version bit 0 is not set",
    Rejection.LOCAL_LIMIT_EXCEEDED: "too many associations are open, in all or from this peer",
}


def tables() -> dict[str, str]:
    """Markdown of each table by its name."""
    return {
        "implementation": _table(
            ("", ""),
            [
                ("Implementation Class UID", f"`{IMPLEMENTATION_CLASS_UID}`"),
                ("Implementation Version Name", f"`{IMPLEMENTATION_VERSION_NAME}`"),
                ("Maximum Length offered", f"{Limits().max_pdu_bytes} bytes"),
            ],
        ),
        "rejections": _table(
            ("result", "source", "reason", "when"),
            [(*map(str, rejection.value), words) for rejection, words in _REJECTION_WORDS.items()],
        ),
        "services": _table(
            ("SOP class", "UID", "role", "transfer syntaxes"),
            [
                _service(VERIFICATION_SOP_CLASS_UID, "SCP", "uncompressed"),
                _service(COMMITMENT, "SCP; SCU that is called back", "uncompressed"),
                (f"{len(STORAGE_SOP_CLASS_UIDS)} storage SOP classes, below", "", "SCP", "all below"),
            ],
        ),
        "transfer-syntaxes": _table(
            ("transfer syntax", "UID", ""),
            [
                (uid.name, f"`{uid}`", "uncompressed" if uid in UNCOMPRESSED else "")
                for uid in TRANSFER_SYNTAXES
            ],
        ),
        "storage-sop-classes": _table(
            ("SOP class", "UID"), [(UID(uid).name, f"`{uid}`") for uid in STORAGE_SOP_CLASS_UIDS]
        ),
        "storage-statuses": _statuses(_STORAGE_WORDS),
        "commitment-statuses": _statuses(_COMMITMENT_WORDS),
        "report-statuses": _statuses(_EVENT_WORDS),
        "commitment-failures": _statuses(_FAILURE_WORDS),
        "cipher-suites": _table(
            ("TLS 1.2 cipher suite",), [(f"`{name}`",) for name in TLS_1_2_CIPHER_SUITES]
        ),
    }


def filled(page: str) -> str:
    """The page with every table as the code has it."""
    made = tables()
    return _BLOCK.sub(lambda match: f"{match[1]}{made[match['name']]}{match[3]}", page)


def names(page: str) -> list[str]:
    """Tables that the page has a place for."""
    return [match["name"] for match in _BLOCK.finditer(page)]


def _service(uid: str, role: str, syntaxes: str) -> tuple[str, ...]:
    return UID(uid).name, f"`{uid}`", role, syntaxes


def _statuses(words: dict[object, str]) -> str:  # type: ignore[type-arg]
    return _table(("code", "when"), [(f"`{int(code):04X}`", text) for code, text in words.items()])  # type: ignore[call-overload]


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = list(head)
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
