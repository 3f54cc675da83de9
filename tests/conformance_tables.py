"""The tables of docs/conformance.md, made from the code.

``python -m tests.conformance_tables`` writes them anew; a test holds the page to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from pydicom.uid import UID

from ich_node.codes import IMPLEMENTATION_CLASS_UID
from ich_node.deliver import commitment, stow
from ich_node.deliver.query import STUDY_ROOT_FIND_SOP_CLASS_UID
from ich_node.deliver.scu import DeliveryResult, Timeouts, result_of
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
from ich_node.receive.worklist_find import SOP_CLASS_UID as WORKLIST
from ich_node.receive.worklist_find import FindStatus
from ich_node.report.compression import Compression
from ich_node.report.result_objects import ResultKind, Wish, build_result_objects
from ich_node.report.sr_class import SrClass
from tests.report_builders import make_report

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
_FIND_WORDS = {
    FindStatus.PENDING: "a study that matches",
    FindStatus.PENDING_WITH_UNSUPPORTED_KEYS: "the same; an optional key was not matched",
    FindStatus.CANCELED: "the caller has cancelled",
    FindStatus.NOT_AUTHORIZED: "without `[[peers]]` only callers on this machine get answers",
    FindStatus.OUT_OF_RESOURCES: "the database does not answer, or too many match: ask more narrowly",
    FindStatus.DOES_NOT_MATCH_SOP_CLASS: "the identifier is none of this class",
    FindStatus.UNABLE_TO_PROCESS: "the identifier cannot be parsed, or a fault of this node",
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
_RESULT_WORDS = {
    ResultKind.SR: "structured report",
    ResultKind.SC: "summary and overlays",
    ResultKind.SEG: "segmentation",
    ResultKind.GSPS: "presentation state",
    ResultKind.KOS: "key images",
    ResultKind.PM: "parametric map",
}
_TAKEN_WORDS = {
    DeliveryResult.SENT: "taken",
    DeliveryResult.WARNING: "taken; the words of the PACS are kept beside it",
    DeliveryResult.REFUSED: "given up: the same object will be refused again",
}
_NOT_STORED_WORDS = "not stored; tried again"


@cache
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
                _service(WORKLIST, "SCP", "uncompressed"),
                (f"{len(STORAGE_SOP_CLASS_UIDS)} storage SOP classes, below", "", "SCP", "all below"),
            ],
        ),
        "services-as-user": _table(
            ("SOP class", "UID", "for"),
            [
                (UID(uid).name, f"`{uid}`", what)
                for uid, what in (
                    (VERIFICATION_SOP_CLASS_UID, "`ich-node doctor`"),
                    (COMMITMENT, "confirmation that results are kept"),
                    (STUDY_ROOT_FIND_SOP_CLASS_UID, "the same, where there is no storage commitment"),
                )
            ],
        ),
        "results": _results(),
        "results-statuses": _result_statuses(),
        "commitment-statuses-as-user": _commitment_statuses_as_user(),
        "stow-statuses-as-user": _stow_statuses_as_user(),
        "waits": _waits(Timeouts()),
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
        "find-statuses": _statuses(_FIND_WORDS),
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


def _results() -> str:
    """What this node sends: looked up in objects of every kind, class and compression."""
    wishes = {
        f"{sr_class} {compression}": Wish(
            kinds=frozenset(ResultKind), sr_class=sr_class, sc_compression=compression
        )
        for sr_class, compression in zip(SrClass, [*Compression, Compression.NONE], strict=True)
    }
    made = build_result_objects(make_report(), wishes)
    sent = {
        (each.kind, each.dataset.SOPClassUID, each.dataset.file_meta.TransferSyntaxUID): None for each in made
    }
    return _table(
        ("result", "SOP class", "UID", "transfer syntax", "UID"),
        [
            (_RESULT_WORDS[kind], sop_class.name, f"`{sop_class}`", syntax.name, f"`{syntax}`")
            for kind, sop_class, syntax in sent
        ],
    )


def _result_statuses() -> str:
    """What becomes of a result by the status of its C-STORE, asked of the code for each of the 65536."""
    rows = [(_codes(result), words) for result, words in _TAKEN_WORDS.items()]
    return _table(("code", "the result is"), [*rows, ("any other, or none", _NOT_STORED_WORDS)])


def _codes(result: DeliveryResult) -> str:
    left = {status for status in range(0x10000) if result_of(status) is result}
    found = []
    for digits in (1, 2, 4):
        size = 0x10000 >> 4 * digits
        for first in range(0, 0x10000, size):
            block = set(range(first, first + size))
            if block <= left:
                left -= block
                found.append(f"{first:04X}"[:digits].ljust(4, "x"))
    return ", ".join(f"`{code}`" for code in sorted(found))


def _commitment_statuses_as_user() -> str:
    not_offered = ", ".join(f"`{status:04X}`" for status in sorted(commitment._NOT_OFFERED))
    return _table(
        ("code", "what follows"),
        [
            ("`0000`, or a warning", "the report is waited for"),
            (
                f"{not_offered}, or no presentation context",
                "the PACS does not commit: it is queried at once where `confirm` is `auto`",
            ),
            ("any other, or none", "asked again later, by a query where `confirm` is `auto`"),
        ],
    )


def _stow_statuses_as_user() -> str:
    for_good = ", ".join(str(status) for status in sorted(stow._FAULTS_OF_AN_OBJECT))
    return _table(
        ("answer", "the result is"),
        [
            ("2xx, in Referenced SOP Sequence (0008,1199)", "taken"),
            ("any, in Failed SOP Sequence (0008,1198)", "judged by its Failure Reason (0008,1197), as above"),
            (f"{for_good}, to this object alone", "given up"),
            ("any other, or none, or one that cannot be read", _NOT_STORED_WORDS),
        ],
    )


def _waits(waits: Timeouts) -> str:
    return _table(
        ("wait for", "at most"),
        [
            ("the TCP connection, and again for the TLS handshake", f"{waits.connection_s:g} s"),
            ("the answer to an association request or a release", f"{waits.acse_s:g} s"),
            ("the response to one object or one query", f"{waits.dimse_s:g} s"),
            ("the next byte of a message", f"{waits.network_s:g} s"),
        ],
    )


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
