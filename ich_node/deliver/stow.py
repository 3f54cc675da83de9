"""Results to a PACS by DICOMweb (STOW-RS, PS3.18 section 10.5): what `ich_node.deliver.scu` does by C-STORE."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from pydicom.dataset import Dataset

from ich_node.deliver.scu import (
    DeliveryOutcome,
    DeliveryResult,
    OutgoingFile,
    Timeouts,
    in_words,
    inspect_file,
    result_of,
)
from ich_node.deliver.store_answer import StoreAnswer, UnreadableAnswer, read_store_answer
from ich_node.deliver.web_client import WebAnswer, WebDestination, exchange, shortened
from ich_node.http_exchange import NoAnswer

_ACCEPT = "application/dicom+json, application/dicom+xml;q=0.5"
_BLOCK = 2**16
_MAX_ANSWER_BYTES = 2**22
"""An answer has about 400 bytes for each object."""
_STORED = range(200, 300)
_FAULTS_OF_AN_OBJECT = frozenset({400, 409, 413, 415, 422})
"""Bad request, conflict, content too large, unsupported media type, unprocessable: the same object will have
them again. Anything else that is no success lies in the settings, in what the PACS lets this node do, or in how
it is today; who mends that does not want to send everything anew by hand."""
_ALREADY_STORED = frozenset({0x0111, 0xB00E})
"""Duplicate SOP instance (PS3.7 annex C.5.12); and what Azure's service says of an object that it has."""


def send(
    paths: Sequence[Path], destination: WebDestination, *, timeouts: Timeouts | None = None
) -> tuple[DeliveryOutcome, ...]:
    """Send files in one request, with the bytes that they have.

    A request that is refused without a word on which object is to blame is made again for each object alone,
    so that none suffers for another.

    Parameters
    ----------
    paths
        DICOM Part 10 files.
    destination
        Where to.
    timeouts
        How long to wait: ``connection_s``, ``network_s`` for each piece to be taken, and ``dimse_s`` for each
        object, together, until the answer is there. After that the outcome is ``TRANSIENT``.

    Returns
    -------
    tuple of DeliveryOutcome
        One for each path, in the same order. Whatever goes wrong on the way is in there; nothing is raised
        for it.

        - An object in Referenced SOP Sequence (0008,1199) of a success (2xx) is ``SENT``, or ``WARNING`` with
          a Warning Reason.
        - One in Failed SOP Sequence (0008,1198) is judged by its Failure Reason as by a C-STORE status,
          whatever the HTTP status is.
        - One that is in neither, or whose answer cannot be read, counts as not stored: ``REFUSED`` for 400,
          409, 413, 415 and 422, ``TRANSIENT`` for all else, 401, 403 and 404 among it: an administrator can
          mend those without touching the object.
    """
    inspected = {index: inspect_file(path) for index, path in enumerate(paths)}
    outcomes = {index: item for index, item in inspected.items() if isinstance(item, DeliveryOutcome)}
    outgoing = {index: item for index, item in inspected.items() if isinstance(item, OutgoingFile)}
    if outgoing:
        told = _store(list(outgoing.values()), destination, timeouts or Timeouts())
        outcomes.update(zip(outgoing, told, strict=True))
    return tuple(outcomes[index] for index in range(len(paths)))


class _CannotRead(Exception):
    """A file went away, or became shorter, while it was sent."""


def _store(
    items: list[OutgoingFile], destination: WebDestination, timeouts: Timeouts
) -> list[DeliveryOutcome]:
    try:
        answer = _post(items, destination, timeouts)
    except NoAnswer as error:
        return [_transient(item, str(error)) for item in items]
    except _CannotRead:
        return [_transient(item, "a file of the request cannot be read now") for item in items]
    told = _read(answer)
    outcomes = []
    for item in items:
        is_named = item.sop_instance_uid in told.failed
        if answer.status in _FAULTS_OF_AN_OBJECT and not is_named and len(items) > 1:
            outcomes += _store([item], destination, timeouts)
        else:
            outcomes.append(_outcome(item, answer, told))
    return outcomes


def _post(items: list[OutgoingFile], destination: WebDestination, timeouts: Timeouts) -> WebAnswer:
    boundary = f"ich-node-{secrets.token_hex(16)}"
    length = sum(map(len, _frame(boundary, len(items)))) + sum(item.size for item in items)
    headers = {
        "Accept": _ACCEPT,
        "Content-Type": f'multipart/related; type="application/dicom"; boundary="{boundary}"',
        "Content-Length": str(length),
    }
    with contextlib.closing(multipart(items, boundary)) as body:
        return exchange(
            destination,
            "POST",
            "/studies",
            headers=headers,
            body=body,
            timeouts=timeouts,
            answer_s=timeouts.dimse_s * len(items),
            max_bytes=_MAX_ANSWER_BYTES,
        )


def multipart(items: Sequence[OutgoingFile], boundary: str) -> Generator[bytes]:
    """The body of a Store request (PS3.18 section 8.7.3, RFC 2387), a block at a time.

    Yields
    ------
    bytes
        Of the files no more than 64 KiB at once.
    """
    *heads, end = _frame(boundary, len(items))
    for head, item in zip(heads, items, strict=True):
        yield head
        yield from _content(item)
    yield end


def _frame(boundary: str, count: int) -> list[bytes]:
    """What stands before each part, and behind the last."""
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    return [head if number == 0 else b"\r\n" + head for number in range(count)] + [
        f"\r\n--{boundary}--\r\n".encode()
    ]


def _content(item: OutgoingFile) -> Iterator[bytes]:
    left = item.size
    try:
        with item.path.open("rb") as file:
            while left and (block := file.read(min(_BLOCK, left))):
                left -= len(block)
                yield block
    except OSError:
        raise _CannotRead from None
    if left:
        raise _CannotRead


def _read(answer: WebAnswer) -> StoreAnswer:
    try:
        return read_store_answer(answer.content)
    except UnreadableAnswer:
        return StoreAnswer(failed={}, stored={})


def _outcome(item: OutgoingFile, answer: WebAnswer, told: StoreAnswer) -> DeliveryOutcome:
    uid = str(item.sop_instance_uid)
    if uid in told.failed:
        return _failed(item, answer, told.failed[uid])
    if answer.status not in _STORED:
        for_good = answer.status in _FAULTS_OF_AN_OBJECT
        return DeliveryOutcome(
            path=item.path,
            result=DeliveryResult.REFUSED if for_good else DeliveryResult.TRANSIENT,
            detail=answer.words,
            retry_after_s=answer.retry_after_s,
        )
    if uid not in told.stored:
        return _transient(item, shortened(f"the answer does not say that it is stored: {answer.words}"))
    warning = told.stored[uid]
    return DeliveryOutcome(
        path=item.path,
        result=DeliveryResult.WARNING if warning else DeliveryResult.SENT,
        detail=_reason_in_words(answer.status, warning) if warning else f"HTTP {answer.status}",
        status=warning or None,
    )


def _failed(item: OutgoingFile, answer: WebAnswer, reason: int | None) -> DeliveryOutcome:
    if reason is None:
        return _transient(item, f"HTTP {answer.status}, not stored, and the PACS does not say why")
    if reason in _ALREADY_STORED:
        result = DeliveryResult.WARNING
    elif (result := result_of(reason)) is not DeliveryResult.REFUSED:
        result = DeliveryResult.TRANSIENT  # success and warnings are no reasons to fail
    return DeliveryOutcome(
        path=item.path,
        result=result,
        detail=_reason_in_words(answer.status, reason),
        status=reason,
        retry_after_s=answer.retry_after_s,
    )


def _reason_in_words(http_status: int, reason: int) -> str:
    status = Dataset()
    status.Status = reason
    return f"{in_words(status)} (HTTP {http_status})"


def _transient(item: OutgoingFile, detail: str) -> DeliveryOutcome:
    return DeliveryOutcome(path=item.path, result=DeliveryResult.TRANSIENT, detail=detail)
