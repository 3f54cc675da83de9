"""A small PACS: a real C-STORE, C-FIND and C-ECHO provider that keeps what it is sent, or misbehaves on request."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, AllStoragePresentationContexts, evt

from ich_node.receive.upper_layer import configure_pynetdicom

_LOG = logging.getLogger(__name__)
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_SUCCESS = 0x0000
_JOIN_S = 10.0
_INVALID_SOP_INSTANCE = 0x0117
_OUT_OF_RESOURCES = 0xA700
_PENDING, _CANNOT_MATCH = 0xFF00, 0xA900
_VERIFICATION = "1.2.840.10008.1.1"
_STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
_KEYS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_NOBODY = "ICH_NODE_NOBODY"


@dataclass(frozen=True, kw_only=True)
class ReceivedObject:
    """One object that the PACS has taken, and where it lies."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str

    def read(self) -> FileDataset:
        """Parse the file."""
        return dcmread(self.path)


class DemoPacs:
    """A PACS on this machine, from ``with`` to its end.

    Parameters
    ----------
    folder
        Where objects go, as ``<SOP Instance UID>.dcm``; made if absent.
    ae_title, host, port
        Its address; port 0 takes a free one, see `port`.
    refuse_sop_classes
        SOP Class UIDs for which no presentation context is accepted.
    reject_associations, store_status
        See the attributes of the same name.

    Attributes
    ----------
    reject_associations : bool
        Whether association requests are rejected (calling AE title not recognised). May change at any time.
    store_status : int or callable
        Status (0000,0900) of C-STORE responses, or a function of the SOP Class UID that gives it; what
        fails is not kept. May change at any time.
    """

    def __init__(
        self,
        folder: Path,
        *,
        ae_title: str = "DEMO_PACS",
        host: str = "127.0.0.1",
        port: int = 0,
        refuse_sop_classes: Collection[str] = (),
        reject_associations: bool = False,
        store_status: int | Callable[[str], int] = _SUCCESS,
    ) -> None:
        configure_pynetdicom()
        self.ae_title = ae_title
        self.host = host
        self.store_status = store_status
        self._folder = folder
        self._address = (host, port)
        self._changed = threading.Condition()
        self._received: list[ReceivedObject] = []
        self._server: Any = None
        self._entity = AE(ae_title=ae_title)
        self._entity.maximum_pdu_size = 0
        self.reject_associations = reject_associations
        for context in AllStoragePresentationContexts:
            sop_class = context.abstract_syntax
            if sop_class is not None and sop_class not in refuse_sop_classes:
                self._entity.add_supported_context(sop_class, AllTransferSyntaxes)
        self._entity.add_supported_context(_VERIFICATION)
        self._entity.add_supported_context(_STUDY_ROOT_FIND)

    @property
    def reject_associations(self) -> bool:
        """Whether association requests are rejected."""
        return bool(self._entity.require_calling_aet)

    @reject_associations.setter
    def reject_associations(self, reject: bool) -> None:
        self._entity.require_calling_aet = [_NOBODY] if reject else []

    @property
    def port(self) -> int:
        """The TCP port that it listens on.

        Raises
        ------
        RuntimeError
            It is not running.
        """
        if self._server is None:
            raise RuntimeError("the PACS runs only inside its with statement")
        return int(self._server.socket.getsockname()[1])

    @property
    def received(self) -> tuple[ReceivedObject, ...]:
        """What has come so far, in order of arrival; an object that came twice is in it twice."""
        with self._changed:
            return tuple(self._received)

    def wait_for(
        self, predicate: Callable[[Sequence[ReceivedObject]], bool], timeout_s: float = 30.0
    ) -> tuple[ReceivedObject, ...]:
        """Wait until what has been received satisfies the predicate, and return it.

        Raises
        ------
        TimeoutError
            It did not within the time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: predicate(tuple(self._received)), timeout_s):
                raise TimeoutError(f"not so after {timeout_s:g} s; {len(self._received)} objects have come")
            return tuple(self._received)

    def __enter__(self) -> DemoPacs:
        """Start to listen."""
        self._folder.mkdir(parents=True, exist_ok=True)
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_C_ECHO, lambda event: _SUCCESS),
        ]
        self._server = self._entity.start_server(self._address, block=False, evt_handlers=handlers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Abort what is open and stop to listen."""
        server, self._server = self._server, None
        # first no new ones, then none
        server.shutdown()
        self._entity.shutdown()
        server.server_close()
        for association in self._entity.active_associations:
            association.join(_JOIN_S)

    def _store(self, event: Any) -> int:
        uid, sop_class = str(event.request.AffectedSOPInstanceUID), str(event.request.AffectedSOPClassUID)
        if len(uid) > 64 or not _UID.fullmatch(uid):
            return _INVALID_SOP_INSTANCE
        status = self.store_status(sop_class) if callable(self.store_status) else self.store_status
        # warnings (Bxxx) mean stored
        if status != _SUCCESS and status >> 12 != 0xB:
            return status
        path = self._folder / f"{uid}.dcm"
        try:
            _write_whole(path, event.encoded_dataset())
        except OSError:
            _LOG.exception("cannot store an object")
            return _OUT_OF_RESOURCES
        taken = ReceivedObject(
            path=path,
            sop_class_uid=sop_class,
            sop_instance_uid=uid,
            transfer_syntax_uid=str(event.context.transfer_syntax),
            calling_ae_title=str(event.assoc.requestor.ae_title).strip(),
        )
        with self._changed:
            self._received.append(taken)
            self._changed.notify_all()
        return status

    def _find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        """Match at IMAGE level by UIDs (PS3.4 C.4.1); an object whose file was taken away is no match."""
        asked = event.identifier
        if asked.get("QueryRetrieveLevel") != "IMAGE":
            yield _CANNOT_MATCH, None
            return
        wanted = {keyword: _uids(asked.get(keyword)) for keyword in _KEYS}
        for one in {one.sop_instance_uid: one for one in self.received}.values():
            if not one.path.exists():
                continue
            header = dcmread(one.path, specific_tags=list(_KEYS), stop_before_pixels=True)
            if all(str(header[keyword].value) in uids for keyword, uids in wanted.items() if uids):
                match = Dataset()
                match.QueryRetrieveLevel = "IMAGE"
                for keyword in _KEYS:
                    setattr(match, keyword, str(header[keyword].value))
                yield _PENDING, match


def _uids(value: Any) -> set[str]:
    if not value:
        return set()
    return {value} if isinstance(value, str) else set(value)


def _write_whole(path: Path, encoded: bytes) -> None:
    """Nobody who lists the folder sees half a file."""
    part = path.with_suffix(f".{threading.get_ident()}.part")
    part.write_bytes(encoded)
    part.replace(path)
