"""Tells open pages that something has changed, by server-sent events (WHATWG HTML, section 9.2).

A stream carries a version and nothing else. The page then fetches what it shows, as whoever it is logged in as.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.concurrency import run_in_threadpool
from starlette.types import Send

from ich_node.errors import IchNodeError

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
HEARTBEAT_S = 10.0
"""A page that hears nothing for longer than two of these opens another stream (``live.js``)."""
STREAM_S = 900.0
"""A stream ends then and the page opens another: whoever has logged out is not told for ever."""
MOST_STREAMS = 200
"""Of one process. A page that gets none asks every few seconds instead."""
_RETRY_MS = 1000
_UNKNOWN = "unknown"


class Changes:
    """Looks whether something has changed while somebody listens, once for all who do.

    Parameters
    ----------
    version
        Gives a text that is another one after a change; may wait, and may raise `IchNodeError`.
    most_streams
        Who comes later is turned away.
    """

    def __init__(self, version: Callable[[], str], *, most_streams: int = MOST_STREAMS) -> None:
        self._version = version
        self._most_streams = most_streams
        self._listeners: set[asyncio.Event] = set()
        self._watch: asyncio.Task[None] | None = None
        self.current = _UNKNOWN
        """The version, as it was when somebody listened last."""
        self.has_ended = False

    @property
    def is_full(self) -> bool:
        """Whether as many listen as may."""
        return len(self._listeners) >= self._most_streams

    @property
    def is_watching(self) -> bool:
        """Whether the version is asked for now and then."""
        return self._watch is not None and not self._watch.done()

    def end(self) -> None:
        """End all streams: the server stops."""
        self.has_ended = True
        self._tell()

    @contextmanager
    def listening(self) -> Iterator[asyncio.Event]:
        """An event that is set at each change, and at the end."""
        listener = asyncio.Event()
        if self.has_ended or self.current != _UNKNOWN:
            listener.set()
        self._listeners.add(listener)
        if not self.is_watching:
            self._watch = asyncio.create_task(self._look_again_and_again(), name="changes")
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    async def _look_again_and_again(self) -> None:
        while self._listeners and not self.has_ended:
            version = await run_in_threadpool(self._look)
            if version != self.current:
                self.current = version
                self._tell()
            await asyncio.sleep(LOOK_EVERY_S)
        self.current = _UNKNOWN  # what was known before a pause is no news

    def _look(self) -> str:
        try:
            return self._version()
        except IchNodeError as error:
            logger.warning("open pages are not told of changes: %s", type(error).__name__)
        except Exception:  # this watch is for all pages: it goes on
            logger.exception("open pages are not told of changes")
        return "unavailable"

    def _tell(self) -> None:
        for listener in self._listeners:
            listener.set()


class ChangeStream(EventSourceResponse):
    """The stream of one page: ``change`` with a version when there is a new one, ``alive`` in between."""

    def __init__(self, changes: Changes) -> None:
        # A proxy must not collect what it passes on (nginx; others go by the media type).
        super().__init__(iter(()), headers={"X-Accel-Buffering": "no"})
        self._changes = changes

    async def stream_response(self, send: Send) -> None:
        """Send until the client goes, the server stops or the stream has lasted long enough."""
        clock = asyncio.get_running_loop().time
        until = clock() + STREAM_S
        with self._changes.listening() as listener:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            await _send(send, format_sse_event(comment="changes of the worklist", retry=_RETRY_MS))
            while not self._changes.has_ended and clock() < until:
                event = "change" if await _is_set(listener, HEARTBEAT_S) else "alive"
                listener.clear()
                if not self._changes.has_ended:
                    await _send(send, format_sse_event(event=event, data_str=self._changes.current))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class PageServer(uvicorn.Server):
    """A server that ends the streams of open pages before it waits for what is under way.

    It would wait for them until its grace is over: they have no end of their own.

    Parameters
    ----------
    config
        Of an application whose ``state.changes`` are the `Changes`.
    """

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Stop serving."""
        self.config.app.state.changes.end()  # type: ignore[union-attr]
        await super().shutdown(sockets)  # type: ignore[arg-type]


async def _is_set(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


async def _send(send: Send, content: bytes) -> None:
    await send({"type": "http.response.body", "body": content, "more_body": True})
