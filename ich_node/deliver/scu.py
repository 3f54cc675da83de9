"""C-STORE and C-ECHO to a PACS (service class user)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.presentation import PresentationContext
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS

from ich_node.deliver.call import Call
from ich_node.deliver.call import Destination as Destination
from ich_node.deliver.call import Timeouts as Timeouts
from ich_node.deliver.outbox import is_permanent

VERIFICATION_SOP_CLASS_UID = "1.2.840.10008.1.1"
_UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_SUCCESS = 0x0000
_DUPLICATE_SOP_INSTANCE = 0x0111
"""The PACS has the object already: result UIDs are deterministic, so an earlier attempt got through
unnoticed."""
_WARNINGS = frozenset({0x0001, 0x0107, 0x0116, _DUPLICATE_SOP_INSTANCE})
_ABSTRACT_SYNTAX_NOT_SUPPORTED, _TRANSFER_SYNTAXES_NOT_SUPPORTED = 0x03, 0x04
"""Presentation context results, PS3.8 table 9-18."""


class DeliveryResult(StrEnum):
    """What became of one object."""

    SENT = "SENT"
    WARNING = "WARNING"
    """Accepted, with a remark."""
    REFUSED = "REFUSED"
    """The same object will be refused again."""
    TRANSIENT = "TRANSIENT"
    """Worth another attempt."""


@dataclass(frozen=True, kw_only=True)
class DeliveryOutcome:
    """What the destination said of one object."""

    path: Path
    result: DeliveryResult
    detail: str
    """One line for a person, with the status and the error comment of the PACS; may quote what the PACS
    wrote, so it is shown and stored but not logged."""
    status: int | None = None
    """Status (0000,0900), or what STOW-RS gives in its place: Failure Reason (0008,1197) or Warning Reason
    (0008,1196); ``None`` when the object was not answered."""
    retry_after_s: float | None = None
    """How long the destination asks to be left alone, in seconds; C-STORE has no way to ask."""

    @property
    def is_delivered(self) -> bool:
        """Whether the destination has taken the object."""
        return self.result in (DeliveryResult.SENT, DeliveryResult.WARNING)


@dataclass(frozen=True, kw_only=True)
class EchoOutcome:
    """Whether a destination answers C-ECHO."""

    ok: bool
    detail: str
    """One line for a person."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class OutgoingFile:
    """A file that can be sent, by its File Meta Information (PS3.10 7.1)."""

    path: Path
    size: int
    """In bytes."""
    sop_class_uid: UID
    sop_instance_uid: UID
    transfer_syntax_uid: UID


def send(
    paths: Sequence[Path],
    destination: Destination,
    *,
    calling_ae_title: str = "ICH_NODE",
    timeouts: Timeouts | None = None,
) -> tuple[DeliveryOutcome, ...]:
    """Send files over one association.

    Each is sent with the bytes that it has where the destination takes its transfer syntax, and otherwise
    as Explicit or Implicit VR Little Endian.

    Parameters
    ----------
    paths
        DICOM Part 10 files of at most 64 SOP classes and transfer syntaxes.
    destination
        Where to.
    calling_ae_title
        Ours.
    timeouts
        How long to wait; after that the outcome is ``TRANSIENT``.

    Returns
    -------
    tuple of DeliveryOutcome
        One for each path, in the same order. Whatever goes wrong on the way is in there; nothing is raised
        for it.
    """
    outcomes: dict[int, DeliveryOutcome] = {}
    outgoing: dict[int, OutgoingFile] = {}
    for index, path in enumerate(paths):
        item = inspect_file(path)
        if isinstance(item, OutgoingFile):
            outgoing[index] = item
        else:
            outcomes[index] = item
    if outgoing:
        contexts = _contexts(outgoing.values())
        with Call(destination, contexts, calling_ae_title, timeouts or Timeouts()) as call:
            for index, item in outgoing.items():
                outcomes[index] = _send_one(call, item)
    return tuple(outcomes[index] for index in range(len(paths)))


def echo(
    destination: Destination, *, calling_ae_title: str = "ICH_NODE", timeouts: Timeouts | None = None
) -> EchoOutcome:
    """Ask a destination whether it is there (C-ECHO).

    Returns
    -------
    EchoOutcome
        Whatever goes wrong is in there; nothing is raised for it.
    """
    begin = time.monotonic()
    contexts = [build_context(VERIFICATION_SOP_CLASS_UID, list(_UNCOMPRESSED))]
    with Call(destination, contexts, calling_ae_title, timeouts or Timeouts()) as call:
        if call.failure:
            ok, detail = False, call.failure
        elif not call.accepts(VERIFICATION_SOP_CLASS_UID, _UNCOMPRESSED):
            ok, detail = False, f"{destination.name} does not support verification"
        else:
            status = call.request(lambda association, number: association.send_c_echo(number))
            ok = status is not None and status.get("Status") == _SUCCESS
            detail = in_words(status) if status is not None else call.lost
    return EchoOutcome(ok=ok, detail=detail, seconds=time.monotonic() - begin)


def inspect_file(path: Path) -> OutgoingFile | DeliveryOutcome:
    """What a file is, or why it cannot be sent."""
    try:
        meta = read_file_meta_info(path)
        return OutgoingFile(
            path=path,
            size=path.stat().st_size,
            sop_class_uid=UID(meta.MediaStorageSOPClassUID),
            sop_instance_uid=UID(meta.MediaStorageSOPInstanceUID),
            transfer_syntax_uid=UID(meta.TransferSyntaxUID),
        )
    except FileNotFoundError:
        return DeliveryOutcome(path=path, result=DeliveryResult.REFUSED, detail="the file is gone")
    except OSError as error:
        detail = f"the file cannot be read now: {error.strerror}"
        return DeliveryOutcome(path=path, result=DeliveryResult.TRANSIENT, detail=detail)
    except Exception as error:  # pydicom raises whatever the damage leads to
        detail = f"the file is no DICOM Part 10 file ({type(error).__name__})"
        return DeliveryOutcome(path=path, result=DeliveryResult.REFUSED, detail=detail)


def _contexts(outgoing: Iterable[OutgoingFile]) -> list[PresentationContext]:
    # One transfer syntax in each: with several the peer chooses, and not always the one that the file has.
    own = [(item.sop_class_uid, item.transfer_syntax_uid) for item in outgoing]
    fallback = [(sop_class, syntax) for sop_class, _ in own for syntax in _UNCOMPRESSED]
    return [build_context(sop_class, syntax) for sop_class, syntax in dict.fromkeys(own + fallback)]


def _send_one(call: Call, item: OutgoingFile) -> DeliveryOutcome:
    if call.failure:
        return DeliveryOutcome(path=item.path, result=DeliveryResult.TRANSIENT, detail=call.failure)
    syntax = call.accepts(item.sop_class_uid, (item.transfer_syntax_uid, *_UNCOMPRESSED))
    if syntax is None:
        return _not_negotiated(call, item)
    try:
        content = item.path if syntax == item.transfer_syntax_uid else _uncompressed(item.path)
        status = call.request(lambda association, number: association.send_c_store(content, number))
    except Exception as error:  # decoding and encoding raise whatever is wrong with the file
        if call.is_lost:
            return DeliveryOutcome(path=item.path, result=DeliveryResult.TRANSIENT, detail=call.lost)
        detail = f"the file cannot be sent as {syntax.name} ({type(error).__name__})"
        return DeliveryOutcome(path=item.path, result=DeliveryResult.REFUSED, detail=detail)
    if status is None:
        return DeliveryOutcome(path=item.path, result=DeliveryResult.TRANSIENT, detail=call.lost)
    return DeliveryOutcome(
        path=item.path,
        result=result_of(int(status.Status)),
        detail=in_words(status),
        status=int(status.Status),
    )


def _not_negotiated(call: Call, item: OutgoingFile) -> DeliveryOutcome:
    results = call.refusals(item.sop_class_uid)
    for_good = bool(results) and results <= {_ABSTRACT_SYNTAX_NOT_SUPPORTED, _TRANSFER_SYNTAXES_NOT_SUPPORTED}
    what = "transfer syntax" if results == {_TRANSFER_SYNTAXES_NOT_SUPPORTED} else "SOP class"
    return DeliveryOutcome(
        path=item.path,
        result=DeliveryResult.REFUSED if for_good else DeliveryResult.TRANSIENT,
        detail=f"the destination did not accept the {what} of {item.sop_class_uid.name}",
    )


def _uncompressed(path: Path) -> Dataset:
    dataset = dcmread(path)
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        dataset.decompress(generate_instance_uid=False)
    return dataset


def result_of(status: int) -> DeliveryResult:
    """What a C-STORE status means for one object."""
    if status == _SUCCESS:
        return DeliveryResult.SENT
    if status in _WARNINGS or status >> 12 == 0xB:
        return DeliveryResult.WARNING
    return DeliveryResult.REFUSED if is_permanent(status) else DeliveryResult.TRANSIENT


def in_words(status: Dataset, meanings: Mapping[int, tuple[str, str]] = STORAGE_SERVICE_CLASS_STATUS) -> str:
    """A status with its meaning, by default that of C-STORE, and what the PACS says beside it."""
    code = int(status.Status)
    meaning = meanings.get(code, ("", "unknown status"))[1] or "Success"
    comment = "".join(c for c in str(status.get("ErrorComment") or "") if c.isprintable())[:64]
    return f"0x{code:04X} {meaning}" + (f": {comment}" if comment else "")
