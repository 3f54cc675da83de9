"""Event reports over WebSockets (PS3.18 8.10.4, 8.10.5 and 11.13).

The reports stand in the database, written with what they are about. Every process that serves the web tells them to
the subscribers that are connected to it, and asks for them only while somebody is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from starlette.concurrency import run_in_threadpool

from ich_node.database.access import AccessAction
from ich_node.database.engine import Session
from ich_node.database.json_model import attribute, dataset
from ich_node.database.workitem_events import prune_events
from ich_node.database.workitem_subscriptions import RecentEvents, Report, recent_events
from ich_node.database.workitems import matching_workitems
from ich_node.errors import IchNodeError
from ich_node.settings_section import check_ae_title
from ich_node.web.caller import Role, caller_of
from ich_node.web.site import Site
from ich_node.web.ups_query import BadQuery, read_keys

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
LOOK_BACK = timedelta(seconds=60)
"""A transaction that began earlier may commit later; and who was cut off gets what came meanwhile."""
MOST_CONNECTIONS = 100
_SEND_SECONDS = 10.0
_MOST_WAITING = 1000
_PRUNE_EVERY_S = 600.0
_POLICY_VIOLATION, _GOING_AWAY, _TRY_AGAIN_LATER = 1008, 1001, 1013


@dataclass(eq=False)
class _Connection:
    """One WebSocket of one subscriber."""

    ae_title: str
    waiting: asyncio.Queue[Report] = field(default_factory=lambda: asyncio.Queue(_MOST_WAITING))
    told: set[int] = field(default_factory=set)
    is_behind: bool = False


class UpsEvents:
    """Looks for event reports and hands them to the connections; one for each process."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._connections: set[_Connection] = set()
        self._look: asyncio.Task[None] | None = None

    def router(self) -> APIRouter:
        """The address of the WebSocket."""
        router = APIRouter(lifespan=self._lifespan)
        router.add_api_websocket_route("/ws/subscribers/{ae_title}", self.notify)
        return router

    async def notify(self, websocket: WebSocket, ae_title: str) -> None:
        """Open a notification connection and send until it ends."""
        try:
            title = check_ae_title(ae_title)
        except ValueError:
            title = ""
        if not title or not caller_of(websocket).role.covers(Role.VIEWER):
            await websocket.close(_POLICY_VIOLATION)
            return
        if len(self._connections) >= MOST_CONNECTIONS:
            await websocket.close(_TRY_AGAIN_LATER)
            return
        await run_in_threadpool(self._site.record, websocket, AccessAction.QUERY, detail="workitem events")
        connection = _Connection(ae_title=title)
        self._connections.add(connection)
        try:
            await websocket.accept()
            self._start()
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(_until_closed(websocket))
                sending = tasks.create_task(_send_reports(websocket, connection))
                await asyncio.wait((reading, sending), return_when=asyncio.FIRST_COMPLETED)
                reading.cancel()
                sending.cancel()
        finally:
            self._connections.discard(connection)

    def _start(self) -> None:
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._look_again_and_again(), name="workitem events")

    async def _look_again_and_again(self) -> None:
        while self._connections:
            connections = list(self._connections)
            titles = {one.ae_title for one in connections}
            told = set.intersection(*(one.told for one in connections))
            try:
                recent = await run_in_threadpool(self._recent, titles, told)
            except IchNodeError as error:  # it is asked again
                logger.warning("subscribers are not told of workitems: %s", type(error).__name__)
            except Exception:  # this look is for all subscribers: it goes on
                logger.exception("subscribers are not told of workitems")
            else:
                for connection in connections:
                    _hand_out(connection, recent)
            await asyncio.sleep(LOOK_EVERY_S)

    def _recent(self, titles: Collection[str], told: Collection[int]) -> RecentEvents:
        with self._site.database.reading() as session:
            return recent_events(
                session,
                titles,
                since=datetime.now(UTC) - LOOK_BACK,
                told=told,
                matches=lambda keys, uids: _fitting(session, keys, uids),
            )

    @asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        """Remove old events now and then while the application serves."""
        pruning = asyncio.create_task(self._prune(), name="old workitem events")
        try:
            yield
        finally:
            for task in (pruning, self._look):
                if task is not None:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task

    async def _prune(self) -> None:
        while True:
            try:
                while await run_in_threadpool(self._prune_some):
                    pass
            except IchNodeError as error:
                logger.warning("old workitem events are not removed: %s", type(error).__name__)
            await asyncio.sleep(_PRUNE_EVERY_S)

    def _prune_some(self) -> int:
        with self._site.database.writing() as session:
            return prune_events(session, datetime.now(UTC))


def _fitting(session: Session, keys: Mapping[str, str], uids: Collection[str]) -> set[str]:
    try:
        return matching_workitems(session, read_keys(keys), uids)
    except BadQuery:  # kept by another version
        return set()


def _hand_out(connection: _Connection, recent: RecentEvents) -> None:
    for report in recent.reports:
        if report.ae_title == connection.ae_title and report.id not in connection.told:
            try:
                connection.waiting.put_nowait(report)
            except asyncio.QueueFull:  # it does not read: it is cut off, and may come again
                connection.is_behind = True
    connection.told = set(recent.ids)


async def _send_reports(websocket: WebSocket, connection: _Connection) -> None:
    message_id = 0
    while not connection.is_behind:
        report = await connection.waiting.get()
        message_id = message_id % 0xFFFF + 1
        content = dataset(dict(report.content), attribute("MessageID", message_id))
        try:
            async with asyncio.timeout(_SEND_SECONDS):
                await websocket.send_text(json.dumps(content, ensure_ascii=False))
        except (TimeoutError, WebSocketDisconnect):
            break
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):
        await websocket.close(_GOING_AWAY)


async def _until_closed(websocket: WebSocket) -> None:
    """Read and pass over what a subscriber sends, so that its close is noticed."""
    with contextlib.suppress(WebSocketDisconnect):
        while (await websocket.receive())["type"] != "websocket.disconnect":
            pass
