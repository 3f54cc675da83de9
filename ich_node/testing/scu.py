"""A modality: sends images by C-STORE and asks by C-ECHO, as a scanner does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context

from ich_node.errors import TransientError
from ich_node.receive.requestor import RequestingEntity
from ich_node.receive.upper_layer import configure_pynetdicom

_VERIFICATION = "1.2.840.10008.1.1"
SOP_CLASS_NOT_SUPPORTED = 0x0122
"""Status for an object that was not sent: its SOP class or transfer syntax was not accepted."""


def send_images(
    images: Sequence[Dataset | Path],
    *,
    host: str,
    port: int,
    called_ae_title: str,
    calling_ae_title: str = "MODALITY",
    timeout_s: float = 30.0,
) -> list[int]:
    """Send images over one association.

    Parameters
    ----------
    images
        Data sets with file meta information, or Part 10 files, which are sent with the bytes that they have.
    host, port, called_ae_title, calling_ae_title
        To whom, from whom.
    timeout_s
        For each answer, seconds.

    Returns
    -------
    list of int
        The status (0000,0900) of each, in order; `SOP_CLASS_NOT_SUPPORTED` where the peer accepted no
        presentation context for it.

    Raises
    ------
    TransientError
        No association, or it was lost on the way.
    """
    if not images:
        return []
    kinds = [_kind(image) for image in images]
    contexts = [build_context(sop_class, syntax) for sop_class, syntax in dict.fromkeys(kinds)]
    with _association(contexts, host, port, called_ae_title, calling_ae_title, timeout_s) as association:
        accepted = {(c.abstract_syntax, c.transfer_syntax[0]) for c in association.accepted_contexts}
        return [
            _send(association, image) if kind in accepted else SOP_CLASS_NOT_SUPPORTED
            for image, kind in zip(images, kinds, strict=True)
        ]


def echo(
    *,
    host: str,
    port: int,
    called_ae_title: str,
    calling_ae_title: str = "MODALITY",
    timeout_s: float = 10.0,
) -> int:
    """Ask a peer whether it is there (C-ECHO); returns the status (0000,0900), 0 for success.

    Raises
    ------
    TransientError
        No association, or no answer.
    """
    contexts = [build_context(_VERIFICATION)]
    with _association(contexts, host, port, called_ae_title, calling_ae_title, timeout_s) as association:
        if not association.accepted_contexts:
            return SOP_CLASS_NOT_SUPPORTED
        return _status(association.send_c_echo())


def _kind(image: Dataset | Path) -> tuple[str, str]:
    meta = read_file_meta_info(image) if isinstance(image, Path) else image.file_meta
    return str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)


def _send(association: Association, image: Dataset | Path) -> int:
    if not association.is_established:
        raise TransientError("the peer ended the association before every image was sent")
    return _status(association.send_c_store(image))


def _status(response: Dataset) -> int:
    status: Any = response.get("Status")
    if status is None:
        raise TransientError("the peer gave no answer, or ended the association")
    return int(status)


@contextmanager
def _association(
    contexts: list[PresentationContext],
    host: str,
    port: int,
    called_ae_title: str,
    calling_ae_title: str,
    timeout_s: float,
) -> Iterator[Association]:
    configure_pynetdicom()
    entity = RequestingEntity(ae_title=calling_ae_title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = (
        timeout_s
    )
    opened: list[socket.socket] = []
    reached = threading.Event()
    handlers: list[Any] = [
        (evt.EVT_ACSE_SENT, _keep_socket, [opened]),
        (evt.EVT_CONN_OPEN, _no_delay, [reached]),
    ]
    association = entity.associate(
        host, port, contexts=contexts, ae_title=called_ae_title, evt_handlers=handlers
    )
    if association.is_established:
        try:
            yield association
        finally:
            if association.is_established:
                association.release()
        return
    # no accepted context makes pynetdicom abort an association that the peer has accepted
    accepted = association.acceptor.primitive is not None and association.acceptor.primitive.result == 0x00
    if accepted and not association.accepted_contexts:
        yield association
        return
    for connection in opened:
        connection.close()
    why = _why(association) if reached.is_set() else "cannot be reached"
    raise TransientError(f"{called_ae_title} at {host}:{port} {why}")


def _keep_socket(event: evt.Event, opened: list[socket.socket]) -> None:
    # when the request is on its way: pynetdicom forgets to close a socket that it could not connect
    connection = getattr(event.assoc.dul.socket, "socket", None)
    if connection is not None and connection not in opened:
        opened.append(connection)


def _no_delay(event: evt.Event, reached: threading.Event) -> None:
    reached.set()
    transport: Any = event.assoc.dul.socket
    transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _why(association: Association) -> str:
    reply = association.acceptor.primitive
    if reply is None or not association.is_rejected:
        return "did not answer, or ended the connection"
    return f"rejected the association: {reply.result_str}, {reply.source_str}, {reply.reason_str}"
